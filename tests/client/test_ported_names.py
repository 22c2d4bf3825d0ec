"""Names that programs written for the official client use, and that do the same here."""

from __future__ import annotations

import anyio
import numpy as np
import pytest

import tinker_async as ta
from tinker_async.errors import status_error
from tinker_async.testing import FakeService

BOUND_S = 30
CONSOLE = "https://tinker.thinkingmachines.ai"
PROMPT = ta.ModelInput.from_ints([1, 2, 3])
ONE = ta.SamplingParams(max_tokens=2, seed=1)


async def test_a_trainer_makes_samplers_of_saved_weights() -> None:
    """As the session does: one numbering, the same checks, the same result."""
    service = FakeService()
    with anyio.fail_after(BOUND_S):
        async with service.session() as session:
            trainer = await session.create_lora_training_client("toy", rank=4)
            path = (await trainer.save_weights_for_sampler("kept")).path
            of_trainer = await trainer.create_sampling_client(path, record_stability_info=True)
            of_session = await session.create_sampling_client(path)
            first = await of_trainer.sample(PROMPT, ONE, 1)
            second = await of_session.sample(PROMPT, ONE, 1)
            with pytest.raises(ta.InvalidInputError):
                await trainer.create_sampling_client("no path")
    assert of_trainer.record_stability_info
    assert of_trainer.handle != of_session.handle
    assert np.array_equal(first.sequences[0].tokens, second.sequences[0].tokens)


async def test_arrays_have_their_official_names_too() -> None:
    """The very same arrays."""
    with anyio.fail_after(BOUND_S):
        async with FakeService().session() as session:
            sampler = await session.create_sampling_client(base_model="toy")
            response = await sampler.sample(
                PROMPT,
                ONE,
                1,
                include_prompt_logprobs=True,
                topk_prompt_logprobs=2,
                topk_sample_logprobs=2,
            )
    [sequence] = response.sequences
    assert sequence.tokens is sequence.tokens_np
    assert sequence.logprobs is sequence.logprobs_np
    assert sequence.topk_logprobs is sequence.topk_logprobs_np is not None
    assert response.prompt_logprobs is response.prompt_logprobs_np is not None
    assert response.topk_prompt_logprobs is response.topk_prompt_logprobs_np is not None


async def test_sessions_and_runs_have_pages_in_the_console() -> None:
    with anyio.fail_after(BOUND_S):
        async with FakeService().session() as session:
            trainer = await session.create_lora_training_client("toy", rank=4)
            assert f"{CONSOLE}/sessions/{session.session_id}" == session.get_console_url()
            assert f"{CONSOLE}/training_runs/{trainer.model_id}" == trainer.get_console_url()


def test_errors_tell_their_status_by_its_official_name() -> None:
    error = status_error(404, endpoint="/x", detail="gone")
    assert 404 == error.status == error.status_code


def test_a_parsed_path_gives_the_path_back() -> None:
    path = "tinker://s1:train:0/weights/kept"
    assert path == ta.parse_path(path).tinker_path == str(ta.parse_path(path))
