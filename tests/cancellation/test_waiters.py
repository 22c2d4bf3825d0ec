"""Those who wait for one result, those who withdraw, and those behind them in line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from cancellation.scene import DATUM, PARAMS, PROMPT, WAYS, Scene, scene, until

from tinker_async import AdamParams, APIFuture, OperationWithdrawnError

STEPS = 40
"""Turns of the loop after which something is withdrawn: from none to more than it takes."""

FUTURES: dict[str, Callable[[Scene], APIFuture[Any]]] = {
    "forward": lambda now: now.trainer.forward([DATUM], "cross_entropy"),
    "optim_step": lambda now: now.trainer.optim_step(AdamParams()),
    "save_state": lambda now: now.trainer.save_state(now.new_name()),
    "snapshot": lambda now: now.trainer.save_weights_and_get_sampling_client(),
    "submit_sample": lambda now: now.sampler.submit_sample(PROMPT, PARAMS),
}


@pytest.mark.parametrize("name", FUTURES)
async def test_one_waiter_that_leaves_disturbs_no_other(name: str) -> None:
    """Two tasks await one future, and one of them is cancelled."""
    found: list[object] = []
    with anyio.fail_after(20):
        async with scene("in process") as now:
            for steps in range(6):
                now.service.pause()
                future = FUTURES[name](now)

                async def wait(future: APIFuture[Any] = future) -> None:
                    found.append(await future)

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(wait)
                    with anyio.CancelScope() as leaving:
                        async with anyio.create_task_group() as others:
                            others.start_soon(wait)
                            for _ in range(steps):
                                await anyio.lowlevel.checkpoint()
                            leaving.cancel()
                    now.service.resume()
                found.append(await future)
            assert now.service.ledger.cancels() == []
    assert len(found) == 12
    assert all(one is two for one, two in zip(found[::2], found[1::2], strict=True))


@pytest.mark.parametrize("way", WAYS)
async def test_an_operation_withdrawn_at_any_moment_leaves_no_gap(way: str) -> None:
    """Either it was never sent, or it runs: the ledger says which, and the future the same."""
    withdrawn = 0
    with anyio.fail_after(60):
        async with scene(way) as now:
            ledger, model_id = now.service.ledger, now.trainer.model_id
            for steps in range(STEPS):
                ran = len(ledger.order(model_id))
                first = now.trainer.forward([DATUM], "cross_entropy")
                second = now.trainer.optim_step(AdamParams(learning_rate=0.0))
                third = now.trainer.forward([DATUM], "cross_entropy")
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                gone = second.cancel()
                await first
                await third
                if gone:
                    with pytest.raises(OperationWithdrawnError):
                        await second
                else:
                    await second
                withdrawn += gone
                steps_run = ledger.order(model_id)[ran:].count("optim_step")
                assert (0 if gone else 1) == steps_run
            assert ledger.gaps(model_id) == []
    assert 0 < withdrawn


@pytest.mark.parametrize("way", WAYS)
async def test_a_submitted_sample_withdrawn_at_any_moment_is_cancelled_once(way: str) -> None:
    """If the server has it, it is told once; if it never came there, not at all."""
    told = 0
    with anyio.fail_after(60):
        async with scene(way) as now:
            ledger = now.service.ledger
            for steps in range(STEPS):
                samples, cancels = len(ledger.samples), len(ledger.cancels())
                future = now.sampler.submit_sample(PROMPT, PARAMS)
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                gone = future.cancel()
                await until(now.at_rest, now.session.statistics)
                ours = ledger.samples[samples:]
                cancelled = ledger.cancels()[cancels:]
                assert len(ours) >= len(cancelled)
                # One whose result was on its way back already need not be told.
                assert {line.request_id for line in ours if not line.answered} <= {*cancelled}
                assert gone or not cancelled
                told += len(ledger.cancels()) - cancels
    assert told or way == "in process"


async def test_a_line_for_places_goes_on_when_any_of_it_is_cancelled() -> None:
    """One place: each of the waiters in turn is cancelled, at each turn of the loop."""
    with anyio.fail_after(60):
        async with scene("in process", max_samples_in_flight=1) as now:
            for steps in range(12):
                for leaver in range(3):
                    got: list[int] = []
                    scopes = [anyio.CancelScope() for _ in range(3)]

                    async def draw(
                        number: int,
                        scopes: list[anyio.CancelScope] = scopes,
                        got: list[int] = got,
                    ) -> None:
                        with scopes[number]:
                            await now.sampler.sample(PROMPT, PARAMS)
                            got.append(number)

                    async with anyio.create_task_group() as tasks:
                        for number in range(3):
                            tasks.start_soon(draw, number)
                        for _ in range(steps):
                            await anyio.lowlevel.checkpoint()
                        scopes[leaver].cancel()
                    await until(now.at_rest, now.session.statistics)
                    assert {0, 1, 2} - {leaver} <= {*got}
                    assert 1 == now.session.statistics().sampling.samples.limit
