"""Fetching results: held polls, repetitions, memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
from server.desk import (
    open_desk,
)
from server.engine_double import HandEngine, QuickEngine

from tinker_async.local.server.limits import Limits


async def test_a_poll_is_held_then_told_to_try_again(tmp_path: Path) -> None:
    """The answer says what the request waits for."""
    async with open_desk(tmp_path, QuickEngine(), Limits(hold_s=0.05)) as desk:
        model_id = await desk.model(await desk.session())
        promise = await desk.step(model_id, 2)
        reply = await desk.result(promise)
        assert {
            "type": "try_again",
            "request_id": promise["request_id"],
            "queue_state": "active",
            "queue_state_reason": "request 1 of this model has not arrived yet",
        } == reply


async def test_held_polls_are_answered_when_the_result_comes(tmp_path: Path) -> None:
    """All of them, at once."""
    engine = HandEngine()
    async with open_desk(tmp_path, engine) as desk:
        session_id = await desk.session()
        body = {"session_id": session_id, "model_seq_id": 0, "base_model": "tiny"}
        promise = await desk.ok("/create_model", body)
        results: list[Any] = []

        async def poll() -> None:
            results.append(await desk.result(promise))

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(poll)
                tasks.start_soon(poll)
                await anyio.wait_all_tasks_blocked()
                assert results == []
                engine.finish()

    assert [{"model_id": f"{session_id}:train:0", "type": "create_model"}] * 2 == results


async def test_held_polls_end_when_the_server_stops(tmp_path: Path) -> None:
    """With a 503: the result may come after a restart, or never."""
    async with open_desk(tmp_path, HandEngine()) as desk:
        session_id = await desk.session()
        body = {"session_id": session_id, "model_seq_id": 0, "base_model": "tiny"}
        promise = await desk.ok("/create_model", body)
        statuses: list[int] = []

        async def poll() -> None:
            reply = await desk.post("/retrieve_future", {"request_id": promise["request_id"]})
            statuses.append(reply.status)

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(poll)
                await anyio.wait_all_tasks_blocked()
                desk.service.promises.stop()

    assert statuses == [503]


async def test_a_delivered_result_can_be_fetched_again_until_memory_is_short(
    tmp_path: Path,
) -> None:
    """Then it is 410; a result that nobody has fetched stays."""
    async with open_desk(tmp_path, QuickEngine(), Limits(delivered_bytes=80)) as desk:
        model_id = await desk.model(await desk.session())
        steps = [await desk.step(model_id, number) for number in (1, 2, 3, 4)]
        first = await desk.result(steps[0])
        assert first == await desk.result(steps[0])
        for step in steps[1:]:
            await desk.result(step)

        gone = await desk.post("/retrieve_future", {"request_id": steps[0]["request_id"]})
        assert gone.status == 410
        unknown = await desk.post("/retrieve_future", {"request_id": "never"})
        assert unknown.status == 404


async def test_small_results_do_not_pile_up(tmp_path: Path) -> None:
    """Each counts for what it takes in memory, not for its few bytes on the wire."""
    async with open_desk(tmp_path, QuickEngine(), Limits(delivered_bytes=50_000)) as desk:
        model_id = await desk.model(await desk.session())
        for number in range(1, 31):
            await desk.result(await desk.step(model_id, number))
        statistics = desk.service.statistics()
        assert 5 < statistics["promises"] < 20
        assert statistics["delivered_bytes"] <= 50_000
