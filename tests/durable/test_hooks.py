"""The policy's own functions: called with what they need, for so long, and never in charge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from cancellation.scene import QUICK
from durable.toy_training import Ear, lost_at, outcome, recovery, train, training, undisturbed

import tinker_async as ta
from tinker_async import CheckpointPolicy, RecoveryExhaustedError, SupersededError
from tinker_async.durable.ledger import Ledger
from tinker_async.testing import FakeService, faults

EVERY_2 = CheckpointPolicy(save_every=2)


async def lost_once(
    tmp_path: Path,
    service: FakeService,
    ear: Ear,
    policy: ta.RecoveryPolicy,
    until: str = "Completed",
) -> Any:
    """Six steps, the run is lost at the fourth, and the block is left after an event."""
    with anyio.fail_after(20):
        async with service.session(retry=QUICK, on_event=ear) as session:
            async with training(session, tmp_path, checkpoints=EVERY_2, recovery=policy) as trainer:
                losses = await train(trainer, 6, lost_at(3, service, trainer))
                await ear.until(until)
            return outcome(service, trainer.model_id, losses)


@pytest.mark.parametrize("waits", [False, True], ids=["function", "coroutine"])
async def test_a_recovery_calls_its_hook_with_both_clients(tmp_path: Path, *, waits: bool) -> None:
    """The old one is closed, the new one is the run's, and the checkpoint is what it came from."""
    service, ear, called = FakeService(hold_s=0.01), Ear(), []

    def plain(
        old: ta.TrainingClient, new: ta.TrainingClient, candidate: ta.Candidate | None
    ) -> None:
        with pytest.raises(SupersededError):
            old.optim_step(ta.AdamParams())
        called.append((old.model_id, new.model_id, candidate))

    async def waiting(
        old: ta.TrainingClient, new: ta.TrainingClient, candidate: ta.Candidate | None
    ) -> None:
        assert "toy" == (await new.get_info()).model_data.model_name
        plain(old, new, candidate)

    policy = recovery(on_recovery=waiting if waits else plain)
    assert await undisturbed(6) == await lost_once(tmp_path, service, ear, policy)
    ((old_id, new_id, candidate),) = called
    completed = ear.only(ta.RecoveryCompleted)
    assert (completed.run_id, completed.new_run_id) == (old_id, new_id)
    assert candidate is not None
    assert (2, completed.checkpoint) == (candidate.step, candidate.path)
    assert [] == [event for event in ear.heard if isinstance(event, ta.RecoveryFailed)]


async def raises(*_: object) -> None:
    raise ZeroDivisionError("mine")


async def sleeps(*_: object) -> None:
    await anyio.sleep_forever()


@pytest.mark.parametrize(
    ("hook", "error"), [(raises, "ZeroDivisionError"), (sleeps, "TimeoutError")]
)
async def test_a_hook_that_fails_or_is_late_undoes_nothing(
    tmp_path: Path, hook: Any, error: str
) -> None:
    """It is told as an event; the run goes on as if there were none."""
    service, ear = FakeService(hold_s=0.01), Ear()
    policy = recovery(on_recovery=hook, hook_time_s=0.02)

    found = await lost_once(tmp_path, service, ear, policy, until="Failed")
    assert await undisturbed(6) == found
    failed = ear.only(ta.RecoveryFailed)
    assert ("on_recovery", error, None) == (failed.stage, failed.error, failed.delay_s)
    assert ["completed"] == [one.outcome for one in Ledger.read(tmp_path).recoveries]


async def test_work_goes_on_while_a_hook_takes_its_time(tmp_path: Path) -> None:
    """The calls of the program do not wait for it."""
    service, ear, trained = FakeService(hold_s=0.01), Ear(), anyio.Event()

    async def hook(*_: object) -> None:
        await trained.wait()

    policy = recovery(on_recovery=hook, hook_time_s=15.0)
    with anyio.fail_after(10):
        async with (
            service.session(retry=QUICK, on_event=ear) as session,
            training(session, tmp_path, checkpoints=EVERY_2, recovery=policy) as trainer,
        ):
            await train(trainer, 6, lost_at(3, service, trainer))
            trained.set()

    assert "Completed" == ear.names[-1]


@pytest.mark.parametrize("way", ["function", "raises", "late"])
async def test_what_cannot_be_brought_back_calls_its_hook(tmp_path: Path, way: str) -> None:
    """With the run's id and the error, before that leaves the block, whatever the hook does."""
    service, ear, called = FakeService(hold_s=0.01), Ear(), []
    service.faults.on("load_weights", faults.Status(404))

    def function(run_id: str, error: BaseException) -> None:
        called.append((run_id, error))

    hook: Any = {"function": function, "raises": raises, "late": sleeps}[way]
    policy = recovery(on_failure=hook, hook_time_s=0.02, fallback=0)
    with pytest.raises(RecoveryExhaustedError) as caught:
        await lost_once(tmp_path, service, ear, policy)

    told = [event for event in ear.heard if isinstance(event, ta.RecoveryFailed)]
    assert ["on_failure"] * (way != "function") == [
        one.stage for one in told if one.stage[0] == "o"
    ]
    if way == "function":
        assert [(caught.value.run_id, caught.value)] == called
