"""Log-probs at the prompt's positions, gathered while the prompt is read.

Of the prompt's own tokens, the likeliest ones, tokens that the request names, and draws. The
rule: the logits of all positions are never held at once.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import torch
from torch import Tensor

from tinker_async.data.results import PromptAltTokens, SampleResponse, TopkLogprobs
from tinker_async.data.tensors import TensorData
from tinker_async.errors import InvalidInputError
from tinker_async.local.engine.jobs import ModelCard, Sample

_LOGITS_AT_ONCE = 2**23
"""32 MB in float32"""
_MOST_CELLS = 2**24
"""Named tokens, or draws, of one prompt"""
_MIN_TEMPERATURE = 1e-6
_DRAWS = 1
"""Tells the random numbers of the draws from those of the samples, which have the same seed."""


class PromptScores:
    """Scores of one prompt, at temperature 1.

    Args:
        prompt: int64 `(P,)`.
        job: What to score, checked by `check_scores`.
    """

    def __init__(self, prompt: Tensor, job: Sample) -> None:
        length, top = len(prompt), job.topk_prompt_logprobs
        self._prompt = prompt
        self._job = job
        self._top = top
        self.logprobs = np.full(length, np.nan, dtype=np.float32)
        """float32 `(P,)`; NaN at position 0, which nothing predicts"""
        self._ids = np.zeros((length, top), dtype=np.int32)
        self._values = np.full((length, top), TopkLogprobs.EMPTY, dtype=np.float32)
        named = job.target_prompt_logprobs
        self._named = None if named is None else named.to_numpy(-1)  # (P - 1, K)
        self._named_values = np.zeros(
            (0,) if self._named is None else self._named.shape, np.float32
        )
        self._draws = _Draws(length - 1, job) if job.prompt_alt_tokens_k else None

    @property
    def topk(self) -> TopkLogprobs:
        """The most likely tokens at each position; position 0 is empty."""
        return TopkLogprobs(self._ids, self._values)

    def fill(self, response: SampleResponse) -> SampleResponse:
        """Return the response with what was asked for about the prompt."""
        job = self._job
        return msgspec.structs.replace(
            response,
            prompt_logprobs=self.logprobs if job.prompt_logprobs else None,
            topk_prompt_logprobs=self.topk if job.topk_prompt_logprobs else None,
            target_prompt_logprobs=self._named_tensor(),
            prompt_alt_tokens=self._draws.result() if self._draws else None,
        )

    def add(self, hidden: Tensor, start: int, head: Callable[[Tensor], Tensor]) -> None:
        """Score the tokens that follow positions `start`, `start + 1`, and so on.

        Args:
            hidden: `(T, hidden)`, the states of adjacent positions.
            start: The first of these positions.
            head: Gives float32 `(n, vocab)` logits of `(n, hidden)` states.
        """
        stop = min(start + len(hidden), len(self._prompt) - 1)  # the last one predicts no prompt
        size = 1
        while start < stop:
            logprobs = head(hidden[:size]).log_softmax(-1)  # (n, vocab)
            count = min(len(logprobs), stop - start)
            self._keep(start + 1, logprobs[:count])
            start, hidden = start + count, hidden[count:]
            size = max(1, _LOGITS_AT_ONCE // logprobs.shape[1])

    def _keep(self, first: int, logprobs: Tensor) -> None:
        places = slice(first, first + len(logprobs))
        targets = self._prompt[places, None].to(logprobs.device)
        self.logprobs[places] = logprobs.gather(1, targets).squeeze(1).numpy(force=True)
        if self._top:
            best = torch.topk(logprobs, self._top, dim=-1)
            self._ids[places] = best.indices.numpy(force=True)
            self._values[places] = best.values.numpy(force=True)
        rows = slice(first - 1, first - 1 + len(logprobs))
        if self._named is not None:
            wanted = self._named[rows]
            index = torch.from_numpy(wanted.clip(min=0)).to(logprobs.device)
            values = logprobs.gather(1, index).numpy(force=True)
            self._named_values[rows] = np.where(wanted < 0, 0.0, values)
        if self._draws is not None:
            self._draws.draw(rows, logprobs)

    def _named_tensor(self) -> TensorData | None:
        """Return the log-probs in the layout of the request's tensor."""
        asked = self._job.target_prompt_logprobs
        if asked is None:
            return None
        data = self._named_values
        crow, col = asked.sparse_crow_indices, asked.sparse_col_indices
        if crow is not None and col is not None:
            data = data[np.repeat(np.arange(crow.size - 1), np.diff(crow)), col]
        return TensorData(
            data=data,
            dtype="float32",
            shape=asked.dense_shape,
            sparse_crow_indices=crow,
            sparse_col_indices=col,
        )


