"""Durable trainings side by side: recoveries in turn, and a SIGTERM that is for all of them."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import anyio
import pytest
from cancellation.scene import QUICK, until
from durable.program import batch
from durable.toy_training import ADAM, Ear, outcome, recovery, train, training, undisturbed

import tinker_async as ta
from tinker_async import CheckpointPolicy
from tinker_async.durable.ledger import Ledger
from tinker_async.testing import FakeService

EVERY_2 = CheckpointPolicy(save_every=2)


@pytest.mark.parametrize("concurrency", [1, 2])
async def test_so_many_runs_are_brought_back_at_a_time(tmp_path: Path, concurrency: int) -> None:
    """All are lost at once; with a concurrency of 1 each is begun after the one before it."""
    expected = await undisturbed(6)
    service, ear = FakeService(hold_s=0.01), Ear()
    policy = recovery(concurrency=concurrency)
    ready: list[str] = []
    lost = anyio.Event()

    async def one(session: ta.Session, folder: Path) -> None:
        async with training(session, folder, checkpoints=EVERY_2, recovery=policy) as trainer:

            async def befall(step: int) -> None:
                if step == 3:
                    ready.append(trainer.model_id)
                    if len(ready) == 3:
                        for model_id in ready:
                            service.corrupt(model_id)
                        lost.set()
                    await lost.wait()

            losses = await train(trainer, 6, befall)
        assert expected == outcome(service, trainer.model_id, losses)

    with anyio.fail_after(20):
        async with (
            service.session(retry=QUICK, on_event=ear) as session,
            anyio.create_task_group() as tasks,
        ):
            for name in ("a", "b", "c"):
                tasks.start_soon(one, session, tmp_path / name)

    under_way, most = set[str](), 0
    for event in ear.heard:
        if isinstance(event, ta.RecoveryStarted):
            under_way.add(event.run_id)
        elif isinstance(event, ta.RecoveryCompleted):
            under_way.discard(event.run_id)
        most = max(most, len(under_way))
    assert 3 == ear.names.count("Completed")
    assert concurrency == most


async def test_a_lost_session_brings_back_all_its_trainings(tmp_path: Path) -> None:
    """One renewal, and a recovery for each."""
    expected = await undisturbed(6)
    service, ended = FakeService(hold_s=0.01), list[str]()

    async def one(session: ta.Session, name: str) -> None:
        def befall(step: int) -> None:
            if name == "a" and step == 3 and not ended:
                ended.append(session.session_id)
                service.end_session(session.session_id)

        async with training(session, tmp_path / name, checkpoints=EVERY_2) as trainer:
            losses = await train(trainer, 6, befall)
        assert expected == outcome(service, trainer.model_id, losses)

    with anyio.fail_after(20):
        async with (
            service.session(retry=QUICK) as session,
            anyio.create_task_group() as tasks,
        ):
            for name in ("a", "b"):
                tasks.start_soon(one, session, name)

    assert 2 == service.ledger.count("create_session")
    for name in ("a", "b"):
        (record,) = Ledger.read(tmp_path / name).recoveries
        assert "completed" == record.outcome


# SIGTERM


class Program:
    """Trainings that go on until they are ended, and note how."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.codes: dict[str, object] = {}
        self.at_work = {name: anyio.Event() for name in ("first", "quick", "slow")}
        self.may_end = anyio.Event()
        """For the first one, which ends by itself."""

    def saved(self, name: str) -> str:
        """Why a training's newest checkpoint was taken."""
        return Ledger.read(self.folder / name).confirmed[-1].reason

    async def run(self, session: ta.Session, name: str, pause_s: float) -> None:
        """One training."""
        policy = CheckpointPolicy(save_every=10**6)
        try:
            async with training(
                session, self.folder / name, checkpoints=policy, grace_s=10.0
            ) as trainer:
                rng = random.Random(3)
                for _ in trainer.steps(1 if name == "first" else 10**6):
                    trainer.forward_backward(batch(rng), "cross_entropy")
                    await anyio.sleep(pause_s)
                    await trainer.optim_step(ADAM)
                    self.at_work[name].set()
                await self.may_end.wait()
        except SystemExit as end:
            # Where nobody catches the first one, it is the end of all: each has saved by now.
            assert ["signal", "signal"] == [self.saved("quick"), self.saved("slow")]
            self.codes[name] = end.code
        else:
            self.codes[name] = None


async def test_a_sigterm_lets_each_training_save_before_any_ends(tmp_path: Path) -> None:
    """The quick one waits for the slow one, and both end with 143; the one that held the receiver
    has ended before, and another has taken it over."""
    assert signal.SIG_DFL is signal.getsignal(signal.SIGTERM)
    service, program = FakeService(hold_s=0.01), Program(tmp_path)
    with anyio.fail_after(20):
        async with (
            service.session(retry=QUICK) as session,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(program.run, session, "first", 0.0)
            await program.at_work["first"].wait()
            tasks.start_soon(program.run, session, "quick", 0.001)
            tasks.start_soon(program.run, session, "slow", 0.05)
            await program.at_work["quick"].wait()
            await program.at_work["slow"].wait()
            program.may_end.set()
            await until(
                lambda: (
                    "first" in program.codes
                    and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
                ),
                lambda: program.codes,
            )
            signal.raise_signal(signal.SIGTERM)

    assert {"first": None, "quick": 143, "slow": 143} == program.codes
    assert "exit" == program.saved("first")
    assert signal.SIG_DFL is signal.getsignal(signal.SIGTERM)


async def test_two_trainings_in_one_task_both_save_at_a_sigterm(tmp_path: Path) -> None:
    """Though the end of the inner one ends the outer one's loop."""
    service = FakeService(hold_s=0.01)
    policy = CheckpointPolicy(save_every=10**6)
    with anyio.fail_after(20):
        async with service.session(retry=QUICK) as session:
            with pytest.raises(SystemExit) as caught:
                async with (
                    training(session, tmp_path / "a", checkpoints=policy) as outer,
                    training(session, tmp_path / "b", checkpoints=policy) as inner,
                ):
                    rng = random.Random(3)
                    for step in outer.steps(10**6):
                        for trainer in (outer, inner):
                            trainer.forward_backward(batch(rng), "cross_entropy")
                            await trainer.optim_step(ADAM)
                        if step == 2:
                            signal.raise_signal(signal.SIGTERM)

    assert 143 == caught.value.code
    for name in ("a", "b"):
        first = Ledger.read(tmp_path / name).confirmed[0]
        assert "signal" == first.reason
        assert first.step >= 2
