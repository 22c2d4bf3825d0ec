"""A lost run through a real recovery: which checkpoint, in what order, told how, and when it ends."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from cancellation.scene import QUICK
from durable.program import batch
from durable.toy_training import ADAM, Ear, lost_at, outcome, recovery, train, training, undisturbed

import tinker_async as ta
from tinker_async import CheckpointEntry, CheckpointPolicy, RecoveryExhaustedError
from tinker_async.durable.journal import Journal
from tinker_async.durable.ledger import Ledger
from tinker_async.testing import FakeService, faults

EVERY_2 = CheckpointPolicy(save_every=2)
ONCE = ta.RetryPolicy(max_attempts=1)


# What is told


async def test_a_recovery_tells_each_of_its_steps(tmp_path: Path) -> None:
    """In order, with the runs, the checkpoint, and what was repeated."""
    expected = await undisturbed(6)
    service, ear = FakeService(hold_s=0.01), Ear()
    with anyio.fail_after(20):
        async with service.session(retry=QUICK, on_event=ear) as session:
            async with training(session, tmp_path, checkpoints=EVERY_2) as trainer:
                first = trainer.model_id
                losses = await train(trainer, 6, lost_at(3, service, trainer))
            found = outcome(service, trainer.model_id, losses)

    assert expected == found
    steps = ["Detected", "Started", "CheckpointSelected", "ClientCreated", "Resumed", "Completed"]
    assert steps == ear.names
    detected, completed = ear.only(ta.RecoveryDetected), ear.only(ta.RecoveryCompleted)
    assert (first, "corrupted", 3) == (detected.run_id, detected.source, detected.step)
    assert (trainer.model_id, 1, 1) == (
        *(completed.new_run_id, completed.attempt),
        completed.steps_lost,
    )
    assert 2 == ear.only(ta.RecoveryCheckpointSelected).step
    assert 2 == completed.generation == ear.only(ta.RecoveryStarted).generation


async def test_the_pause_before_the_next_attempt_is_told_before_it(tmp_path: Path) -> None:
    """And that there is none after the last: nobody waits to hear that nothing is left."""
    service, ear = FakeService(hold_s=0.01), Ear()
    service.faults.on("load_weights", faults.Status(404))
    patience = recovery(backoff_s=0.01, max_backoff_s=0.01)
    with anyio.fail_after(20):
        async with service.session(retry=QUICK, on_event=ear) as session:
            with pytest.raises(RecoveryExhaustedError):
                async with training(
                    session, tmp_path, checkpoints=EVERY_2, recovery=patience
                ) as trainer:
                    await train(trainer, 6, lost_at(5, service, trainer))

    failed = [event for event in ear.heard if isinstance(event, ta.RecoveryFailed)]
    assert 2 == len(failed)
    assert failed[0].delay_s is not None
    assert 0 <= failed[0].delay_s <= 0.01
    assert failed[1].delay_s is None
    exhausted = ear.only(ta.RecoveryExhausted)
    assert "Exhausted" == ear.names[-1]
    assert (2, 2, 5) == (
        *(exhausted.attempts, len(exhausted.checkpoints_tried)),
        exhausted.steps_lost,
    )


async def test_attempts_that_are_used_up_are_the_end(tmp_path: Path) -> None:
    """A server that makes no model is tried so often, with no pause after the last attempt."""
    service, ear = FakeService(hold_s=0.01), Ear()
    with anyio.fail_after(20):
        async with service.session(retry=ONCE, on_event=ear) as session:
            with pytest.raises(RecoveryExhaustedError, match="no attempt is left") as caught:
                async with training(
                    session, tmp_path, checkpoints=EVERY_2, recovery=recovery(max_attempts=3)
                ) as trainer:

                    def befall(step: int) -> None:
                        if step == 3:
                            service.faults.on("load_weights", faults.Status(503))
                            service.corrupt(trainer.model_id)

                    await train(trainer, 6, befall)

    delays = [event.delay_s for event in ear.heard if isinstance(event, ta.RecoveryFailed)]
    assert [False, False, True] == [delay is None for delay in delays]
    assert 3 == caught.value.attempts
    assert 5 == len(caught.value.history)


async def test_a_block_that_ends_as_its_run_goes_on_has_the_recovery_on_record(
    tmp_path: Path,
) -> None:
    """The program goes on before the record is written, and may come to its end before."""
    service = FakeService(hold_s=0.01)
    with anyio.fail_after(20), anyio.CancelScope() as scope:

        def end(event: object) -> None:
            if isinstance(event, ta.RecoveryCompleted):
                scope.cancel()

        async with (
            service.session(retry=QUICK, on_event=end) as session,
            training(session, tmp_path, checkpoints=EVERY_2) as trainer,
        ):
            await train(trainer, 6, lost_at(3, service, trainer))

    assert ["completed"] == [one.outcome for one in Ledger.read(tmp_path).recoveries]


async def test_a_block_that_is_cancelled_in_a_recovery_says_so(tmp_path: Path) -> None:
    """The state that it was in, and the attempt."""
    service, ear = FakeService(hold_s=0.01), Ear()
    service.faults.on("load_weights", faults.Stall())
    with anyio.fail_after(20):
        async with service.session(retry=QUICK, on_event=ear) as session:
            with anyio.CancelScope() as scope:
                async with (
                    training(session, tmp_path, checkpoints=EVERY_2, grace_s=0.1) as trainer,
                    anyio.create_task_group() as tasks,
                ):

                    async def cancel() -> None:
                        await ear.until("CheckpointSelected")
                        scope.cancel()

                    tasks.start_soon(cancel)
                    await train(trainer, 6, lost_at(3, service, trainer))

    assert scope.cancelled_caught
    cancelled = ear.only(ta.RecoveryCancelled)
    assert ("restoring", 1) == (cancelled.state, cancelled.attempt)


async def test_a_poll_that_fails_is_told_and_training_goes_on(tmp_path: Path) -> None:
    """The backstop is no reason to stop."""
    expected = await undisturbed(4)
    service, ear = FakeService(hold_s=0.01), Ear()
    service.faults.on("training_run", faults.Status(503))
    often = recovery(poll_interval_s=0.001)
    with anyio.fail_after(20):
        async with (
            service.session(retry=QUICK, on_event=ear) as session,
            training(session, tmp_path, recovery=often) as trainer,
        ):
            await ear.until("PollError")
            losses = await train(trainer, 4)

    assert expected.losses == losses
    assert {"PollError"} == set(ear.names)


# What is chosen


def by(step: int) -> Any:
    """A strategy of one's own: the checkpoint of a step, then the oldest."""

    def mine(entries: Sequence[CheckpointEntry]) -> Sequence[CheckpointEntry]:
        return [*(one for one in entries if one.step == step), entries[-1]]

    return mine


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        (recovery(strategy="latest", fallback=5), [4]),
        (recovery(strategy="best", fallback=5), [2]),
        (recovery(strategy=by(3), fallback=5), [3]),
    ],
    ids=["latest", "best", "own"],
)
@pytest.mark.parametrize("breaks", [False, True], ids=["loads", "breaks"])
async def test_each_strategy_goes_on_from_its_choice(
    tmp_path: Path, policy: ta.RecoveryPolicy, chosen: list[int], *, breaks: bool
) -> None:
    """And, where that cannot be loaded, from the next: the result is the same each time."""
    expected = await undisturbed(6)
    nexts = {"latest": 3, "best": 3, "mine": 1}
    service, rng = FakeService(hold_s=0.01), random.Random(3)
    values = {1: 3.0, 2: 1.0, 3: 2.0, 4: 4.0}
    losses = []
    with anyio.fail_after(20):
        async with service.session(retry=QUICK) as session:
            async with training(
                session,
                tmp_path,
                checkpoints=CheckpointPolicy(save_every=1, metric="own"),
                recovery=policy,
            ) as trainer:
                while trainer.step < 6:
                    await trainer.saved()
                    if trainer.step == 4:
                        if breaks:
                            service.faults.on("load_weights", faults.Status(404), times=1)
                        service.corrupt(trainer.model_id)
                    losses.append(await step_of(trainer, rng, values.get(trainer.step + 1, 9.0)))
            found = outcome(service, trainer.model_id, losses)

    assert expected == found
    tried = Ledger.read(tmp_path)
    steps = [tried.entry(one.checkpoint or 0).step for one in tried.recoveries]
    assert chosen + [nexts[policy.strategy_name]] * breaks == steps


