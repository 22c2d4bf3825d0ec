"""What a session says of itself: its health, and the figures of its parts."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest
from support.scripted import Call, ScriptedServer
from support.trained import Steps, broken, failure, never, trainer_of

from tinker_async import (
    AdamParams,
    ProtocolError,
    RetryPolicy,
    Session,
    SessionClosedError,
    SessionHealth,
    SessionLostError,
)


async def test_a_session_at_rest_is_well(session: Session) -> None:
    """All figures are there, and it is plain data."""
    with anyio.fail_after(5):
        async with session:
            health = session.health()

    assert ("s1", "ok") == (health.session_id, health.state)
    assert health.seconds_since_contact is not None
    assert 0 <= health.seconds_since_contact < 5
    assert {"session": 0, "training": 0, "sampling": 0, "polling": 0} == health.in_flight
    assert health.waiting == health.in_flight
    assert (0, 0, {}, {}) == (
        health.backing_off_for_s,
        health.billing_paused_for_s,
        health.paused_queues,
        health.poisoned,
    )
    assert health == msgspec.json.decode(msgspec.json.encode(health), type=SessionHealth)


async def test_what_is_under_way_and_what_is_paused_is_shown(
    server: ScriptedServer, session: Session
) -> None:
    """By traffic class, by operation, by model; it is over when the operation is."""
    steps, release = Steps(server), anyio.Event()
    paused = [{"type": "try_again", "queue_state": "paused_capacity"}]

    async def poll(_: Call) -> Any:
        if paused:
            return paused.pop()
        await release.wait()
        return {}

    steps.results["r2"] = poll
    with anyio.fail_after(5):
        async with session:
            trainer = await trainer_of(session)
            future = trainer.optim_step(AdamParams())
            await anext(future.queue_states())
            while steps.polls("r2") < 2:
                await anyio.wait_all_tasks_blocked()
            during, lanes = session.health(), session.statistics().lanes
            release.set()
            await future
            after = session.health()

    assert ("degraded", {"optim_step": "paused_capacity"}) == (during.state, during.paused_queues)
    assert during.in_flight["polling"] == 1
    assert (0, 1, 2) == (
        lanes["s1:train:0"].queued,
        lanes["s1:train:0"].unsettled,
        lanes["s1:train:0"].next_seq_id,
    )
    assert ("ok", {}) == (after.state, after.paused_queues)


async def test_an_operation_that_is_given_up_is_no_longer_shown_as_paused(
    server: ScriptedServer, session: Session
) -> None:
    """A cancelled call does not stay on the list."""
    steps = Steps(server)
    said: list[Any] = [{"type": "try_again", "queue_state": "paused_capacity"}]
    steps.results["r1"] = lambda call: said.pop() if said else never(call)
    with anyio.fail_after(5):
        async with session, anyio.create_task_group() as group:
            group.start_soon(session.create_lora_training_client, "m")
            while not session.health().paused_queues:
                await anyio.wait_all_tasks_blocked()
            assert "create_lora_training_client" in session.health().paused_queues
            group.cancel_scope.cancel()
            await anyio.lowlevel.checkpoint()
        assert session._parts is not None
        assert session._parts.caller.paused == set()


async def test_a_poisoned_model_is_shown(server: ScriptedServer) -> None:
    """With what was lost."""
    Steps(server)
    server.on("optim_step", broken)
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", retry=RetryPolicy(max_attempts=1)) as session:
            trainer = await trainer_of(session)
            with pytest.raises(ProtocolError):
                await trainer.optim_step(AdamParams())
            health = session.health()

    assert health.state == "degraded"
    assert "optim_step (seq_id 1)" in health.poisoned["s1:train:0"]


async def test_late_heartbeats_degrade_the_session(
    server: ScriptedServer, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They count as contact, being answers; but not as heartbeats."""
    monkeypatch.setattr("tinker_async.session._HEARTBEAT_S", 0.01)
    server.on("session_heartbeat", lambda _: failure(503))
    with anyio.fail_after(5):
        async with session:
            with session.events() as stream:
                while session.health().state == "ok":
                    await anext(stream)
            health = session.health()

    assert health.state == "degraded"
    assert health.seconds_since_contact is not None
    assert health.seconds_since_contact < health.seconds_since_heartbeat


async def test_a_lost_session_says_so_afterwards(
    server: ScriptedServer, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that ended well is closed, as for every other call."""
    monkeypatch.setattr("tinker_async.session._HEARTBEAT_S", 0.01)
    server.on("session_heartbeat", lambda _: failure(410))
    with anyio.fail_after(5):
        with pytest.raises(SessionLostError):
            async with session:
                await anyio.sleep_forever()
        assert session.health().state == "lost"
        ended = Session(server.url, "tml-x")
        with pytest.raises(SessionClosedError):
            ended.health()
        async with ended:
            pass
        with pytest.raises(SessionClosedError):
            ended.health()
