"""What a sample reports of its prompt besides log-probs, and prompts that are not text alone."""

from __future__ import annotations

from typing import Any

import anyio
import numpy as np
import pytest
from support.bodies import Bodies

import tinker_async as ta
from tinker_async.testing import FakeService

BOUND_S = 30
PROMPT = ta.ModelInput.from_ints([1, 2, 3, 4])
ONE = ta.SamplingParams(max_tokens=1, seed=3)
IDS = np.array([[5, -1], [3, 6], [-1, -1]])
MIXED = PROMPT.append(ta.ImageChunk(b"\x89PNG", "png")).append(
    ta.ImageAssetPointerChunk("jpeg", "s3://x", 3)
)


async def test_the_logprobs_of_named_tokens_are_those_of_the_sampler() -> None:
    """Where the prompt's own token is named, it is the prompt's log-prob; 0 for -1."""
    with anyio.fail_after(BOUND_S):
        async with FakeService().session() as session:
            sampler = await session.create_sampling_client(base_model="toy")
            for ids in (IDS, IDS.tolist(), ta.TensorData.from_numpy(IDS)):
                found = await sampler.sample(
                    PROMPT, ONE, include_prompt_logprobs=True, target_prompt_logprobs=ids
                )
                assert found.target_prompt_logprobs is not None
                assert found.prompt_logprobs is not None
                scores = found.target_prompt_logprobs.to_numpy()
                assert ((3, 2), "float32") == (scores.shape, scores.dtype.name)
                assert scores[1, 0] == found.prompt_logprobs[2]
                assert [True, False, True, True, False, False] == list(scores.ravel() < 0)


async def test_a_sparse_request_gets_a_sparse_answer() -> None:
    """Only the cells that are named travel, both ways."""
    torch = pytest.importorskip("torch")
    ids = torch.full((3, 9), -1)
    ids[2, 4] = 7
    target = ta.TensorData.from_torch_sparse(ids, pad_value=-1)
    assert target.is_sparse
    with anyio.fail_after(BOUND_S):
        async with FakeService().session() as session:
            sampler = await session.create_sampling_client(base_model="toy")
            found = (
                await sampler.sample(PROMPT, ONE, target_prompt_logprobs=target)
            ).target_prompt_logprobs
            dense = (
                await sampler.sample(PROMPT, ONE, target_prompt_logprobs=ids)
            ).target_prompt_logprobs
    assert found is not None
    assert dense is not None
    assert (True, False, 1) == (found.is_sparse, dense.is_sparse, found.data.size)
    np.testing.assert_array_equal(dense.to_numpy(), found.to_numpy())


async def test_alternatives_are_drawn_for_each_position_after_the_first() -> None:
    """int64 and float32 of one shape, the same for the same seed; also from a future and a map."""
    with anyio.fail_after(BOUND_S):
        async with FakeService().session() as session:
            sampler = await session.create_sampling_client(base_model="toy")
            draws = [
                (await sampler.sample(PROMPT, ONE, prompt_alt_tokens_k=5)).prompt_alt_tokens,
                (await sampler.submit_sample(PROMPT, ONE, prompt_alt_tokens_k=5)).prompt_alt_tokens,
            ]
            task = ta.SampleTask(PROMPT, ONE, prompt_alt_tokens_k=5)
            async with sampler.map([task]) as outcomes:
                draws += [outcome.result().prompt_alt_tokens async for outcome in outcomes]
    first = draws[0]
    assert first is not None
    assert ((3, 5), "int64") == (first.tokens.dense_shape, first.tokens.dtype)
    assert ((3, 5), "float32") == (first.logprobs.dense_shape, first.logprobs.dtype)
    assert (first.logprobs.to_numpy() < 0).all()
    assert [first] * 3 == draws


async def test_only_the_end_of_a_prompt_is_scored_when_that_is_asked() -> None:
    """Earlier places are NaN, and have no top tokens."""
    with anyio.fail_after(BOUND_S):
        async with FakeService().session() as session:
            sampler = await session.create_sampling_client(base_model="toy")
            whole = await sampler.compute_logprobs(PROMPT)
            end = await sampler.compute_logprobs(PROMPT, 2)
            both = await sampler.sample(
                PROMPT,
                ONE,
                include_prompt_logprobs=True,
                topk_prompt_logprobs=2,
                prompt_logprobs_last_n=1,
            )
    np.testing.assert_array_equal([np.nan, np.nan, whole[2], whole[3]], end)
    assert both.topk_prompt_logprobs is not None
    assert [True] * 3 + [False] == [row is None for row in both.topk_prompt_logprobs.tolist()]