async def step_of(trainer: ta.DurableTrainingClient, rng: random.Random, value: float) -> float:
    """A step that says its own metric."""
    trainer._stepping = True  # as within `steps`: it ends when it says so
    result = trainer.forward_backward(batch(rng), "cross_entropy")
    await trainer.optim_step(ADAM)
    loss = (await result).metrics["loss:sum"]
    trainer.end_step({"own": value})
    return loss


async def test_a_specific_checkpoint_is_gone_on_from(tmp_path: Path) -> None:
    """One of this run while the program lives; one of another run when it begins."""
    expected = await undisturbed(6)
    service = FakeService(hold_s=0.01)
    with anyio.fail_after(20):
        async with service.session(retry=QUICK) as session:
            async with training(session, tmp_path / "a", checkpoints=EVERY_2) as trainer:
                await train(trainer, 4)
            path = Ledger.read(tmp_path / "a").entry(1).path
            again = recovery(strategy="specific", specific_path=path, fallback=5)
            async with training(session, tmp_path / "b", recovery=again) as other:
                assert (0, 2) == (
                    other.step,
                    service.state.models[other.model_id].toy.state().steps,
                )
            async with training(
                session, tmp_path / "a", checkpoints=EVERY_2, recovery=again
            ) as trainer:
                assert 2 == trainer.step
                losses = expected.losses[:2] + await train(trainer, 6, lost_at(5, service, trainer))
            found = outcome(service, trainer.model_id, losses)

    assert expected == found
    *_, last = Ledger.read(tmp_path / "a").recoveries
    assert ("recovery", 1) == (last.kind, last.checkpoint)


