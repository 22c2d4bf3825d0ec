"""What a request may ask about its prompt: named tokens, and draws, at each position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from tinker_async.data.params import SamplingParams
from tinker_async.data.results import PromptAltTokens, SampleResponse
from tinker_async.data.tensors import TensorData
from tinker_async.errors import InvalidInputError
from tinker_async.local.engine.adapters import BASE
from tinker_async.local.engine.base import BaseModel
from tinker_async.local.engine.decoding import Decoder
from tinker_async.local.engine.jobs import Sample
from tinker_async.local.engine.stopping import StopRules
from tinker_async.local.tiny import build_tiny

PROMPT = np.array([17, 230, 5, 99, 41, 180, 7, 66], np.int32)
ONE = SamplingParams(max_tokens=1, seed=11)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    build_tiny("tiny-llama", path)
    return path


@pytest.fixture(scope="module")
def base(folder: Path) -> BaseModel:
    return BaseModel.load(folder, name="tiny")


@pytest.fixture(scope="module")
def truth(base: BaseModel) -> np.ndarray[Any, Any]:
    """Log-probs of every token after each prompt position, `(P, vocab)`."""
    with torch.no_grad():
        hidden = base.hidden_states(torch.from_numpy(PROMPT.astype(np.int64))[None])
        result: np.ndarray[Any, Any] = base.logits(hidden)[0].log_softmax(-1).numpy()
    return result


def run(base: BaseModel, folder: Path, *jobs: Sample, prefill_tokens: int = 1024) -> list[Any]:
    decoder = Decoder(base, StopRules(base.card, folder), prefill_tokens=prefill_tokens)
    results: list[Any] = []
    for job in jobs:
        decoder.admit(job, BASE, results.append)
    while decoder.has_work:
        decoder.step()
    return results


def asking(**what: Any) -> Sample:
    return Sample(prompt=PROMPT, params=ONE, **what)


@pytest.mark.parametrize("prefill_tokens", [1024, 3])
def test_named_tokens_get_their_logprobs(
    base: BaseModel, folder: Path, truth: np.ndarray[Any, Any], prefill_tokens: int
) -> None:
    """Row i is about what follows position i; a -1 gets 0; however the prompt is read."""
    ids = np.array([[3, -1], [4, 5], [-1, -1], [6, 7], [230, 0], [258, 1], [9, -1]], np.int64)
    job = asking(target_prompt_logprobs=TensorData.from_numpy(ids))
    (response,) = run(base, folder, job, prefill_tokens=prefill_tokens)

    assert isinstance(response, SampleResponse)
    assert response.target_prompt_logprobs is not None
    found = response.target_prompt_logprobs.to_numpy()
    expected = np.take_along_axis(truth[:-1], ids.clip(min=0), axis=1)
    np.testing.assert_allclose(np.where(ids < 0, 0, expected), found, atol=1e-4)
    assert response.prompt_logprobs is None
    assert response.topk_prompt_logprobs is None


def test_the_answer_has_the_layout_of_the_question(
    base: BaseModel, folder: Path, truth: np.ndarray[Any, Any]
) -> None:
    """In CSR, cells that are left out are left out."""
    dense = np.full((7, 20), -1, np.int64)
    dense[2, 5], dense[6, 0] = 44, 55
    sparse = TensorData.from_numpy(dense).compressed(-1)
    assert sparse.is_sparse
    (response,) = run(base, folder, asking(target_prompt_logprobs=sparse))
    assert response.target_prompt_logprobs.is_sparse
    assert (7, 20) == response.target_prompt_logprobs.dense_shape
    np.testing.assert_allclose(
        [truth[2, 44], truth[6, 55]], response.target_prompt_logprobs.data, atol=1e-4
    )


@pytest.mark.parametrize(
    ("says", "ids"),
    [
        ("shape", np.zeros((8, 1), np.int64)),
        ("shape", np.zeros(7, np.int64)),
        ("at least one", np.full((7, 2), -1, np.int64)),
        ("below 259", np.full((7, 1), 259, np.int64)),
        ("below 259", np.full((7, 1), -2, np.int64)),
        ("int64", np.zeros((7, 1), np.float32)),
    ],
)
def test_named_tokens_that_cannot_be_right_are_refused(
    base: BaseModel, folder: Path, says: str, ids: Any
) -> None:
    with pytest.raises(InvalidInputError, match=says) as caught:
        run(base, folder, asking(target_prompt_logprobs=TensorData.from_numpy(ids)))
    assert "target_prompt_logprobs" == caught.value.field


def test_a_shape_that_no_memory_holds_is_refused(base: BaseModel, folder: Path) -> None:
    huge = TensorData(
        data=np.array([1]),
        dtype="int64",
        shape=(7, 2**40),
        sparse_crow_indices=np.array([0, 1, 1, 1, 1, 1, 1, 1]),
        sparse_col_indices=np.array([3]),
    )
    with pytest.raises(InvalidInputError, match="at most 259"):
        run(base, folder, asking(target_prompt_logprobs=huge))
    with pytest.raises(InvalidInputError, match="draws for the whole prompt"):
        run(base, folder, asking(prompt_alt_tokens_k=2**30))


def alternatives(response: Any) -> PromptAltTokens:
    found = response.prompt_alt_tokens
    assert isinstance(found, PromptAltTokens)
    return found


def test_draws_follow_the_model_and_its_temperature(
    base: BaseModel, folder: Path, truth: np.ndarray[Any, Any]
) -> None:
    """Often what is likely, never what is not, and with the model's own log-probs."""
    job = asking(prompt_alt_tokens_k=4000)
    hot = msgspec.structs.replace(ONE, temperature=2.0)
    for response, temperature in zip(
        run(base, folder, job, msgspec.structs.replace(job, params=hot)), (1.0, 2.0), strict=True
    ):
        found = alternatives(response)
        tokens, logprobs = found.tokens.to_numpy(), found.logprobs.to_numpy()
        assert (7, 4000) == tokens.shape == logprobs.shape
        np.testing.assert_allclose(
            np.take_along_axis(truth[:-1], tokens, axis=1), logprobs, atol=1e-4
        )
        for row in range(7):
            weights = np.exp(truth[row] / temperature)
            expected = weights / weights.sum()
            counts = np.bincount(tokens[row], minlength=expected.size) / 4000
            assert np.abs(counts - expected).max() < 5 * np.sqrt(0.25 / 4000)
            assert np.abs(counts - expected).sum() < 4 * np.sqrt(expected.size / 4000)


def test_draws_repeat_with_a_seed_and_are_greedy_at_zero(
    base: BaseModel, folder: Path, truth: np.ndarray[Any, Any]
) -> None:
    job = asking(prompt_alt_tokens_k=3)
    cold = msgspec.structs.replace(job, params=SamplingParams(max_tokens=1, temperature=0))
    other = msgspec.structs.replace(job, params=SamplingParams(max_tokens=1, seed=12))
    first, second, third, greedy = (
        alternatives(response).tokens.to_numpy()
        for response in run(base, folder, job, job, other, cold)
    )
    assert first.tolist() == second.tolist() != third.tolist()
    assert [[token] * 3 for token in truth[:-1].argmax(-1).tolist()] == greedy.tolist()


def test_a_prompt_of_one_token_has_no_positions_to_draw_at(base: BaseModel, folder: Path) -> None:
    job = Sample(prompt=PROMPT[:1], params=ONE, prompt_alt_tokens_k=2)
    (response,) = run(base, folder, job)
    assert (0, 2) == alternatives(response).tokens.dense_shape
