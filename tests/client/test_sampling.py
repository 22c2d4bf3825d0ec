"""Sampling: limits, back-off, resubmission, cancellation, and the shape of requests."""

from __future__ import annotations

from typing import Any

import anyio
import numpy as np
import pytest
from support.scripted import Call, ScriptedServer, promise_body

from tinker_async import (
    InvalidInputError,
    ModelInput,
    RequestTimeoutError,
    SampledSequence,
    SampleResponse,
    SamplingClient,
    SamplingParams,
    Session,
    SessionClosedError,
)
from tinker_async.wire.sampling import encode_sample_response

PROMPT = ModelInput.from_ints([1, 2, 3])


class Sampled:
    """Makes the scripted server answer samples: token = the request's seq_id."""

    def __init__(self, server: ScriptedServer) -> None:
        self.server = server
        self.seq_ids: dict[str, int] = {}
        server.on("asample", self.sample)
        server.on("retrieve_future", self.retrieve)

    def sample(self, call: Call) -> Any:
        count = call.json.get("num_samples", 1)
        promise = self.server.promise(sample_sequence_ids=[f"q{n}" for n in range(count)])
        self.seq_ids[promise["request_id"]] = call.json["seq_id"]
        return promise

    def retrieve(self, call: Call) -> Any:
        seq_id = self.seq_ids[call.json["request_id"]]
        sequence = SampledSequence(
            tokens=np.asarray([seq_id], np.int32),
            logprobs=np.asarray([-0.5], np.float32),
            stop_reason="length",
        )
        response = SampleResponse(
            sequences=[sequence], prompt_logprobs=np.asarray([np.nan, -1, -2], np.float32)
        )
        return promise_body(encode_sample_response(response))


@pytest.fixture
def sampled(server: ScriptedServer) -> Sampled:
    """The scripted server, sampling."""
    return Sampled(server)


async def sampler_of(session: Session) -> SamplingClient:
    return await session.create_sampling_client(base_model="m")


async def test_a_sample_travels_with_nothing_but_what_was_asked(
    session: Session, sampled: Sampled
) -> None:
    """Defaults that older servers do not know are left out."""
    with anyio.fail_after(5):
        async with session:
            sampler = await sampler_of(session)
            response = await sampler.sample(PROMPT, SamplingParams(max_tokens=4, stop=["x"]))

    (call,) = sampled.server.seen("asample")
    assert call.json == {
        "type": "sample",
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
        "sampling_params": {"max_tokens": 4, "stop": ["x"]},
        "sampling_session_id": "s1:sample:0",
        "seq_id": 0,
    }
    assert call.headers["x-tinker-sampling-backpressure"] == "1"
    (sequence,) = response.sequences
    assert (
        sequence.tokens.tolist(),
        sequence.sequence_id,
        sequence.stop_reason,
    ) == ([0], "q0", "length")


async def test_prompt_log_probs_come_as_an_array_with_nan_first(
    session: Session, sampled: Sampled
) -> None:
    """compute_logprobs is a one-token sample with prompt log-probs."""
    with anyio.fail_after(5):
        async with session:
            sampler = await sampler_of(session)
            logprobs = await sampler.compute_logprobs(PROMPT)

    np.testing.assert_array_equal(np.asarray([np.nan, -1, -2], np.float32), logprobs)
    (call,) = sampled.server.seen("asample")
    assert (call.json["prompt_logprobs"], call.json["sampling_params"]) == (True, {"max_tokens": 1})


async def test_many_samples_stay_within_the_servers_limit(
    session: Session, sampled: Sampled
) -> None:
    """50 at once with a limit of 4: all answered, never more than 4 under way."""
    under_way: list[int] = []
    most: list[int] = []

    async def sample(call: Call) -> Any:
        under_way.append(1)
        most.append(len(under_way))
        await anyio.wait_all_tasks_blocked()
        return sampled.sample(call)

    def retrieve(call: Call) -> Any:
        under_way.pop()
        return sampled.retrieve(call)

    server = sampled.server
    server.on("client/config", lambda _: {"sample_max_concurrent_requests": 4})
    server.on("asample", sample)
    server.on("retrieve_future", retrieve)
    got: list[int] = []

    async def one(sampler: SamplingClient) -> None:
        response = await sampler.sample(PROMPT)
        got.append(int(response.sequences[0].tokens[0]))

    with anyio.fail_after(20):
        async with session:
            sampler = await sampler_of(session)
            async with anyio.create_task_group() as group:
                for _ in range(50):
                    group.start_soon(one, sampler)

    assert list(range(50)) == sorted(got)
    assert max(most) == 4


async def test_a_429_holds_back_and_sends_the_same_number_again(
    session: Session, sampled: Sampled
) -> None:
    """Not an error, and no new sample."""
    seen: list[Call] = []

    def sample(call: Call) -> Any:
        seen.append(call)
        if len(seen) <= 2:
            return 429, {"retry-after-ms": "1"}, b""
        return sampled.sample(call)

    sampled.server.on("asample", sample)
    with anyio.fail_after(10):
        async with session:
            sampler = await sampler_of(session)
            await sampler.sample(PROMPT)

    assert [call.json["seq_id"] for call in seen] == [0, 0, 0]


