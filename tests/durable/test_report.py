"""What a run went through and what that cost: over programs, as text and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest
from cancellation.scene import QUICK
from durable.entries import entry
from durable.toy_training import lost_at, recovery, train, training

from tinker_async import (
    Account,
    CheckpointPolicy,
    RecoveryExhaustedError,
    RecoveryRecord,
    RunIncident,
    RunReport,
)
from tinker_async.durable.ledger import Ledger
from tinker_async.durable.reached import FILE, Reached
from tinker_async.testing import FakeService, faults


def attempt(outcome: str = "completed", **fields: object) -> RecoveryRecord:
    """A record of one attempt."""
    usual = {
        "kind": "recovery",
        "generation": 2,
        "from_run": "a",
        "to_run": "b",
        "checkpoint": 1,
        "cause": "session: it ended",
        "outcome": outcome,
    }
    return RecoveryRecord(**{**usual, **fields})  # type: ignore[arg-type]  # as a record has them


def test_attempts_that_follow_each_other_are_one_incident() -> None:
    """Up to the one that is completed; what came to nothing is one as well."""
    account = Account(
        entries=(entry(1), entry(2)),
        recoveries=(
            attempt("failed", error="first", seconds=1.0, checkpoint=2),
            attempt("failed", error="second", seconds=2.0, attempt=2),
            attempt(steps_replayed=4, operations_replayed=9, seconds=3.5, attempt=3, at=7.0),
            attempt("failed", from_run="b", to_run=None, error="third", seconds=1.0),
            attempt(kind="resume", from_run="b", to_run="c", cause="again", steps_replayed=2),
            attempt(from_run="c", to_run="d", steps_replayed=1, operations_replayed=2),
        ),
    )
    report = RunReport.of(account)

    expected = RunIncident(
        kind="recovery",
        cause="session: it ended",
        from_run="a",
        to_run="b",
        checkpoint=1,
        step=10,
        attempts=3,
        outcome="completed",
        error="second",
        steps_replayed=4,
        operations_replayed=9,
        seconds=3.5,
        at=7.0,
    )
    assert expected == report.incidents[0]
    assert ["recovery", "recovery", "resume", "recovery"] == [one.kind for one in report.incidents]
    assert (2, 1, 1, 6) == (report.recoveries, report.resumes, report.failed, report.attempts)
    assert (7, 11, 4.5) == (
        *(report.steps_replayed, report.operations_replayed),
        report.seconds_lost,
    )
    assert (20, 2) == (report.step, report.checkpoints)


def test_a_report_is_text_and_json() -> None:
    """The totals first; each incident has a line, and is the same after a trip through JSON."""
    report = RunReport.of(
        Account(
            entries=(entry(1),),
            recoveries=(
                attempt(steps_replayed=4, operations_replayed=9, seconds=1.25),
                attempt("failed", from_run="b", checkpoint=None, error="no more"),
            ),
        )
    )
    text = str(report).splitlines()
    found = json.loads(json.dumps(report.as_json()))

    assert 3 == len(text)
    assert "4 steps repeated" in text[0]
    assert "went on from step 10 (1 attempts, 4 steps and 9 operations repeated, 1.2 s)" in text[1]
    assert "failed: no more" in text[2]
    assert {"recoveries": 1, "failed": 1, "steps_replayed": 4}.items() <= found["totals"].items()
    assert ["a", "b"] == [one["from_run"] for one in found["incidents"]]


def test_a_run_without_incidents_has_a_report() -> None:
    """Of nothing, too."""
    report = RunReport.of(Account())

    assert (0, 0, 0.0, ()) == (
        *(report.step, report.attempts),
        *(report.seconds_lost, report.incidents),
    )
    assert 1 == len(str(report).splitlines())


async def test_a_report_spans_programs(tmp_path: Path) -> None:
    """A recovery in the first one, its death, and what the second one does again."""
    service = FakeService(hold_s=0.01)
    policy = CheckpointPolicy(save_every=4, on_exit=False)
    with anyio.fail_after(20):
        async with service.session(retry=QUICK) as session:
            async with training(session, tmp_path, checkpoints=policy) as trainer:
                await train(trainer, 7, lost_at(6, service, trainer))
            async with training(session, tmp_path, checkpoints=policy) as trainer:
                assert 4 == trainer.step
                report = trainer.report()

    first, second = report.incidents
    assert ("recovery", 2, 6, 1) == (
        *(first.kind, first.steps_replayed),
        *(first.operations_replayed, first.attempts),
    )
    assert ("resume", 3, 0) == (second.kind, second.steps_replayed, second.operations_replayed)
    assert 0 < first.seconds <= report.seconds_lost
    assert report == RunReport.of(Ledger.read(tmp_path))


async def test_a_program_that_died_before_its_first_checkpoint_is_in_the_report(
    tmp_path: Path,
) -> None:
    """All of its steps are done again."""
    service = FakeService(hold_s=0.01)
    policy = CheckpointPolicy(strategy="last", on_exit=False)
    with anyio.fail_after(20):
        async with service.session(retry=QUICK) as session:
            for begun in (0, 3):
                async with training(session, tmp_path, checkpoints=policy) as trainer:
                    assert 0 == trainer.step
                    assert bool(begun) is bool(trainer.report().incidents)
                    await train(trainer, 3)

    (one,) = RunReport.of(Ledger.read(tmp_path)).incidents
    assert ("resume", None, 0, 3) == (one.kind, one.checkpoint, one.step, one.steps_replayed)


async def test_what_was_not_brought_back_is_in_the_report(tmp_path: Path) -> None:
    """With the error of the last attempt."""
    service = FakeService(hold_s=0.01)
    service.faults.on("load_weights", faults.Status(404))
    policy = CheckpointPolicy(save_every=2)
    with anyio.fail_after(20):
        async with service.session(retry=QUICK) as session:
            with pytest.raises(RecoveryExhaustedError):
                async with training(
                    session, tmp_path, checkpoints=policy, recovery=recovery()
                ) as trainer:
                    await train(trainer, 6, lost_at(5, service, trainer))

    report = RunReport.of(Ledger.read(tmp_path))
    (one,) = report.incidents
    assert ("failed", 2, None) == (one.outcome, one.attempts, one.to_run)
    assert "NotFoundError" in (one.error or "")
    assert (1, 0) == (report.failed, report.recoveries)


@pytest.mark.parametrize("content", [b"", b"junk", b"\xff" * 30, b"12"])
def test_a_step_that_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    """It is a number for the report, and no reason to fail."""
    (tmp_path / FILE).write_bytes(content)
    reached = Reached(tmp_path)
    reached.note(7)
    reached.note(123)
    reached.close()
    reached.close()
    reached.note(8)

    assert (12 if content == b"12" else 0) == reached.before
    assert 123 == Reached(tmp_path).before


def test_a_folder_that_takes_no_file_is_no_reason_to_fail(tmp_path: Path) -> None:
    """There is no number then."""
    (tmp_path / FILE).mkdir()
    reached = Reached(tmp_path)
    reached.note(1)
    reached.close()

    assert 0 == reached.before
