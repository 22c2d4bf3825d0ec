"""Events and queue states: each once, in order, to everybody who listens, and none by default."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from support.scripted import ScriptedServer
from support.trained import OK, Steps, broken, failure, trainer_of

from tinker_async import (
    AdamParams,
    APIFuture,
    Event,
    HeartbeatMissed,
    InternalServerError,
    ModelPoisoned,
    ModelPoisonedError,
    ProtocolError,
    QueueState,
    QueueStateChanged,
    RequestFailedError,
    RetryPolicy,
    Session,
)
from tinker_async.events import Events


def said(state: str, reason: str | None = None) -> Any:
    return {"type": "try_again", "queue_state": state, "queue_state_reason": reason}


QUEUED = [
    said("active"),
    said("paused_capacity", "full"),
    said("paused_capacity", "full"),
    failure(408, queue_state="x"),
    said("paused_capacity", "very full"),
    said("paused_rate_limit"),
]
CHANGES = [
    ("active", None),
    ("paused_capacity", "full"),
    ("paused_capacity", "very full"),
    ("paused_rate_limit", None),
    ("active", None),
]


async def test_queue_states_are_told_once_per_change_and_end_active(
    server: ScriptedServer,
) -> None:
    """By the hook, by a stream and by the future, in the same order, with the same times."""
    steps, told = Steps(server), list[Event]()
    left = list(QUEUED)
    steps.results["r2"] = lambda _: left.pop(0) if left else OK
    seen: list[QueueState] = []
    streamed: list[Event] = []

    async def read(session: Session) -> None:
        with session.events() as stream:
            streamed.extend([event async for event in stream])

    with anyio.fail_after(5):
        async with (
            anyio.create_task_group() as group,
            Session(server.url, "tml-x", on_event=told.append) as session,
        ):
            group.start_soon(read, session)
            trainer = await trainer_of(session)
            future = trainer.optim_step(AdamParams())
            seen.extend([state async for state in future.queue_states()])
            assert future.done

    assert CHANGES == [(state.state, state.reason) for state in seen]
    events = [event for event in told if isinstance(event, QueueStateChanged)]
    assert seen == [QueueState(event.state, event.reason, event.since) for event in events]
    assert {("optim_step", "r2")} == {(event.operation, event.request_id) for event in events}
    assert sorted(event.since for event in events) == [event.since for event in events]
    assert told == streamed


async def test_a_result_without_a_queue_state_tells_of_none(server: ScriptedServer) -> None:
    """Most operations: no event, and an iteration that ends with them."""
    told: list[Event] = []
    Steps(server)
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", on_event=told.append) as session:
            trainer = await trainer_of(session)
            future = trainer.optim_step(AdamParams())
            assert [] == [state async for state in future.queue_states()]
            assert future.done

    assert told == []


async def test_an_operation_that_fails_was_active(server: ScriptedServer) -> None:
    """What the server runs, and fails, is no longer paused."""
    steps = Steps(server)
    left = [said("paused_capacity")]
    steps.results["r2"] = lambda _: left.pop() if left else {"error": "no", "category": "user"}
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x") as session:
            trainer = await trainer_of(session)
            future = trainer.optim_step(AdamParams())
            states = [state.state async for state in future.queue_states()]
            with pytest.raises(RequestFailedError) as caught:
                await future

    assert states == ["paused_capacity", "active"]
    assert caught.value.queue_state == "active"


async def test_each_iterator_begins_with_the_present_and_goes_its_own_way() -> None:
    """A slow reader loses nothing; one that is dropped costs nothing."""
    future: APIFuture[int] = APIFuture("op")
    early = future.queue_states()
    future.note_queue_state("active", None)
    future.note_queue_state("active", None)
    future.note_queue_state("paused_capacity", "full")
    late = future.queue_states()
    with anyio.fail_after(5):
        assert (await anext(late)).reason == "full"
        async with anyio.create_task_group() as group:
            waited: list[str] = []

            async def wait() -> None:
                waited.append((await anext(late)).state)

            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            future.note_queue_state("active", None)
            future.resolve(1)
        assert waited == ["active"]
        assert [state.state async for state in early] == ["active"]
        assert ["active"] == [state.state async for state in future.queue_states()]


async def test_waiting_for_a_state_ends_with_the_operation() -> None:
    """Also when it is withdrawn, and for all who wait."""
    future: APIFuture[int] = APIFuture("op")
    ended: list[int] = []

    async def read(number: int) -> None:
        async for _ in future.queue_states():
            pass
        ended.append(number)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(read, 1)
            group.start_soon(read, 2)
            await anyio.wait_all_tasks_blocked()
            future.cancel()

    assert sorted(ended) == [1, 2]


async def test_a_missed_heartbeat_is_told(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With how long the silence has been; the session goes on."""
    monkeypatch.setattr("tinker_async.session._HEARTBEAT_S", 0.01)
    server.on("session_heartbeat", lambda _: failure(503))
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x") as session:
            with session.events() as stream:
                event = await anext(stream)

    assert isinstance(event, HeartbeatMissed)
    assert event.error == "InternalServerError"
    assert event.silent_s > 0


