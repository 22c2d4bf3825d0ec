"""Drawing samples from toy weights, by seed.

The rule: sample i of a request depends on weights, prompt, parameters and its seed alone,
never on what else is going on. Its log-probs are those the trainer would compute.
"""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt

from tinker_async.data.params import SamplingParams
from tinker_async.data.results import (
    PromptAltTokens,
    SampledSequence,
    SampleResponse,
    TopkLogprobs,
)
from tinker_async.data.tensors import TensorData
from tinker_async.testing.toy_inputs import toy_tokens
from tinker_async.testing.toy_model import END_OF_TEXT, VOCABULARY, Floats, ToyWeights, log_softmax
from tinker_async.wire.messages import SampleRequest

DEFAULT_MAX_TOKENS = 16
"""For requests that do not say."""


def draw(weights: ToyWeights, request: SampleRequest, *, seed: int) -> SampleResponse:
    """Carry out a request; `seed` counts where the request has none."""
    prompt = toy_tokens(request.prompt).tolist()
    params = request.sampling_params
    first_seed = seed if params.seed is None else params.seed
    sequences = [
        _Draw(weights, params, (first_seed + index) & (2**64 - 1)).run(
            prompt[-1] if prompt else END_OF_TEXT, request.topk_sample_logprobs
        )
        for index in range(request.num_samples)
    ]
    wants_prompt = bool(request.prompt_logprobs)
    last_n = request.prompt_logprobs_last_n or len(prompt)
    topk = request.topk_prompt_logprobs
    return SampleResponse(
        sequences=sequences,
        prompt_logprobs=_prompt_logprobs(weights, prompt, last_n) if wants_prompt else None,
        topk_prompt_logprobs=_prompt_topk(weights, prompt, topk, last_n) if topk else None,
        target_prompt_logprobs=_of_targets(weights, prompt, request.target_prompt_logprobs),
        prompt_alt_tokens=_alternatives(weights, prompt, request, first_seed),
    )


class _Draw:
    """One sequence in the making."""

    def __init__(self, weights: ToyWeights, params: SamplingParams, seed: int) -> None:
        self._weights = weights
        self._params = params
        self._random = random.Random(seed)  # noqa: S311  # repeatable is the point
        stop = params.stop
        items = (stop,) if isinstance(stop, str) else (END_OF_TEXT,) if stop is None else stop
        self._stop_tokens = {item for item in items if isinstance(item, int)}
        self._stop_texts = {item for item in items if isinstance(item, str)}

    def run(self, token: int, topk: int) -> SampledSequence:
        tokens: list[int] = []
        logprobs: list[float] = []
        rows: list[Floats] = []
        reason = "length"
        for _ in range(self._params.max_tokens or DEFAULT_MAX_TOKENS):
            row = self._row(token)
            token = self._choose(row)
            tokens.append(token)
            logprobs.append(float(row[token]))
            rows.append(row)
            if self._stops(tokens):
                reason = "stop"
                break
        return SampledSequence(
            tokens=np.array(tokens, dtype=np.int32),
            logprobs=np.array(logprobs, dtype=np.float32),
            stop_reason=reason,
            topk_logprobs=_topk(rows, topk) if topk else None,
        )

    def choose(self, token: int) -> int:
        """Return a token after another."""
        return self._choose(self._row(token))

    def _row(self, token: int) -> Floats:
        temperature = self._params.temperature
        if temperature in (0.0, 1.0):
            return self._weights.logprobs(token)
        return log_softmax(self._weights.logits(token) / np.float32(temperature))

    def _choose(self, row: Floats) -> int:
        params = self._params
        if params.temperature == 0:
            return int(row.argmax())
        if params.top_k == -1 and params.top_p == 1:
            order = np.arange(VOCABULARY)
        else:
            order = np.argsort(-row, kind="stable")[: params.top_k if params.top_k > 0 else None]
        cumulative = np.exp(row[order]).astype(np.float64).cumsum()
        if params.top_p < 1:
            kept = int(np.searchsorted(cumulative, params.top_p)) + 1
            cumulative = cumulative[:kept]
        at = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(order[min(int(at), len(cumulative) - 1)])

    def _stops(self, tokens: list[int]) -> bool:
        if tokens[-1] in self._stop_tokens:
            return True
        if not self._stop_texts:
            return False
        text = bytes(tokens)
        return any(stop.encode() in text for stop in self._stop_texts)


def _prompt_logprobs(
    weights: ToyWeights, prompt: list[int], last_n: int
) -> npt.NDArray[np.float32]:
    values = np.full(len(prompt), np.nan, dtype=np.float32)
    for position in range(max(1, len(prompt) - last_n), len(prompt)):
        values[position] = weights.logprobs(prompt[position - 1])[prompt[position] % VOCABULARY]
    return values


def _prompt_topk(weights: ToyWeights, prompt: list[int], k: int, last_n: int) -> TopkLogprobs:
    found = _topk([weights.logprobs(token) for token in (END_OF_TEXT, *prompt[:-1])], k)
    for empty in range(max(1, len(prompt) - last_n)):
        found.token_ids[empty] = 0
        found.logprobs[empty] = TopkLogprobs.EMPTY
    return found


def _of_targets(
    weights: ToyWeights, prompt: list[int], target: TensorData | None
) -> TensorData | None:
    """Return the log-probs of ids in the layout that they were given in; 0 for -1."""
    if target is None:
        return None
    crow, col = target.sparse_crow_indices, target.sparse_col_indices
    if crow is None:
        rows = np.repeat(np.arange(len(prompt) - 1), target.dense_shape[1])
    else:
        rows = np.repeat(np.arange(len(prompt) - 1), np.diff(crow))
    values = [
        weights.logprobs(prompt[row])[token % VOCABULARY] if token >= 0 else 0.0
        for row, token in zip(rows.tolist(), target.data.tolist(), strict=True)
    ]
    data = np.array(values, dtype=np.float32)
    return TensorData(data, "float32", target.shape, crow, col)


def _alternatives(
    weights: ToyWeights, prompt: list[int], request: SampleRequest, seed: int
) -> PromptAltTokens | None:
    """Draw tokens for each position after the first, at the request's temperature."""
    k = request.prompt_alt_tokens_k
    if not k:
        return None
    params = SamplingParams(temperature=request.sampling_params.temperature)
    draw_one = _Draw(weights, params, seed & (2**64 - 1))
    tokens = [[draw_one.choose(token) for _ in range(k)] for token in prompt[:-1]]
    ids = np.array(tokens, dtype=np.int64).reshape(-1, k)
    logprobs = [weights.logprobs(token)[row] for token, row in zip(prompt[:-1], ids, strict=True)]
    return PromptAltTokens(
        TensorData.from_numpy(ids),
        TensorData.from_numpy(np.array(logprobs, dtype=np.float32).reshape(-1, k)),
    )


def _topk(rows: list[Floats], k: int) -> TopkLogprobs:
    matrix = np.stack(rows)
    ids = np.argsort(-matrix, axis=1, kind="stable")[:, :k].astype(np.int32)
    return TopkLogprobs(ids, np.take_along_axis(matrix, ids.astype(np.int64), axis=1))
