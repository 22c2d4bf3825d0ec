"""Local checks of training data: what cannot be right is refused before anything is sent.

Only what every server refuses is refused here. Losses and keys that this client does
not know pass: the server may know them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tinker_async.data.datum import Datum
from tinker_async.data.tensors import TensorData
from tinker_async.errors import InvalidInputError

_RL_INPUTS = ("target_tokens", "logprobs", "advantages")
_REQUIRED: dict[str, tuple[str, ...]] = {
    "cross_entropy": ("target_tokens",),
    "importance_sampling": _RL_INPUTS,
    "ppo": _RL_INPUTS,
    "cispo": _RL_INPUTS,
    "dro": _RL_INPUTS,
}
_CLIP_KEYS = ("clip_low_threshold", "clip_high_threshold")
_CONFIG_KEYS: dict[str, tuple[str, ...]] = {
    "cross_entropy": (),
    "importance_sampling": (),
    "ppo": _CLIP_KEYS,
    "cispo": _CLIP_KEYS,
    "dro": ("beta",),
}
_MUST_BE_FINITE = ("weights", "advantages", "logprobs")


def check_training_call(
    data: Sequence[Datum], loss_fn: str, loss_fn_config: Mapping[str, float | str] | None
) -> None:
    """Check the arguments of `forward` and `forward_backward`.

    Raises:
        InvalidInputError: `field` says which argument, down to the datum and the key.
    """
    if not data:
        raise InvalidInputError("data is empty", field="data", hint="give at least one Datum")
    if not loss_fn:
        raise InvalidInputError("loss_fn is empty", field="loss_fn")
    _check_config(loss_fn, loss_fn_config or {})
    required = _REQUIRED.get(loss_fn, ())
    for index, datum in enumerate(data):
        _check_datum(f"data[{index}]", datum, loss_fn, required)


def _check_config(loss_fn: str, config: Mapping[str, float | str]) -> None:
    known = _CONFIG_KEYS.get(loss_fn)
    for key, value in config.items():
        field = f"loss_fn_config[{key!r}]"
        if known is not None and key not in known:
            raise InvalidInputError(
                f"{field}: {loss_fn} has no such setting",
                field=field,
                hint=f"it has {', '.join(known)}" if known else "it has none",
            )
        if not isinstance(value, str) and not math.isfinite(value):
            raise InvalidInputError(f"{field}: must be finite, got {value}", field=field)


def _check_datum(where: str, datum: Datum, loss_fn: str, required: Sequence[str]) -> None:
    length = datum.model_input.length
    if length == 0:
        raise InvalidInputError(f"{where}.model_input has no tokens", field=f"{where}.model_input")
    for key in required:
        if key not in datum.loss_fn_inputs:
            field = f"{where}.loss_fn_inputs[{key!r}]"
            raise InvalidInputError(f"{field} is missing: {loss_fn} needs it", field=field)
    target = datum.loss_fn_inputs.get("target_tokens")
    for key, tensor in datum.loss_fn_inputs.items():
        field = f"{where}.loss_fn_inputs[{key!r}]"
        if required:
            _check_shape(field, tensor, length, target)
        if key in _MUST_BE_FINITE and not np.isfinite(tensor.data).all():
            raise InvalidInputError(f"{field} has NaN or infinite values", field=field)


def _check_shape(field: str, tensor: TensorData, length: int, target: TensorData | None) -> None:
    shape = tensor.dense_shape
    if len(shape) not in (1, 2) or shape[0] != length:
        raise InvalidInputError(
            f"{field} has shape {list(shape)}, but model_input has {length} tokens",
            field=field,
            hint="one row per input token; targets are shifted by the caller",
        )
    if target is not None and shape != target.dense_shape:
        raise InvalidInputError(
            f"{field} has shape {list(shape)}, but target_tokens has {list(target.dense_shape)}",
            field=field,
        )
