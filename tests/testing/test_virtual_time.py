"""Hours of waiting in no time, in process on trio."""

from __future__ import annotations

import anyio
import pytest
from testing.loops import ADAM, DATUM, PROMPT

from tinker_async import RequestTimeoutError, RetryPolicy
from tinker_async.testing import FakeService, faults, run_in_virtual_time, virtual_time_backend


def test_slow_work_takes_its_time_on_the_virtual_clock_only() -> None:
    """A sample of an hour, held polls and heartbeats included."""
    service = FakeService(sample_s=3600, hold_s=30)

    async def program() -> float:
        async with service.session() as session:
            sampler = await session.create_sampling_client(base_model="toy")
            started = anyio.current_time()
            await sampler.sample(PROMPT)
            return anyio.current_time() - started

    assert 3600 == pytest.approx(run_in_virtual_time(program), abs=1)
    assert 120 <= service.ledger.count("retrieve_future") <= 122
    assert 350 <= service.ledger.count("session_heartbeat") <= 361


def test_the_ledger_is_on_the_virtual_clock() -> None:
    """So that a test can say how long a client waited after which answer."""
    service = FakeService()
    service.faults.on("optim_step", faults.TooMany(retry_after_s=40), occurrence=1)

    async def program() -> None:
        async with service.session(retry=RetryPolicy(max_server_s=60)) as session:
            trainer = await session.create_lora_training_client("toy")
            await trainer.optim_step(ADAM)

    run_in_virtual_time(program)
    first, second = service.ledger.of("optim_step")
    assert 40 == pytest.approx(second.at_s - first.at_s, abs=1)


def test_a_deadline_comes_when_it_is_due() -> None:
    service = FakeService(sample_s=10_000)

    async def program() -> float:
        async with service.session() as session:
            sampler = await session.create_sampling_client(base_model="toy")
            started = anyio.current_time()
            with pytest.raises(RequestTimeoutError):
                await sampler.sample(PROMPT, timeout=500)
            await anyio.sleep(1)
            return anyio.current_time() - started

    assert 501 == pytest.approx(run_in_virtual_time(program), abs=0.5)
    assert 1 == service.ledger.samples[0].cancelled


def test_a_whole_day_of_training_takes_seconds() -> None:
    """Ten minutes for each operation of a model, one after the other."""
    service = FakeService(train_s=600)

    async def program() -> float:
        async with service.session() as session:
            trainer = await session.create_lora_training_client("toy")
            started = anyio.current_time()
            for _ in range(72):
                forward = trainer.forward_backward([DATUM], "cross_entropy")
                optim = trainer.optim_step(ADAM)
                await forward
                await optim
            return anyio.current_time() - started

    assert 86_400 == pytest.approx(run_in_virtual_time(program), abs=700)


@pytest.mark.parametrize("anyio_backend", [virtual_time_backend()], ids=["virtual"])
async def test_the_backend_can_be_given_by_hand() -> None:
    await anyio.sleep(80_000)

    assert anyio.current_time() >= 80_000
