"""The order of a model's requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from tinker_async.local.engine.failures import ModelLostError
from tinker_async.local.server.lanes import Lane
from tinker_async.local.server.promises import Promise
from tinker_async.local.server.refusal import Refusal
from tinker_async.wire.messages import FailedResponse


class Work:
    """Operations that record the order in which they ran."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.ran: list[Any] = []

    def admit(
        self, seq_id: int | None, *, fails: Exception | None = None, size_bytes: int = 0
    ) -> Promise:
        promise = Promise(f"r{seq_id}", "json", "s", "m")

        async def operation() -> Any:
            await anyio.lowlevel.checkpoint()
            self.ran.append(seq_id)
            if fails:
                raise fails
            return seq_id

        self.lane.admit(seq_id, b"%d" % (seq_id or 0), promise, operation, size_bytes=size_bytes)
        return promise


@asynccontextmanager
async def running(
    limit: int = 8, limit_bytes: int = 100, on_lost: Callable[[str], None] | None = None
) -> AsyncIterator[Work]:
    lane = Lane(limit=limit, limit_bytes=limit_bytes, on_lost=on_lost)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lane.run)
            yield Work(lane)
            lane.close("over")


async def test_chunks_that_arrive_2_3_1_run_1_2_3() -> None:
    """Nothing runs before its predecessors have arrived."""
    async with running() as work:
        second, third = work.admit(2), work.admit(3)
        await anyio.wait_all_tasks_blocked()
        assert work.ran == []
        assert third.waits_for == "request 1 of this model has not arrived yet"

        first = work.admit(1)
        for promise in (first, second, third):
            await promise.wait()

    assert work.ran == [1, 2, 3]
    assert third.waits_for is None


async def test_a_failed_request_has_used_its_number_up() -> None:
    """The next number runs, and the failure is the server's, not the user's."""
    async with running() as work:
        bad, good = work.admit(1, fails=OSError("disk")), work.admit(2)
        await good.wait()

    assert FailedResponse("OSError: disk", "server") == bad.outcome
    assert good.outcome == 2


async def test_a_repetition_is_told_from_a_reused_number() -> None:
    """The same digest gives the same promise, before and after it ran; another is a 409."""
    async with running() as work:
        assert work.lane.repeated(1, b"1") is None
        promise = work.admit(1)
        assert work.lane.repeated(1, b"1") is promise
        await promise.wait()
        assert work.lane.repeated(1, b"1") is promise
        with pytest.raises(Refusal, match="used for another request") as caught:
            work.lane.repeated(1, b"other")

    assert caught.value.status == 409


async def test_numbers_below_one_are_refused() -> None:
    """A protobuf request without a number has 0."""
    async with running() as work:
        with pytest.raises(Refusal) as caught:
            work.lane.repeated(0, b"")
    assert (caught.value.status, caught.value.field) == (422, "seq_id")


async def test_requests_without_a_number_run_after_what_is_ready() -> None:
    """They neither take a number nor wait for one that is missing."""
    async with running() as work:
        work.admit(1)
        work.admit(3)
        await work.admit(None).wait()
        assert work.ran == [1, None]
        await work.admit(2).wait()
    assert work.ran[:3] == [1, None, 2]


async def test_a_full_lane_takes_only_the_number_it_waits_for() -> None:
    """By count and by bytes; otherwise the lane could never drain."""
    async with running(limit=2, limit_bytes=100) as work:
        work.admit(2, size_bytes=60)
        with pytest.raises(Refusal) as by_bytes:
            work.lane.check_room(3, 60)
        work.lane.check_room(3, 40)
        work.admit(3, size_bytes=40)
        with pytest.raises(Refusal) as by_count:
            work.lane.check_room(4, 0)
        work.lane.check_room(1, 1000)
        await work.admit(1, size_bytes=1000).wait()
        await anyio.wait_all_tasks_blocked()
        work.lane.check_room(4, 100)

    assert [by_bytes.value.status, by_count.value.status] == [429, 429]
    assert by_bytes.value.retry_after_s == 1


async def test_a_lane_that_has_lost_a_request_carries_nothing_out_any_more() -> None:
    """What waited fails and what comes later as well, also the missing one; repetitions are known."""
    told: list[str] = []
    async with running(on_lost=told.append) as work:
        held = work.admit(2)
        work.lane.give_up_gap(60.0)
        assert not held.settled
        work.lane.give_up_gap(0.0)
        late, unnumbered = work.admit(1), work.admit(None)
        assert late is work.lane.repeated(1, b"1")
        work.lane.lose("another reason")
    assert ["request 1 of it never arrived"] == told
    says = "ModelLostError: this training run is corrupted: request 1 of it never arrived; "
    for promise in (held, late, unnumbered):
        assert FailedResponse(says + "go on from a checkpoint of it", "server") == promise.outcome
    assert work.ran == []


async def test_a_lane_whose_model_an_operation_has_lost_fails_what_is_behind_it() -> None:
    """The operation itself is told what happened to it."""
    lost = ModelLostError("an optimizer step failed half-way: why")
    async with running() as work:
        first, second = work.admit(1, fails=lost), work.admit(2)
        await second.wait()
    assert FailedResponse(f"ModelLostError: {lost}", "server") == first.outcome
    assert "failed half-way: why; go on from a checkpoint" in second.outcome.error
    assert work.ran == [1]


async def test_closing_fails_what_waits_and_ends_the_lane() -> None:
    """Nobody waits for ever on a model that is gone."""
    async with running() as work:
        held = work.admit(2)
    assert FailedResponse("over", "user") == held.outcome
