"""How to train and how to sample: the parameters of the official API, checked when made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Literal, TypeAlias

import msgspec

from tinker_async.data import given
from tinker_async.errors import InvalidInputError

LossFnType: TypeAlias = Literal[
    "cross_entropy",
    "importance_sampling",
    "ppo",
    "cispo",
    "dro",
    "gspo",
    "stable_reinforce",
    "custom",
]
"""The losses that the service is known to have. Any other name may be given as well: which ones a
server knows, only the server can say."""

SamplingClientKind: TypeAlias = Literal["snapshot", "inflight"]
"""Which weights a sampler of a training client has: `snapshot` those of this moment, for good;
`inflight` the newest that were published for the model, shared by all its inflight samplers."""


def _check(holds: bool, field: str, says: str) -> None:
    if not holds:
        raise InvalidInputError(f"{field}: {says}", field=field)


def _whole(value: object, field: str) -> None:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    _check(whole, field, f"must be a whole number, got {value!r}")


def _finite(value: float, field: str) -> None:
    number = isinstance(value, Real) and not isinstance(value, bool)
    _check(number, field, f"must be a number, got {value!r}")
    _check(math.isfinite(value), field, f"must be a finite number, got {value}")


class LoraConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """Shape of a LoRA adapter. At least one `train_*` must be true.

    `seed` fixes the initial weights; None lets the server choose.
    """

    rank: int = msgspec.field(default_factory=lambda: 32)  # a factory, so that it is always sent
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True

    def __post_init__(self) -> None:
        _whole(self.rank, "rank")
        if self.seed is not None:
            _whole(self.seed, "seed")
        _check(self.rank >= 1, "rank", f"must be at least 1, got {self.rank}")
        for name in ("train_unembed", "train_mlp", "train_attn"):
            given.flag(getattr(self, name), name)
        _check(
            self.train_unembed or self.train_mlp or self.train_attn,
            "train_mlp",
            "at least one of train_mlp, train_attn and train_unembed must be true",
        )


class AdamParams(msgspec.Struct, frozen=True, omit_defaults=True):
    """One AdamW step, as `torch.optim.AdamW`; weight decay is decoupled.

    `grad_clip_norm` bounds the global gradient norm of the model; 0 leaves it free.
    """

    # Factories, so that these are always sent. Older servers do not know the last two.
    learning_rate: float = msgspec.field(default_factory=lambda: 1e-4)
    beta1: float = msgspec.field(default_factory=lambda: 0.9)
    beta2: float = msgspec.field(default_factory=lambda: 0.95)
    eps: float = msgspec.field(default_factory=lambda: 1e-12)
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            _finite(getattr(self, name), name)
        _check(self.learning_rate >= 0, "learning_rate", "must not be negative")
        _check(0 <= self.beta1 < 1, "beta1", "must be in [0, 1)")
        _check(0 <= self.beta2 < 1, "beta2", "must be in [0, 1)")
        _check(self.eps >= 0, "eps", "must not be negative")
        _check(self.weight_decay >= 0, "weight_decay", "must not be negative")
        _check(self.grad_clip_norm >= 0, "grad_clip_norm", "must not be negative")


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True):
    """How to draw tokens.

    Args:
        max_tokens: Most tokens to generate; None lets the server choose. A server that cannot is
            sent what is left of the context, or 128 where that is not known.
        seed: Makes sampling repeatable; sample i of a request uses `seed + i`.
        stop: A string, strings, or token ids that end a sample. None keeps the
            model's own end-of-text tokens; an empty list disables every stop.
        temperature: 0 is greedy.
        top_k: Keep the k most likely tokens; -1 keeps all.
        top_p: Keep the smallest set of tokens with at least this probability.
    """

    max_tokens: int | None = None
    seed: int | None = None
    stop: str | Sequence[str | int] | None = None
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name in ("max_tokens", "seed"):
            if getattr(self, name) is not None:
                _whole(getattr(self, name), name)
        _whole(self.top_k, "top_k")
        _check(
            self.max_tokens is None or self.max_tokens >= 1,
            "max_tokens",
            f"must be at least 1, got {self.max_tokens}",
        )
        _finite(self.temperature, "temperature")
        _check(self.temperature >= 0, "temperature", "must not be negative")
        _check(self.top_k == -1 or self.top_k >= 1, "top_k", "must be -1 (no limit) or at least 1")
        _finite(self.top_p, "top_p")
        _check(0 < self.top_p <= 1, "top_p", "must be in (0, 1]")
        if self.stop is not None and not isinstance(self.stop, str):
            _check(
                isinstance(self.stop, Iterable) and not isinstance(self.stop, (bytes, Mapping)),
                "stop",
                f"must be a string or a list of strings or of token ids, got {self.stop!r}",
            )
            stop = tuple(
                int(item) if isinstance(item, Integral) and not isinstance(item, bool) else item
                for item in self.stop
            )
            kinds = {type(item) for item in stop}
            _check(
                kinds <= {str} or kinds <= {int},
                "stop",
                "must be a string, a list of strings or a list of token ids, not a mixture",
            )
            msgspec.structs.force_setattr(self, "stop", stop)