class _Draws:
    """Alternatives to each prompt token, at the request's temperature; repeatable with a seed."""

    def __init__(self, rows: int, job: Sample) -> None:
        k, seed = job.prompt_alt_tokens_k, job.params.seed
        entropy = None if seed is None else [seed % 2**64, _DRAWS]
        self._uniforms = np.random.default_rng(entropy).random((rows, k), dtype=np.float32)
        self._temperature = job.params.temperature
        self._tokens = np.zeros((rows, k), dtype=np.int64)
        self._logprobs = np.zeros((rows, k), dtype=np.float32)

    def draw(self, rows: slice, logprobs: Tensor) -> None:
        """Draw for positions whose log-probs are `(n, vocab)`."""
        if self._temperature == 0:
            tokens = logprobs.argmax(-1, keepdim=True).expand(-1, self._tokens.shape[1])
        else:
            scaled = logprobs / max(self._temperature, _MIN_TEMPERATURE)
            cumulative = scaled.softmax(-1).cumsum(-1)
            total = cumulative[:, -1:]
            # Strictly below the total even after rounding, so that the index is a token.
            below = torch.nextafter(total, torch.zeros_like(total))
            drawn = torch.from_numpy(self._uniforms[rows]).to(logprobs.device) * total
            tokens = torch.searchsorted(cumulative, torch.minimum(drawn, below), right=True)
        self._tokens[rows] = tokens.numpy(force=True)
        self._logprobs[rows] = logprobs.gather(1, tokens).numpy(force=True)

    def result(self) -> PromptAltTokens:
        """Return the draws of all positions."""
        return PromptAltTokens(
            tokens=TensorData.from_numpy(self._tokens),
            logprobs=TensorData.from_numpy(self._logprobs),
        )


def wants_scores(job: Sample) -> bool:
    """Whether a request asks for anything about its prompt."""
    return (
        job.prompt_logprobs
        or job.topk_prompt_logprobs > 0
        or job.target_prompt_logprobs is not None
        or job.prompt_alt_tokens_k > 0
    )


def check_scores(job: Sample, card: ModelCard) -> None:
    """Check what a request asks for about its prompt, which is known to be sound.

    Raises:
        InvalidInputError: It cannot be right for this prompt and model.
    """
    rows = job.prompt.size - 1
    _check(
        job.prompt_alt_tokens_k >= 0 and rows * job.prompt_alt_tokens_k <= _MOST_CELLS,
        "prompt_alt_tokens_k",
        f"must not be negative, and at most {_MOST_CELLS} draws for the whole prompt",
    )
    named = job.target_prompt_logprobs
    if named is None:
        return
    field, shape = "target_prompt_logprobs", named.dense_shape
    _check(named.dtype == "int64", field, f"must be int64, got {named.dtype}")
    _check(
        len(shape) == 2 and shape[0] == rows,
        field,
        f"must have shape ({rows}, K), a row for each prompt position after the first; got {shape}",
    )
    # A few bytes of CSR can name any shape: look at it before it is laid out.
    _check(
        shape[1] <= card.vocab_size and rows * shape[1] <= _MOST_CELLS,
        field,
        f"names {shape[1]} tokens a position; at most {card.vocab_size}, and {_MOST_CELLS} in all",
    )
    ids = named.data
    low, high = int(ids.min(initial=0)), int(ids.max(initial=-1))
    _check(
        low >= -1 and high < card.vocab_size,
        field,
        f"token ids must be below {card.vocab_size}, or -1 for none; got {low if low < -1 else high}",
    )
    _check(high >= 0, field, "must name at least one token")


def _check(holds: bool, field: str, says: str) -> None:
    if not holds:
        raise InvalidInputError(f"{field}: {says}", field=field)
