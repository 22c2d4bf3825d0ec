"""A durable training gives what the undisturbed one gives, to the bit, whatever is lost on the way."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import anyio
import pytest
from cancellation.scene import QUICK
from durable.program import batch
from durable.toy_training import STEPS, outcome, training, undisturbed

from tinker_async import AdamParams, CheckpointPolicy, RecoveryPolicy, Session
from tinker_async.durable.ledger import Ledger
from tinker_async.errors import (
    InvalidInputError,
    RecoveryExhaustedError,
    RequestFailedError,
    SupersededError,
)
from tinker_async.testing import FakeService, faults


class Mischief:
    """Loses runs and sessions at steps drawn at random."""

    def __init__(self, service: FakeService, seed: int) -> None:
        chance = random.Random(seed)
        steps = chance.sample(range(1, STEPS), 7)
        ways = ["corrupted", "corrupted", "poisoned", "poisoned", "poisoned", "session", "session"]
        self._at = dict(zip(steps, ways, strict=True))
        self._service = service

    @property
    def is_over(self) -> bool:
        """Whether all of it was done."""
        return not self._at

    def befall(self, session: Session, step: int) -> None:
        """Do what is due at a step, once."""
        how = self._at.pop(step, None)
        if how == "corrupted":
            self._service.corrupt(list(self._service.state.models)[-1])
        elif how == "poisoned":
            self._service.faults.on("forward_backward", faults.BadJson(), times=1)
        elif how == "session":
            self._service.end_session(session.session_id)


@pytest.mark.usefixtures("fast_beats")
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_run_that_is_lost_again_and_again_gives_the_same(tmp_path: Path, seed: int) -> None:
    """Five lost runs and two dead sessions: losses, weights and optimizer are equal to the bit."""
    expected = await undisturbed()
    service, rng = FakeService(hold_s=0.01), random.Random(3)
    mischief = Mischief(service, seed)
    losses: dict[int, float] = {}
    with anyio.fail_after(60):
        async with service.session(retry=QUICK) as session:
            async with training(session, tmp_path) as trainer:
                trainer.track("data", rng)
                for step in trainer.steps(STEPS):
                    mischief.befall(session, step)
                    result = trainer.forward_backward(batch(rng), "cross_entropy")
                    await trainer.optim_step(AdamParams(learning_rate=1e-3))
                    losses[step] = (await result).metrics["loss:sum"]
            found = outcome(service, trainer.model_id, [losses[step] for step in range(STEPS)])

    assert expected.losses == found.losses
    assert expected == found
    account = Ledger.read(tmp_path)
    assert mischief.is_over
    assert 7 <= len(account.recoveries)  # more where it befell a run that was being made
    assert STEPS == account.confirmed[-1].step


@pytest.mark.usefixtures("fast_beats")
async def test_a_run_whose_calls_are_far_ahead_gives_the_same(tmp_path: Path) -> None:
    """All 60 steps are called before the first is awaited."""
    expected = await undisturbed()
    service, rng = FakeService(hold_s=0.01), random.Random(3)
    with anyio.fail_after(60):
        async with service.session(retry=QUICK) as session:
            async with training(session, tmp_path) as trainer:
                results = []
                for step in trainer.steps(STEPS):
                    results.append(trainer.forward_backward(batch(rng), "cross_entropy"))
                    trainer.optim_step(AdamParams(learning_rate=1e-3))
                    if step in (20, 40):
                        service.corrupt(trainer.model_id)
                        await results[-5]
                losses = [(await result).metrics["loss:sum"] for result in results]
            found = outcome(service, trainer.model_id, losses)

    assert expected == found


async def test_a_program_that_was_ended_goes_on_where_it_was(tmp_path: Path) -> None:
    """Step, position and random numbers are as at the checkpoint; what came after it is done again."""
    expected = await undisturbed()
    service, losses = FakeService(hold_s=0.01), {}
    began = []
    with anyio.fail_after(60):
        for end in (17, 34, STEPS):
            async with service.session(retry=QUICK) as session:
                rng = random.Random(3)
                policy = CheckpointPolicy(save_every=10, on_exit=end != 17)
                async with training(session, tmp_path, checkpoints=policy) as trainer:
                    trainer.track("data", rng)
                    began.append((trainer.step, trainer.position))
                    for step in trainer.steps(end):
                        result = trainer.forward_backward(batch(rng), "cross_entropy")
                        await trainer.optim_step(AdamParams(learning_rate=1e-3))
                        losses[step] = (await result).metrics["loss:sum"]
                        trainer.position = {"next": step + 1}
                model_id = trainer.model_id
                found = outcome(service, model_id, [losses[one] for one in sorted(losses)])

    assert [(0, None), (10, {"next": 10}), (34, {"next": 34})] == began
    assert expected == found


async def test_a_checkpoint_that_cannot_be_loaded_is_not_the_end(tmp_path: Path) -> None:
    """The one before is taken, and what came after that is repeated."""
    expected = await undisturbed()
    service, rng = FakeService(hold_s=0.01), random.Random(3)
    service.faults.on("load_weights", faults.Status(404), times=1)
    losses: dict[int, float] = {}
    with anyio.fail_after(60):
        async with service.session(retry=QUICK) as session:
            async with training(session, tmp_path) as trainer:
                for step in trainer.steps(STEPS):
                    await trainer.saved()
                    if step == 45:
                        service.corrupt(trainer.model_id)
                    result = trainer.forward_backward(batch(rng), "cross_entropy")
                    await trainer.optim_step(AdamParams(learning_rate=1e-3))
                    losses[step] = (await result).metrics["loss:sum"]
            found = outcome(service, trainer.model_id, [losses[step] for step in range(STEPS)])

    assert expected == found
    failed, completed = Ledger.read(tmp_path).recoveries
    assert ("failed", 4) == (failed.outcome, failed.checkpoint)
    assert ("completed", 3, 15) == (
        completed.outcome,
        completed.checkpoint,
        completed.steps_replayed,
    )


async def test_where_nothing_can_be_loaded_the_error_leaves_the_block(tmp_path: Path) -> None:
    """With all that was tried; nothing is deleted, and the next start says so as well."""
    service, rng = FakeService(hold_s=0.01), random.Random(3)
    service.faults.on("load_weights", faults.Status(404))
    with anyio.fail_after(60):
        async with service.session(retry=QUICK) as session:
            with pytest.raises(RecoveryExhaustedError) as caught:
                async with training(session, tmp_path) as trainer:
                    for step in trainer.steps(STEPS):
                        await trainer.saved()
                        if step == 45:
                            service.corrupt(trainer.model_id)
                        trainer.forward_backward(batch(rng), "cross_entropy")
                        await trainer.optim_step(AdamParams(learning_rate=1e-3))
            with pytest.raises(RecoveryExhaustedError):
                async with training(session, tmp_path):
                    pass

    account = Ledger.read(tmp_path)
    assert 2 == caught.value.attempts
    history = caught.value.history
    assert ["run", "attempt", "attempt", "no"] == [line.split()[0] for line in history]
    assert "step-40" in history[1]
    assert "step-30" in history[2]
    assert [10, 20, 30, 40] == [entry.step for entry in account.confirmed]
    assert [] == list(service.ledger.of("delete_checkpoint"))


async def test_what_the_user_did_wrong_starts_no_recovery(tmp_path: Path) -> None:
    """Bad data raise at once; what the server refuses or fails by itself fails its own future."""
    service, rng = FakeService(hold_s=0.01), random.Random(3)
    with anyio.fail_after(10):
        async with (
            service.session(retry=QUICK) as session,
            training(session, tmp_path) as trainer,
        ):
            with pytest.raises(InvalidInputError):
                trainer.forward_backward([], "cross_entropy")
            with pytest.raises(RequestFailedError):
                await trainer.forward_backward(batch(rng), "no_such_loss")
            service.faults.on("optim_step", faults.OperationFails(category="server"), times=1)
            with pytest.raises(RequestFailedError):
                await trainer.optim_step(AdamParams())
            await trainer.optim_step(AdamParams())

    assert () == Ledger.read(tmp_path).recoveries


async def test_the_client_of_a_lost_run_says_that_it_was_replaced(tmp_path: Path) -> None:
    """`trainer.client` is that of the present run; the one before refuses."""
    service, rng = FakeService(hold_s=0.01), random.Random(3)
    with anyio.fail_after(10):
        async with (
            service.session(retry=QUICK) as session,
            training(session, tmp_path) as trainer,
        ):
            old = trainer.client
            service.corrupt(trainer.model_id)
            await trainer.forward_backward(batch(rng), "cross_entropy")
            with pytest.raises(SupersededError, match="replaced") as caught:
                old.optim_step(AdamParams())
            await trainer.optim_step(AdamParams())

    assert old.model_id != trainer.model_id
    assert (1, 2) == (caught.value.generation, caught.value.current)


async def test_without_recovery_a_lost_run_is_an_error_as_ever(tmp_path: Path) -> None:
    """Checkpoints are taken, and nothing else is automatic."""
    service, rng = FakeService(hold_s=0.01), random.Random(3)
    off = RecoveryPolicy()
    with anyio.fail_after(10):
        async with service.session(retry=QUICK) as session:
            with pytest.raises(RequestFailedError, match="corrupted"):
                async with training(session, tmp_path, recovery=off) as trainer:
                    for step in trainer.steps(STEPS):
                        await trainer.saved()
                        if step == 15:
                            service.corrupt(trainer.model_id)
                        await trainer.forward_backward(batch(rng), "cross_entropy")
                        await trainer.optim_step(AdamParams())

    account = Ledger.read(tmp_path)
    assert [10] == [entry.step for entry in account.confirmed]
    assert () == account.recoveries


async def test_what_the_policy_does_not_keep_is_deleted(tmp_path: Path) -> None:
    """The newest two stay, and the best; on the server as in the record."""
    service, rng = FakeService(hold_s=0.01), random.Random(3)
    policy = CheckpointPolicy(save_every=5, keep_last=2)
    with anyio.fail_after(20):
        async with service.session(retry=QUICK) as session:
            async with training(session, tmp_path, checkpoints=policy) as trainer:
                for _ in trainer.steps(30):
                    await trainer.saved()
                    trainer.forward_backward(batch(rng), "cross_entropy")
                    await trainer.optim_step(AdamParams())
            rest = session.rest
            listed = {one.tinker_path async for one in rest.list_checkpoints(trainer.model_id)}

    account = Ledger.read(tmp_path)
    kept = [entry.step for entry in account.confirmed]
    assert [25, 30] == kept[-2:]
    assert len(kept) <= 4
    assert listed == {entry.path for entry in account.confirmed}
    assert any(entry.status == "deleted" for entry in account.entries)


async def test_an_own_loss_is_repeated_too(tmp_path: Path) -> None:
    """The function is called again with the same data, in a session that was renewed as well."""

    def loss(data: Any, logprobs: Any) -> Any:
        del data
        total = sum((one * one).sum() for one in logprobs)
        return total, {"own:sum": float(total.detach())}

    found = []
    for mischief in (False, True):
        service, rng = FakeService(hold_s=0.01), random.Random(3)
        with anyio.fail_after(20):
            async with service.session(retry=QUICK) as session:
                async with training(session, tmp_path / str(mischief)) as trainer:
                    losses = []
                    for step in trainer.steps(24):
                        if mischief and step in (7, 13):
                            service.corrupt(list(service.state.models)[-1])
                        if mischief and step == 19:
                            service.end_session(session.session_id)
                        result = trainer.forward_backward_custom(batch(rng), loss)
                        await trainer.optim_step(AdamParams(learning_rate=1e-3))
                        losses.append((await result).metrics["own:sum"])
                found.append(outcome(service, trainer.model_id, losses))

    assert found[0] == found[1]