async def test_images_are_sampled_from_by_their_bytes_or_by_their_place() -> None:
    """A prompt of every kind of chunk; an image that does not say its tokens is no hindrance."""
    with anyio.fail_after(BOUND_S):
        async with FakeService().session() as session:
            sampler = await session.create_sampling_client(base_model="toy")
            found = await sampler.sample(MIXED, ONE, include_prompt_logprobs=True)
            again = await sampler.sample_group(MIXED, 2, ONE)
    assert found.prompt_logprobs is not None
    assert len(found.prompt_logprobs) == 4 + 4 + 3
    assert all(len(one.sequences[0].tokens) == 1 for one in again)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"prompt_alt_tokens_k": -1}, "prompt_alt_tokens_k"),
        ({"prompt_alt_tokens_k": 1.5}, "prompt_alt_tokens_k"),
        ({"prompt_logprobs_last_n": 1}, "prompt_logprobs_last_n"),
        ({"prompt_logprobs_last_n": 0, "include_prompt_logprobs": True}, "prompt_logprobs_last_n"),
        ({"prompt_logprobs_last_n": 4, "include_prompt_logprobs": True}, "prompt_logprobs_last_n"),
        ({"target_prompt_logprobs": [[1.5]] * 3}, "target_prompt_logprobs"),
        ({"target_prompt_logprobs": [1, 2, 3]}, "target_prompt_logprobs"),
        ({"target_prompt_logprobs": [[1], [2, 3], [4]]}, "target_prompt_logprobs"),
        ({"target_prompt_logprobs": [[1]] * 4}, "target_prompt_logprobs"),
        ({"target_prompt_logprobs": [[-1]] * 3}, "target_prompt_logprobs"),
        ({"target_prompt_logprobs": [[-2], [1], [1]]}, "target_prompt_logprobs"),
        ({"target_prompt_logprobs": [[]] * 3}, "target_prompt_logprobs"),
    ],
)
async def test_what_no_server_takes_is_refused_before_it_is_sent(
    arguments: dict[str, Any], field: str
) -> None:
    """For `sample` and `submit_sample`, at once."""
    fake = FakeService()
    with anyio.fail_after(BOUND_S):
        async with fake.session() as session:
            sampler = await session.create_sampling_client(base_model="toy")
            with pytest.raises(ta.InvalidInputError) as caught:
                await sampler.sample(PROMPT, ONE, **arguments)
            assert field == caught.value.field
            with pytest.raises(ta.InvalidInputError):
                sampler.submit_sample(PROMPT, ONE, **arguments)
    assert fake.ledger.count("asample") == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_prompt_logprobs", IDS),
        ("prompt_alt_tokens_k", 2),
        ("prompt_logprobs_last_n", 1),
    ],
)
async def test_a_server_that_ignores_what_was_asked_is_told_of(
    field: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older one samples and says nothing: that is an error, with the sample's facts."""
    from tinker_async.testing import endpoints_sampling, toy_sampling

    original = toy_sampling.draw

    def older(weights: Any, request: Any, *, seed: int) -> Any:
        import msgspec

        plain = {"target_prompt_logprobs": None, "prompt_alt_tokens_k": 0}
        return original(
            weights,
            msgspec.structs.replace(request, **plain, prompt_logprobs_last_n=None),
            seed=seed,
        )

    monkeypatch.setattr(endpoints_sampling, "draw", older)
    with anyio.fail_after(BOUND_S):
        async with FakeService().session() as session:
            sampler = await session.create_sampling_client(base_model="toy")
            with pytest.raises(ta.ResponseError, match=f"{field} was asked for") as caught:
                await sampler.sample(PROMPT, ONE, include_prompt_logprobs=True, **{field: value})
    assert "sample" == caught.value.operation


async def test_calls_that_ask_for_nothing_new_send_nothing_new() -> None:
    """Older servers refuse fields that they do not know."""
    bodies = Bodies()
    with anyio.fail_after(BOUND_S):
        async with bodies.session() as session:
            sampler = await session.create_sampling_client(base_model="toy")
            stable = await session.create_sampling_client(
                base_model="toy", record_stability_info=True
            )
            await sampler.sample(PROMPT, ONE)
            await sampler.sample(PROMPT, ONE, prompt_alt_tokens_k=1)
            await sampler.sample(
                PROMPT, ONE, include_prompt_logprobs=True, prompt_logprobs_last_n=2
            )
            await sampler.sample(PROMPT, ONE, target_prompt_logprobs=IDS)
            await stable.sample(PROMPT, ONE)
    plain, alternatives, last, target, kept = bodies.sent["asample"]
    assert {"type", "prompt", "sampling_params", "sampling_session_id", "seq_id"} == (
        plain.keys() - {"num_samples"}
    )
    assert {"prompt_alt_tokens_k"} == alternatives.keys() - plain.keys()
    assert {"prompt_logprobs", "prompt_logprobs_last_n"} == last.keys() - plain.keys()
    assert {"data": IDS.ravel().tolist(), "dtype": "int64", "shape": [3, 2]} == (
        target["target_prompt_logprobs"]
    )
    assert {"record_stability_info"} == kept.keys() - plain.keys()