async def test_a_strategy_that_fails_is_the_end_and_is_named(tmp_path: Path) -> None:
    """It is the user's own function: what it raised is in the history, and is the cause."""
    service = FakeService(hold_s=0.01)

    def broken(_: Sequence[CheckpointEntry]) -> Sequence[CheckpointEntry]:
        raise ZeroDivisionError("mine")

    with anyio.fail_after(20):
        async with service.session(retry=QUICK) as session:
            with pytest.raises(RecoveryExhaustedError) as caught:
                async with training(
                    session, tmp_path, checkpoints=EVERY_2, recovery=recovery(strategy=broken)
                ) as trainer:
                    await train(trainer, 6, lost_at(3, service, trainer))

    assert "strategy broken failed: ZeroDivisionError: mine" == caught.value.history[1]
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


# A server that says nothing


async def test_an_operation_that_a_living_run_never_had_is_repeated(tmp_path: Path) -> None:
    """The way to the server broke for longer than is waited for: its order would have a hole."""
    expected = await undisturbed(6)
    service = FakeService(hold_s=0.01)
    with anyio.fail_after(20):
        async with service.session(retry=ONCE) as session:
            async with training(session, tmp_path, checkpoints=EVERY_2) as trainer:

                def befall(step: int) -> None:
                    if step == 3:
                        service.faults.on("forward_backward", faults.Refuse(), times=1)
                        service.faults.on("get_info", faults.Refuse(), times=3)

                losses = await train(trainer, 6, befall)
            found = outcome(service, trainer.model_id, losses)

    assert expected == found
    (one,) = Ledger.read(tmp_path).recoveries
    assert one.cause.startswith("operation: ")


async def test_a_long_silence_is_a_loss(tmp_path: Path) -> None:
    """The run may live: nobody can say. When the server is back, another one goes on."""
    expected = await undisturbed(6)
    service, ear = FakeService(hold_s=0.01), Ear()
    with anyio.fail_after(20):
        async with service.session(retry=ONCE, on_event=ear) as session:
            async with training(
                session, tmp_path, checkpoints=EVERY_2, recovery=recovery(max_attempts=2)
            ) as trainer:

                def befall(step: int) -> None:
                    if step == 3:
                        service.faults.on("optim_step", faults.OperationFails(), times=1)
                        # Were it asked once more, the run would be well.
                        service.faults.on("get_info", faults.Refuse(), times=20)

                losses = await train(trainer, 6, befall)
            found = outcome(service, trainer.model_id, losses)

    assert expected == found
    assert "operation" == ear.only(ta.RecoveryDetected).source
    assert 1 == ear.only(ta.RecoveryCompleted).attempt


async def test_a_silence_without_end_is_told(tmp_path: Path) -> None:
    """After a bounded number of questions and attempts, with all of them in the history."""
    service = FakeService(hold_s=0.01)
    with anyio.fail_after(20):
        async with service.session(retry=ONCE) as session:
            with pytest.raises(RecoveryExhaustedError) as caught:
                async with training(
                    session, tmp_path, checkpoints=EVERY_2, recovery=recovery(max_attempts=2)
                ) as trainer:

                    def befall(step: int) -> None:
                        if step == 3:
                            for endpoint in ("optim_step", "get_info", "weights_info"):
                                service.faults.on(endpoint, faults.Refuse())

                    await train(trainer, 6, befall)

    assert 2 == caught.value.attempts
    assert 20 <= len(service.ledger.of("get_info")) < 25
    assert [2] == [one.step for one in Ledger.read(tmp_path).confirmed]


# What is repeated


async def test_data_that_went_to_the_disk_are_repeated_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearly none of them fit in memory; a run that was lost twice gives the same losses."""
    expected = await undisturbed(12)
    spilled: list[int] = []

    class Small(Journal):
        def since(self, checkpoint: int | None) -> Any:
            spilled.append(sum(one.is_spilled for one in self.operations))
            return super().since(checkpoint)

    small = partial(Small, memory_bytes=300)
    monkeypatch.setattr("tinker_async.durable.training.Journal", small)
    service, rng = FakeService(hold_s=0.01), random.Random(3)
    with anyio.fail_after(20):
        async with service.session(retry=QUICK) as session:
            policy = CheckpointPolicy(strategy="last")
            async with training(session, tmp_path, checkpoints=policy) as trainer:
                results = list[Any]()
                for step in trainer.steps(12):
                    if step in (5, 11):
                        await results[-1]
                        service.corrupt(list(service.state.models)[-1])
                    results.append(trainer.forward_backward(batch(rng), "cross_entropy"))
                    trainer.optim_step(ADAM)
                losses = [(await result).metrics["loss:sum"] for result in results]
            found = outcome(service, trainer.model_id, losses)

    assert expected == found
    assert 2 <= len(spilled)
    assert min(spilled) >= 3
    assert max(spilled) >= 10
