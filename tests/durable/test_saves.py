"""The checkpoints of a durable training: when they are taken, and which of them go."""

from __future__ import annotations

import random
from pathlib import Path

import anyio
import pytest
from cancellation.scene import QUICK
from durable.program import batch
from durable.toy_training import ADAM, train, training

from tinker_async import CheckpointPolicy
from tinker_async.durable.ledger import Ledger
from tinker_async.testing import FakeService, faults

SELDOM = CheckpointPolicy(save_every=100, on_exit=False)


@pytest.mark.parametrize("wanted", [True, False])
async def test_other_weights_are_loaded_after_a_save(tmp_path: Path, *, wanted: bool) -> None:
    """The save is before them in the queue, so it has what training made; if the policy says so."""
    service = FakeService(hold_s=0.01)
    policy = CheckpointPolicy(save_every=100, on_exit=False, before_risky=wanted)
    with anyio.fail_after(20):
        async with (
            service.session(retry=QUICK) as session,
            training(session, tmp_path, checkpoints=policy) as trainer,
        ):
            await train(trainer, 1)
            other = (await trainer.save_state("other")).path
            trainer._tracked.clear()
            await train(trainer, 3)
            trained = service.weights_of(trainer.model_id)
            await trainer.load_state(other)
            await trainer.saved()
            assert len(trained) > len(service.weights_of(trainer.model_id))

    saved = Ledger.read(tmp_path).confirmed
    assert ["risky"] * wanted == [entry.reason for entry in saved]
    for entry in saved:
        assert (3, trained.keys()) == (entry.step, service.weights_of(entry.path or "").keys())


async def test_gathered_gradients_are_in_no_save(tmp_path: Path) -> None:
    """A load between a backward pass and its step is not preceded by a checkpoint of half a step."""
    service = FakeService(hold_s=0.01)
    with anyio.fail_after(20):
        async with (
            service.session(retry=QUICK) as session,
            training(session, tmp_path, checkpoints=SELDOM) as trainer,
        ):
            other = (await trainer.save_state("other")).path
            await train(trainer, 2)
            trainer.forward_backward(batch(random.Random(1)), "cross_entropy")
            await trainer.load_state(other)

    assert () == Ledger.read(tmp_path).entries


async def test_a_published_checkpoint_is_not_deleted(tmp_path: Path) -> None:
    """Others may use it; all the others go when newer ones are there."""
    service = FakeService(hold_s=0.01)
    policy = CheckpointPolicy(save_every=1, keep_last=1, metric="none")
    with anyio.fail_after(20):
        async with (
            service.session(retry=QUICK) as session,
            training(session, tmp_path, checkpoints=policy) as trainer,
        ):

            async def befall(step: int) -> None:
                if step == 2:
                    entry = Ledger.read(tmp_path).entry(2)
                    await session.rest.publish_checkpoint_from_tinker_path(entry.path or "")

            await train(trainer, 6, befall)

    account = Ledger.read(tmp_path)
    # The one before the newest is what a recovery may fall back to: it goes with the next save.
    assert [2, 5, 6] == [entry.step for entry in account.confirmed]
    assert {"confirmed", "deleted"} == {entry.status for entry in account.entries}


async def test_what_falls_due_during_a_slow_save_is_one_save(tmp_path: Path) -> None:
    """Never two at once: the steps that went by meanwhile have the next one in common."""
    service = FakeService(hold_s=0.01)
    policy = CheckpointPolicy(save_every=1, keep_last=None, on_exit=False)
    with anyio.fail_after(20):
        async with (
            service.session(retry=QUICK) as session,
            training(session, tmp_path, checkpoints=policy) as trainer,
        ):
            rng = random.Random(3)
            for step in trainer.steps(20):
                if step == 1:
                    service.pause()
                trainer.forward_backward(batch(rng), "cross_entropy")
                last = trainer.optim_step(ADAM)
                if step == 15:
                    service.resume()
                    await last
                    await trainer.saved()
            await trainer.saved()

    account = Ledger.read(tmp_path)
    assert [1, 16] == [entry.step for entry in account.confirmed][:2]
    assert len(account.confirmed) == service.ledger.count("save_weights")


async def test_a_save_that_fails_costs_nothing_but_itself(tmp_path: Path) -> None:
    """Training goes on, and the next step is saved instead."""
    service = FakeService(hold_s=0.01)
    service.faults.on("save_weights", faults.OperationFails(category="user"), times=1)
    policy = CheckpointPolicy(save_every=2, on_exit=False)
    with anyio.fail_after(20):
        async with (
            service.session(retry=QUICK) as session,
            training(session, tmp_path, checkpoints=policy) as trainer,
        ):
            await train(trainer, 5)
            await trainer.saved()

    account = Ledger.read(tmp_path)
    assert [("failed", 2), ("confirmed", 3), ("confirmed", 4)] == [
        (entry.status, entry.step) for entry in account.entries
    ]
