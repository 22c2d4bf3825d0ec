"""Limits of minutes and hours, to the second, in virtual time against the fake service."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from tinker_async import (
    AdamParams,
    BillingError,
    RequestTimeoutError,
    RetryPolicy,
    Session,
    TrainingClient,
)
from tinker_async.testing import FakeService, faults, run_in_virtual_time


async def trainer_of(session: Session) -> TrainingClient:
    return await session.create_lora_training_client("toy", rank=4)


@pytest.mark.parametrize("limit_s", [5.0, 60.0, 300.0])
@pytest.mark.parametrize("mute", [faults.Stall(), faults.Reset()], ids=str)
def test_a_mute_server_is_given_up_when_the_limit_is_over(
    limit_s: float, mute: faults.Fault
) -> None:
    """Not before, and at most a twentieth later, however the polls' own times fall."""
    patient = RetryPolicy(max_attempts=1000, window_s=1000)

    async def main() -> tuple[float, RequestTimeoutError]:
        service = FakeService()
        async with service.session(silence_limit_s=limit_s, retry=patient) as session:
            trainer = await trainer_of(session)
            for endpoint in ("retrieve_future", "session_heartbeat", "client/dynamic_config"):
                service.faults.on(endpoint, mute)
            began = anyio.current_time()
            with pytest.raises(RequestTimeoutError) as caught:
                await trainer.optim_step(AdamParams())
            return anyio.current_time() - began, caught.value

    took_s, error = run_in_virtual_time(main)
    assert limit_s - 0.1 <= took_s <= 1.05 * limit_s
    assert error.silent_s is not None
    assert limit_s <= error.silent_s <= 1.05 * limit_s


def test_a_queue_that_is_paused_for_hours_is_waited_for() -> None:
    """The server answers: neither the limit of silence nor the policy ends it."""

    async def main() -> tuple[float, Any]:
        service = FakeService()
        async with service.session(silence_limit_s=60, retry=RetryPolicy(window_s=60)) as session:
            trainer = await trainer_of(session)
            paused = faults.QueueState(state="paused_capacity")
            service.faults.on("retrieve_future", paused, times=4000)
            began = anyio.current_time()
            await trainer.optim_step(AdamParams())
            return anyio.current_time() - began, session.health().state

    took_s, state = run_in_virtual_time(main)
    assert took_s > 2 * 3600
    assert state == "ok"


def test_polls_that_break_for_hours_are_waited_for_while_heartbeats_are_answered() -> None:
    """As behind a proxy that cuts every long request."""

    async def main() -> float:
        service = FakeService()
        async with service.session(silence_limit_s=60) as session:
            trainer = await trainer_of(session)
            service.faults.on("retrieve_future", faults.Stall(), times=200)
            began = anyio.current_time()
            await trainer.optim_step(AdamParams())
            return anyio.current_time() - began

    assert run_in_virtual_time(main) > 2 * 3600


def test_a_deadline_of_hours_is_kept_to_the_second() -> None:
    """In the queue, and for a coroutine."""

    async def main() -> list[float]:
        service = FakeService()
        async with service.session(timeout=3 * 3600) as session:
            trainer = await trainer_of(session)
            service.faults.on("retrieve_future", faults.QueueState(state="paused_capacity"))
            began, ends = anyio.current_time(), []
            first = trainer.optim_step(AdamParams())
            hasty = trainer.optim_step(AdamParams(), timeout=60)
            for future in (hasty, first):
                with pytest.raises(RequestTimeoutError):
                    await future
                ends.append(anyio.current_time() - began)
            began = anyio.current_time()
            with pytest.raises(RequestTimeoutError):
                await session.create_lora_training_client("toy")
            return [*ends, anyio.current_time() - began]

    assert [60, 10800, 10800] == pytest.approx(run_in_virtual_time(main))


def test_a_billing_pause_goes_in_steps_up_to_its_limit() -> None:
    """Every 5 s, and a last time at the end."""

    async def main() -> tuple[float, int | None]:
        service = FakeService()
        async with service.session(billing_pause_s=62, check_inputs=False) as session:
            service.faults.on("get_server_capabilities", faults.Status(status=402))
            began = anyio.current_time()
            with pytest.raises(BillingError) as caught:
                await session.get_server_capabilities()
            return anyio.current_time() - began, caught.value.attempts

    took_s, attempts = run_in_virtual_time(main)
    assert took_s == pytest.approx(62)
    assert attempts == 14