async def test_a_poisoned_model_is_told_with_the_first_loss(server: ScriptedServer) -> None:
    """Once, and the errors of later operations name the same."""
    told: list[Event] = []
    Steps(server)
    server.on("optim_step", broken)
    policy = RetryPolicy(max_attempts=1)
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", retry=policy, on_event=told.append) as session:
            trainer = await trainer_of(session)
            lost = trainer.optim_step(AdamParams())
            queued = trainer.save_state("a")
            with pytest.raises(ProtocolError) as first:
                await lost
            with pytest.raises(ModelPoisonedError) as second:
                await queued
            with pytest.raises(ModelPoisonedError) as third:
                trainer.save_state("b")

    facts = ("s1:train:0", "optim_step", 1, "ProtocolError", first.value.message)
    (poisoned,) = [event for event in told if isinstance(event, ModelPoisoned)]
    assert facts == (
        poisoned.model_id,
        poisoned.operation,
        poisoned.seq_id,
        poisoned.error,
        poisoned.message,
    )
    for later in (second.value, third.value):
        assert facts == (
            later.model_id,
            later.lost_operation,
            later.lost_seq_id,
            later.lost_error,
            later.lost_message,
        )
        assert later.operation == "save_state"
        assert first.value is later.__cause__
    assert second.value is not third.value
    assert server.seen("save_weights") == []


async def test_a_hook_that_raises_disturbs_nothing(server: ScriptedServer) -> None:
    """Its exception is logged; other listeners still hear."""

    def hook(event: Event) -> None:
        raise ValueError(event)

    server.on("get_server_capabilities", lambda _: failure(500))
    policy = RetryPolicy(max_attempts=1)
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", retry=policy, on_event=hook) as session:
            with session.events() as stream, pytest.raises(InternalServerError):
                await session.get_server_capabilities()
            assert "get_server_capabilities" == (await anext(stream)).operation  # type: ignore[union-attr]  # a failed attempt


async def test_streams_end_with_the_session(server: ScriptedServer, session: Session) -> None:
    """What was told before is still read; one opened afterwards ends at once."""
    ended = anyio.Event()

    async def read() -> None:
        with session.events() as stream:
            async for _ in stream:
                pass
        ended.set()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group, session:
            group.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            assert not ended.is_set()
        assert ended.is_set()
        with session.events() as late:
            assert [] == [event async for event in late]


async def test_a_stream_that_nobody_reads_drops_its_oldest_and_counts_them() -> None:
    """A thousand are kept."""
    events = Events()
    with events.stream() as stream:
        for number in range(1003):
            events.emit(HeartbeatMissed(number, "x"))
        assert stream.dropped == 3
        first = await anext(stream)
    assert isinstance(first, HeartbeatMissed)
    assert first.silent_s == 3
    assert not events.wanted


async def test_nobody_listens_by_default(session: Session) -> None:
    """So that no event is made where it would cost something."""
    with anyio.fail_after(5):
        async with session:
            assert not session._events.wanted