@pytest.mark.parametrize("status", [404, 410])
async def test_a_lost_sample_is_drawn_again_under_a_new_number(
    session: Session, sampled: Sampled, status: int
) -> None:
    """Drawing again is harmless; the caller notices nothing."""

    def retrieve(call: Call) -> Any:
        if sampled.seq_ids[call.json["request_id"]] == 0:
            return status, {}, b'{"detail":"gone"}'
        return sampled.retrieve(call)

    sampled.server.on("retrieve_future", retrieve)
    with anyio.fail_after(5):
        async with session:
            sampler = await sampler_of(session)
            response = await sampler.sample(PROMPT)

    assert response.sequences[0].tokens.tolist() == [1]


async def test_an_abandoned_sample_is_told_to_the_server_once(
    session: Session, sampled: Sampled
) -> None:
    """Cancelled by its caller: the place is free again, the other sample goes on."""
    told = anyio.Event()
    server = sampled.server
    server.on("client/dynamic_config", lambda _: {"sample_cancel_enabled": True})
    polled = anyio.Event()

    def cancel(_: Call) -> Any:
        told.set()
        return {}

    server.on("cancel_future", cancel)

    async def retrieve(call: Call) -> Any:
        if sampled.seq_ids[call.json["request_id"]] == 0:
            polled.set()
            await told.wait()
            return {}
        return sampled.retrieve(call)

    server.on("retrieve_future", retrieve)
    with anyio.fail_after(5):
        async with session:
            sampler = await sampler_of(session)
            async with anyio.create_task_group() as group:
                group.start_soon(sampler.sample, PROMPT)
                await polled.wait()
                group.cancel_scope.cancel()
            await told.wait()
            response = await sampler.sample(PROMPT)

    assert response.sequences[0].tokens.tolist() == [1]
    (call,) = server.seen("cancel_future")
    assert call.json["request_id"] == "r1"


async def test_a_timeout_is_typed_and_gives_the_sample_up(
    session: Session, sampled: Sampled
) -> None:
    """The session goes on."""
    release = anyio.Event()

    async def hold(_: Call) -> Any:
        await release.wait()
        return {}

    sampled.server.on("retrieve_future", hold)
    with anyio.fail_after(5):
        async with session:
            sampler = await sampler_of(session)
            with pytest.raises(RequestTimeoutError, match="cancelled"):
                await sampler.sample(PROMPT, timeout=0.05)
            release.set()
            sampled.server.on("retrieve_future", sampled.retrieve)
            await sampler.sample(PROMPT)


async def test_json_samples_are_read_and_ids_made_up_where_missing(
    session: Session, server: ScriptedServer
) -> None:
    """A server of the 0.4 era."""
    answer = {
        "type": "sample",
        "sequences": [{"stop_reason": "stop", "tokens": [5, 6], "logprobs": [-1.0, -2.0]}],
        "prompt_logprobs": [None, -3.0, -4.0],
        "topk_prompt_logprobs": [None, [[1, -0.5]], [[2, -0.25]]],
    }
    server.on("retrieve_future", lambda _: answer)
    with anyio.fail_after(5):
        async with session:
            sampler = await sampler_of(session)
            response = await sampler.sample(
                PROMPT, include_prompt_logprobs=True, topk_prompt_logprobs=1
            )

    (sequence,) = response.sequences
    assert (sequence.tokens.tolist(), sequence.sequence_id) == ([5, 6], "s1:sample:0:0:0")
    assert response.topk_prompt_logprobs is not None
    assert response.topk_prompt_logprobs.tolist() == [None, [(1, -0.5)], [(2, -0.25)]]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompt": ModelInput.empty()}, "prompt"),
        ({"num_samples": 0}, "num_samples"),
        ({"topk_prompt_logprobs": -1}, "topk_prompt_logprobs"),
        ({"topk_sample_logprobs": -2}, "topk_sample_logprobs"),
    ],
)
async def test_bad_arguments_are_refused_before_anything_is_sent(
    session: Session, sampled: Sampled, change: dict[str, Any], field: str
) -> None:
    """The field is named."""
    with anyio.fail_after(5):
        async with session:
            sampler = await sampler_of(session)
            with pytest.raises(InvalidInputError) as caught:
                await sampler.sample(**{"prompt": PROMPT, **change})

    assert field == caught.value.field
    assert sampled.server.seen("asample") == []


async def test_a_sampler_needs_one_source_and_its_session(
    session: Session, sampled: Sampled
) -> None:
    """Neither, both, no path, and after the end."""
    with anyio.fail_after(5):
        async with session:
            sampler = await sampler_of(session)
            both = {"base_model": "m", "model_path": "tinker://a/weights/b"}
            choices: list[dict[str, Any]] = [{}, both]
            for arguments in choices:
                with pytest.raises(InvalidInputError):
                    await session.create_sampling_client(**arguments)
            with pytest.raises(InvalidInputError, match="tinker://"):
                await session.create_sampling_client(model_path="/a/b")
        with pytest.raises(SessionClosedError):
            await sampler.sample(PROMPT)
