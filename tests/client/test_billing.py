"""402: told at once, waited out within the user's limit, and one incident for all."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from support.scripted import Call, ScriptedServer
from support.trained import OK, Steps, failure, trainer_of

from tinker_async import (
    AdamParams,
    BillingError,
    BillingPaused,
    Event,
    InvalidInputError,
    ModelInput,
    RetryPolicy,
    Session,
)

OFF = RetryPolicy(max_attempts=1)


@pytest.fixture
def quick_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of a hundredth of a second instead of five."""
    monkeypatch.setattr("tinker_async.api.billing._STEP_S", 0.01)


def pauses(told: list[Event]) -> list[BillingPaused]:
    return [event for event in told if isinstance(event, BillingPaused)]


async def test_without_a_limit_of_time_it_is_an_error_at_once(server: ScriptedServer) -> None:
    """The default; the event comes first, once for however many calls."""
    told: list[Event] = []
    server.on("get_server_capabilities", lambda _: failure(402, "no credit"))
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", on_event=told.append) as session:
            for _ in range(3):
                with pytest.raises(BillingError, match="no credit") as caught:
                    await session.get_server_capabilities()
            assert session.health().state == "degraded"

    assert len(server.seen("get_server_capabilities")) == 3
    assert caught.value.attempts == 1
    assert [("get_server_capabilities", "no credit", 0.0)] == [
        (event.operation, event.detail, event.limit_s) for event in pauses(told)
    ]


@pytest.mark.usefixtures("quick_steps")
async def test_within_the_limit_a_request_is_repeated_until_it_is_accepted(
    server: ScriptedServer,
) -> None:
    """Submissions, polls and samples alike; the policy, here off, does not count these."""
    steps = Steps(server)
    refused: dict[str, int] = {}

    def paying_late(path: str, answer: Any) -> Any:
        def handle(call: Call) -> Any:
            refused[path] = refused.get(path, 0) + 1
            return failure(402) if refused[path] <= 3 else answer(call)

        return handle

    server.on("optim_step", paying_late("optim_step", steps.accept))
    server.on("asample", paying_late("asample", lambda _: server.promise()))
    steps.results["r2"] = paying_late("poll", lambda _: OK)
    steps.results["r3"] = lambda _: {
        "sequences": [{"tokens": [1], "logprobs": [0.0], "stop_reason": "stop"}]
    }
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", retry=OFF, billing_pause_s=5) as session:
            trainer = await trainer_of(session)
            await trainer.optim_step(AdamParams())
            sampler = await session.create_sampling_client(base_model="m")
            await sampler.sample(ModelInput.from_ints([1]))
            assert session.health().billing_paused_for_s == 0

    assert {"optim_step": 4, "asample": 4, "poll": 4} == refused
    assert steps.seq_ids == [1]


@pytest.mark.usefixtures("quick_steps")
async def test_the_limit_runs_from_the_first_402_of_the_incident(server: ScriptedServer) -> None:
    """Then it is an error; the next call does not wait again."""
    server.on("get_server_capabilities", lambda _: failure(402))
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", billing_pause_s=0.05) as session:
            with pytest.raises(BillingError) as first:
                await session.get_server_capabilities()
            with pytest.raises(BillingError) as second:
                await session.get_server_capabilities()

    assert first.value.attempts is not None
    assert first.value.attempts >= 3
    assert second.value.attempts == 1


async def test_an_incident_ends_when_what_was_refused_is_accepted(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heartbeats and other calls do not end it, though they are answered."""
    monkeypatch.setattr("tinker_async.session._HEARTBEAT_S", 0.01)
    told: list[Event] = []
    answers: list[Any] = [failure(402), failure(402), {}, failure(402)]
    beaten = anyio.Event()

    def beat(_: Call) -> Any:
        beaten.set()
        return {}

    server.on("session_heartbeat", beat)
    server.on("get_server_capabilities", lambda _: answers.pop(0))
    with anyio.fail_after(5):
        async with Session(
            server.url, "tml-x", on_event=told.append, check_inputs=False
        ) as session:
            with pytest.raises(BillingError):
                await session.get_server_capabilities()
            await beaten.wait()
            await session.create_sampling_client(model_path="tinker://s1:train:0/sampler_weights/a")
            with pytest.raises(BillingError):
                await session.get_server_capabilities()
            assert len(pauses(told)) == 1
            await session.get_server_capabilities()
            assert session.health().billing_paused_for_s == 0
            with pytest.raises(BillingError):
                await session.get_server_capabilities()

    assert len(pauses(told)) == 2


async def test_a_negative_limit_is_refused() -> None:
    """When the session is made."""
    with pytest.raises(InvalidInputError) as caught:
        Session("http://localhost", "tml-x", billing_pause_s=-1)
    assert caught.value.field == "billing_pause_s"
