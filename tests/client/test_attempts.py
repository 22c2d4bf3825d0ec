"""Attempts on the wire: as many as the policy says, told one by one, counted once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from support.scripted import Call, ScriptedServer, scripted_server
from support.trained import Steps, broken, failure, trainer_of

from tinker_async import (
    AdamParams,
    AttemptFailed,
    ConflictError,
    ConnectError,
    Event,
    InternalServerError,
    RetryPolicy,
    Session,
    TinkerError,
    TransportError,
)


@pytest.mark.parametrize("attempts", [1, 2, 5])
@pytest.mark.parametrize(
    ("answer", "expected"),
    [(lambda _: failure(503), InternalServerError), (broken, TransportError)],
    ids=["503", "hangs up"],
)
async def test_the_wire_sees_as_many_attempts_as_the_policy_says(
    server: ScriptedServer,
    attempts: int,
    answer: Callable[[Call], Any],
    expected: type[TinkerError],
) -> None:
    """Neither the transport nor anything above repeats by itself; 1 is off."""
    server.on("get_server_capabilities", answer)
    server.on("optim_step", answer)
    policy = RetryPolicy(max_attempts=attempts, base_s=0.001)
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", retry=policy, check_inputs=False) as session:
            with pytest.raises(expected) as caught:
                await session.get_server_capabilities()
            trainer = await trainer_of(session)
            with pytest.raises(expected) as queued:
                await trainer.optim_step(AdamParams())

    assert attempts == len(server.seen("get_server_capabilities")) == caught.value.attempts
    assert attempts == len(server.seen("optim_step")) == queued.value.attempts
    assert ("get_server_capabilities", "optim_step") == (
        caught.value.operation,
        queued.value.operation,
    )


async def test_a_calls_own_policy_beats_the_sessions(server: ScriptedServer) -> None:
    """In both directions."""
    server.on("get_server_capabilities", lambda _: failure(503))
    one, three = (RetryPolicy(max_attempts=n, base_s=0.001) for n in (1, 3))
    with anyio.fail_after(5):
        for own, sessions in ((three, one), (one, three)):
            async with Session(server.url, "tml-x", retry=sessions) as session:
                with pytest.raises(InternalServerError) as caught:
                    await session.get_server_capabilities(retry=own)
                assert own.max_attempts == caught.value.attempts

    assert len(server.seen("get_server_capabilities")) == 4


async def test_off_is_off_for_the_handshake_too(server: ScriptedServer) -> None:
    """And otherwise it tries three times at most."""
    server.on("client/config", lambda _: failure(503))
    with anyio.fail_after(5):
        for attempts, seen in ((1, 1), (30, 4)):
            policy = RetryPolicy(max_attempts=attempts, base_s=0.001)
            with pytest.raises(InternalServerError):
                async with Session(server.url, "tml-x", retry=policy):
                    pass
            assert seen == len(server.seen("client/config"))


async def test_each_failed_attempt_is_told_with_what_follows(server: ScriptedServer) -> None:
    """Three events for three attempts; the last one says that there is no other."""
    told: list[Event] = []
    server.on("get_server_capabilities", lambda _: failure(503, "busy"))
    policy = RetryPolicy(max_attempts=3, base_s=0.001)
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", retry=policy, on_event=told.append) as session:
            with pytest.raises(InternalServerError):
                await session.get_server_capabilities()

    failed = [event for event in told if isinstance(event, AttemptFailed)]
    assert [1, 2, 3] == [event.attempt for event in failed]
    assert [True, True, False] == [event.delay_s is not None for event in failed]
    assert {("get_server_capabilities", "InternalServerError", 503)} == {
        (event.operation, event.error, event.status) for event in failed
    }


async def test_failed_polls_are_told_too(server: ScriptedServer) -> None:
    """They are not attempts of the call: its error counts the submission alone."""
    told: list[Event] = []
    steps = Steps(server)
    steps.results["r2"] = lambda _: failure(500)
    policy = RetryPolicy(max_attempts=2, base_s=0.001)
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", retry=policy, on_event=told.append) as session:
            trainer = await trainer_of(session)
            with pytest.raises(InternalServerError) as caught:
                await trainer.optim_step(AdamParams())

    assert caught.value.attempts == 1
    assert [("/api/v1/retrieve_future", 1), ("/api/v1/retrieve_future", 2)] == [
        (event.endpoint, event.attempt) for event in told if isinstance(event, AttemptFailed)
    ]


async def test_a_conflict_is_not_repeated(server: ScriptedServer, session: Session) -> None:
    """409 is an answer, not a failure that passes."""
    server.on("get_server_capabilities", lambda _: failure(409))
    with anyio.fail_after(5):
        async with session:
            with pytest.raises(ConflictError):
                await session.get_server_capabilities()

    assert len(server.seen("get_server_capabilities")) == 1


async def test_a_refused_connection_is_an_attempt_that_reached_nobody() -> None:
    """The error says so: the request was certainly not sent."""
    async with scripted_server() as server:
        url = server.url
    policy = RetryPolicy(max_attempts=2, base_s=0.001)
    with anyio.fail_after(5), pytest.raises(ConnectError) as caught:
        async with Session(url, "tml-x", retry=policy):
            pass
    assert (2, False) == (caught.value.attempts, caught.value.delivery_in_doubt)
