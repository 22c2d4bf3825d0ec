"""Sampling sessions and samples."""

from __future__ import annotations

from pathlib import Path

import anyio
from server.desk import (
    PROTOBUF,
    open_desk,
    sample_body,
    sampler,
)
from server.engine_double import HandEngine, QuickEngine, sampled

from tinker_async.local.engine import jobs
from tinker_async.local.server.limits import Limits
from tinker_async.wire.sampling import decode_sample_response


async def test_a_sample_promises_its_sequence_ids(tmp_path: Path) -> None:
    """Unique in the session, one per sample; the result is protobuf or JSON."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        sampler_id = await sampler(desk, await desk.session())
        first = await desk.ok("/asample", sample_body(sampler_id, 0, num_samples=2))
        second = await desk.ok("/asample", sample_body(sampler_id, 10**17, num_samples=2))
        ids = first["sample_sequence_ids"] + second["sample_sequence_ids"]
        assert len(set(ids)) == 4

        wanted = {"request_id": first["request_id"]}
        binary = await desk.post("/retrieve_future", wanted, accept=PROTOBUF)
        response = decode_sample_response(binary.body, first["sample_sequence_ids"])
        assert [s.tokens.tolist() for s in response.sequences] == [[7, 8], [7, 8]]
        text = await desk.result(first)
        assert text["sequences"][0]["tokens"] == [7, 8]


async def test_a_repeated_sample_is_drawn_once(tmp_path: Path) -> None:
    """Same promise, same ids; another body under the number is a 409."""
    engine = QuickEngine()
    async with open_desk(tmp_path, engine) as desk:
        sampler_id = await sampler(desk, await desk.session())
        body = sample_body(sampler_id, 5)
        assert await desk.ok("/asample", body) == await desk.ok("/asample", body)
        assert engine.kinds() == ["Sample"]
        reply = await desk.post("/asample", sample_body(sampler_id, 5, num_samples=3))
        assert reply.status == 409


async def test_so_many_samples_are_remembered_however_many_samplers_there_are(
    tmp_path: Path,
) -> None:
    """The oldest is forgotten, and a repetition of it is drawn again; others are not."""
    engine = QuickEngine()
    async with open_desk(tmp_path, engine, Limits(samples_remembered=3)) as desk:
        session_id = await desk.session()
        samplers = [await sampler(desk, session_id, number) for number in (0, 1)]
        bodies = [sample_body(samplers[number % 2], number) for number in range(4)]
        promises = [await desk.ok("/asample", body) for body in bodies]
        assert 3 == desk.service.statistics()["samples_remembered"]
        assert promises[1:] == [await desk.ok("/asample", body) for body in bodies[1:]]
        assert promises[0] != await desk.ok("/asample", bodies[0])
        assert ["Sample"] * 5 == engine.kinds()


async def test_too_many_waiting_samples_are_429(tmp_path: Path) -> None:
    """With a Retry-After; there is room again when one is done."""
    engine = HandEngine()
    async with open_desk(tmp_path, engine, Limits(samples_waiting=1)) as desk:
        sampler_id = await sampler(desk, await desk.session())
        await desk.ok("/asample", sample_body(sampler_id, 0))
        full = await desk.post("/asample", sample_body(sampler_id, 1))
        assert (full.status, full.headers["retry-after"]) == (429, "1")
        job = engine.waiting[0][0]
        assert isinstance(job, jobs.Sample)
        engine.finish(sampled(job))
        await anyio.wait_all_tasks_blocked()
        await desk.ok("/asample", sample_body(sampler_id, 1))


async def test_a_cancelled_sample_fails_at_once(tmp_path: Path) -> None:
    """The engine is told; training is not cancelled, since later requests build on it."""
    engine = HandEngine()
    async with open_desk(tmp_path, engine) as desk:
        session_id = await desk.session()
        sampler_id = await sampler(desk, session_id)
        promise = await desk.ok("/asample", sample_body(sampler_id, 0))
        await desk.ok("/cancel_future", {"request_id": promise["request_id"]})
        assert (await desk.result(promise))["error"] == "the sample was cancelled"
        assert [promise["request_id"]] == engine.cancelled


async def test_prompt_logprobs_can_be_limited_to_the_last(tmp_path: Path) -> None:
    """Earlier positions are empty, as clients check."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        sampler_id = await sampler(desk, await desk.session())
        body = sample_body(sampler_id, 0, prompt_logprobs=True, prompt_logprobs_last_n=2)
        result = await desk.result(await desk.ok("/asample", body))
        assert result["prompt_logprobs"] == [None, None, -2.0, -3.0]
