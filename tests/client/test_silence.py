"""Silence and "still queued" are told apart: the first has a limit, the second has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from support.scripted import Call, ScriptedServer
from support.trained import OK, Steps, broken, failure, never, trainer_of

from tinker_async import (
    AdamParams,
    InternalServerError,
    InvalidInputError,
    ProtocolError,
    RequestTimeoutError,
    RetryPolicy,
    Session,
)

QUICK = RetryPolicy(base_s=0.01, max_s=0.01)


@pytest.mark.parametrize("mute", [never, broken], ids=["says nothing", "hangs up"])
async def test_a_server_that_answers_nothing_at_all_is_given_up(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, mute: Callable[[Call], Any]
) -> None:
    """Polls and heartbeats alike: a typed error with the facts, though the limit is no timeout."""
    monkeypatch.setattr("tinker_async.session._HEARTBEAT_S", 0.01)
    steps = Steps(server)
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", retry=QUICK, silence_limit_s=0.1) as session:
            trainer = await trainer_of(session)
            server.on("session_heartbeat", mute)
            steps.results["r2"] = mute
            with pytest.raises(RequestTimeoutError, match=r"answered nothing for 0\.1 s") as caught:
                await trainer.optim_step(AdamParams())

    error = caught.value
    assert ("optim_step", "r2", 1) == (error.operation, error.request_id, error.attempts)
    assert error.silent_s is not None
    assert error.silent_s >= 0.1 - 1e-6  # the clock is a float: two readings differ by a rounding
    assert error.__cause__ is not None


async def test_while_heartbeats_are_answered_an_operation_counts_as_queued(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its polls may be held for far longer than the limit of silence: they go on."""
    monkeypatch.setattr("tinker_async.session._HEARTBEAT_S", 0.01)
    steps = Steps(server)
    beats: list[Call] = []
    polled_out = anyio.Event()

    def beat(call: Call) -> Any:
        beats.append(call)
        if len(beats) == 50:  # half a second and more: five times the limit
            polled_out.set()
        return {}

    def poll(call: Call) -> Any:
        return OK if polled_out.is_set() else never(call)

    server.on("session_heartbeat", beat)
    steps.results["r2"] = poll
    with anyio.fail_after(10):
        async with Session(server.url, "tml-x", retry=QUICK, silence_limit_s=0.1) as session:
            trainer = await trainer_of(session)
            assert OK["metrics"] == (await trainer.optim_step(AdamParams())).metrics

    assert steps.polls("r2") > 3


async def test_polls_whose_connection_keeps_breaking_follow_the_policy(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is not "still queued", though heartbeats are answered; a good poll begins anew."""
    monkeypatch.setattr("tinker_async.session._HEARTBEAT_S", 0.01)
    steps = Steps(server)
    answers: list[Any] = [broken, broken, {"type": "try_again"}, broken, broken, broken]

    async def poll(call: Call) -> Any:
        answer = answers.pop(0)
        return await broken(call) if answer is broken else answer

    steps.results["r2"] = poll
    policy = RetryPolicy(max_attempts=3, base_s=0.001)
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", retry=policy) as session:
            trainer = await trainer_of(session)
            with pytest.raises(ProtocolError) as caught:
                await trainer.optim_step(AdamParams())
            await trainer.optim_step(AdamParams())  # the operation ran: the model goes on

    assert answers == []
    assert [1, 2] == steps.seq_ids
    assert ("optim_step", "r2", 1) == (
        caught.value.operation,
        caught.value.request_id,
        caught.value.attempts,
    )


@pytest.mark.parametrize("queued", [{"type": "try_again"}, failure(408)], ids=["200", "408"])
async def test_still_queued_is_never_cut(server: ScriptedServer, queued: Any) -> None:
    """However often it is said, and whatever the policy: these are answers."""
    steps = Steps(server)
    left = [queued] * 4
    steps.results["r2"] = lambda _: left.pop() if left else OK
    policy = RetryPolicy(max_attempts=1, window_s=0.01)
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", retry=policy, silence_limit_s=0.2) as session:
            trainer = await trainer_of(session)
            await trainer.optim_step(AdamParams())

    assert steps.polls("r2") == 5


async def test_without_a_limit_silence_is_no_error(server: ScriptedServer) -> None:
    """None leaves it to the policy: here the 30th poll finds the result."""
    steps = Steps(server)
    policy = RetryPolicy(max_attempts=30, base_s=0.001, max_s=0.002)
    polls: list[Call] = []

    def poll(call: Call) -> Any:
        polls.append(call)
        return OK if len(polls) == 30 else broken(call)

    steps.results["r2"] = poll
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", retry=policy, silence_limit_s=None) as session:
            trainer = await trainer_of(session)
            await trainer.optim_step(AdamParams())

    assert len(polls) == 30


async def test_polls_that_are_answered_with_errors_follow_the_policy(
    server: ScriptedServer,
) -> None:
    """A good answer in between begins the count anew."""
    steps = Steps(server)
    answers: list[Any] = [
        failure(500),
        failure(500),
        {"type": "try_again"},
        failure(500),
        failure(500),
        failure(500),
    ]
    steps.results["r2"] = lambda _: answers.pop(0)
    policy = RetryPolicy(max_attempts=3, base_s=0.001)
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", retry=policy) as session:
            trainer = await trainer_of(session)
            with pytest.raises(InternalServerError) as caught:
                await trainer.optim_step(AdamParams())

    assert answers == []
    assert ("r2", "optim_step") == (caught.value.request_id, caught.value.operation)


@pytest.mark.parametrize("limit_s", [0, -5, float("nan")])
def test_a_limit_of_silence_that_cannot_be_is_refused(limit_s: float) -> None:
    """When the session is made."""
    with pytest.raises(InvalidInputError) as caught:
        Session("http://localhost", "tml-x", silence_limit_s=limit_s)
    assert caught.value.field == "silence_limit_s"
