"""From logits to tokens: temperature, top-k, top-p and the draw, for many rows at once.

The rule: each row brings its own uniform number, and the token is found by inverting the
row's cumulative distribution, so that a draw depends on the row alone, not on its batch.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from tinker_async.data.params import SamplingParams

_MIN_TEMPERATURE = 1e-6
"""Below this the division would overflow; the draw is all but greedy anyway."""
_FIRST_WIDTH = 256
"""How many of the most likely tokens top-p looks at first; sorting them all is slow."""
_WIDENING = 16
_UNIFORM_BLOCK = 32


class Uniforms:
    """The random numbers of one sample, in [0, 1).

    They come from numpy on the CPU: the same seed gives the same numbers on any device,
    and all 64 bits of it count.

    Args:
        seed: Any integer; its low 64 bits are used. None draws one from the system.
    """

    def __init__(self, seed: int | None) -> None:
        bits = secrets.randbits(64) if seed is None else seed % 2**64
        self._generator = np.random.Generator(np.random.PCG64(bits))
        self._block: list[float] = []

    def next(self) -> float:
        """Return the next number."""
        if not self._block:
            self._block = self._generator.random(_UNIFORM_BLOCK).tolist()
            self._block.reverse()
        return self._block.pop()


class Choice(msgspec.Struct, frozen=True):
    """The chosen token of each row, and what the distribution looked like."""

    tokens: list[int]
    logprobs: list[float]
    """of the temperature-scaled distribution before top-k and top-p"""
    top_ids: list[list[int]]
    """by row, best first, as many as were asked for in the widest row; empty if in none"""
    top_logprobs: list[list[float]]
    finite: list[bool]
    """False where the logits held NaN or were infinite: that row's token means nothing"""


def choose(
    logits: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float], *, top: int = 0
) -> Choice:
    """Choose a token for each row.

    Temperature comes first, then top-k, then top-p on what top-k left, renormalised.
    Temperature 0 takes the most likely token and reports log-probs at temperature 1.

    Args:
        logits: float32 `(rows, vocab)`.
        params: How to choose, by row.
        uniforms: A number in [0, 1) by row.
        top: Also report this many of the most likely tokens of each row.
    """
    finite = logits.amax(-1).isfinite()
    logprobs = _scaled(logits, params)
    tokens = logits.argmax(-1)
    drawn = torch.tensor(uniforms, dtype=torch.float32, device=logits.device)
    for rows, draw in ((_whole(params), _draw), (_truncated(params), _draw_truncated)):
        if len(rows) == len(params):
            tokens = draw(logprobs, drawn, params)
        elif rows:
            index = torch.tensor(rows, device=logits.device)
            tokens[index] = draw(logprobs[index], drawn[index], [params[row] for row in rows])
    best = logprobs.topk(top, dim=-1) if top else None
    return Choice(
        tokens=tokens.tolist(),
        logprobs=logprobs.gather(1, tokens[:, None]).squeeze(1).tolist(),
        top_ids=best.indices.tolist() if best else [],
        top_logprobs=best.values.tolist() if best else [],
        finite=finite.tolist(),
    )


def _scaled(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Log-probs of the temperature-scaled distribution, `(rows, vocab)`."""
    if all(one.temperature in (0.0, 1.0) for one in params):
        return logits.log_softmax(-1)
    divisors = [max(one.temperature or 1.0, _MIN_TEMPERATURE) for one in params]
    shifted = logits - logits.amax(-1, keepdim=True)  # so that nothing overflows upwards
    return (shifted / torch.tensor(divisors, device=logits.device)[:, None]).log_softmax(-1)


def _is_truncated(one: SamplingParams) -> bool:
    return one.top_k > 0 or one.top_p < 1


def _whole(params: Sequence[SamplingParams]) -> list[int]:
    return [row for row, one in enumerate(params) if one.temperature > 0 and not _is_truncated(one)]


def _truncated(params: Sequence[SamplingParams]) -> list[int]:
    return [row for row, one in enumerate(params) if one.temperature > 0 and _is_truncated(one)]


def _draw(logprobs: Tensor, uniforms: Tensor, _params: Sequence[SamplingParams]) -> Tensor:
    """Draw from the whole vocabulary; int64 `(rows,)`."""
    return _invert(logprobs.exp(), uniforms)


def _draw_truncated(logprobs: Tensor, uniforms: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Draw from what top-k and top-p leave; int64 `(rows,)`."""
    vocab, device = logprobs.shape[1], logprobs.device
    top_k = _column([min(one.top_k, vocab) if one.top_k > 0 else vocab for one in params], device)
    top_p = _column([one.top_p if one.top_p < 1 else math.inf for one in params], device)
    tokens = torch.zeros(len(params), dtype=torch.long, device=device)
    left = torch.arange(len(params), device=device)
    width = min(vocab, _FIRST_WIDTH)
    while len(left):
        # 1. The most likely tokens, best first; those beyond top-k have no probability.
        best = logprobs[left].topk(width, dim=-1)  # (left, width)
        ranks = torch.arange(width, device=device)[None]
        kept = best.values.exp() * (ranks < top_k[left])
        # 2. top-p counts in what top-k left, which is known once all of it is in sight.
        within = kept.sum(-1, keepdim=True)
        mass = torch.where(top_k[left] < vocab, within, torch.ones_like(within))
        before = pad(kept.cumsum(-1)[:, :-1], (1, 0))  # probability of all better tokens
        limit = top_p[left] * mass
        kept = kept * ((before < limit) | (ranks == 0))
        picks = _invert(kept, uniforms[left])
        tokens[left] = best.indices.gather(1, picks[:, None]).squeeze(1)
        # 3. Rows whose last kept token is not in sight yet try again with more.
        beyond = (top_k[left] > width) & ((top_k[left] < vocab) | (before[:, -1:] < limit))
        left = left[beyond.squeeze(1) & (width < vocab)]
        width = min(vocab, width * _WIDENING)
    return tokens


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)[:, None]


def _invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Return in each row the first index whose cumulative weight exceeds its uniform share.

    Args:
        weights: `(rows, n)`, not negative; their sum need not be 1.
        uniforms: float32 `(rows,)` in [0, 1].
    """
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1]
    # Strictly below the total even after rounding: a token without weight is never drawn.
    below = torch.nextafter(total, torch.zeros_like(total))
    target = torch.minimum((uniforms * total).to(total.dtype), below)
    index = torch.searchsorted(cumulative, target[:, None], right=True).squeeze(1)
    return index.clamp_(max=weights.shape[1] - 1)
