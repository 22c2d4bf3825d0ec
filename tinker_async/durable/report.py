"""What a durable run went through and what that cost, over all the programs that worked on it.

The rule: it is told from the record alone, so that anybody can, while the run goes on or after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import msgspec

from tinker_async.durable.records import Account, RecoveryRecord


class RunIncident(msgspec.Struct, frozen=True, kw_only=True):
    """One loss of the run, or of its program."""

    kind: Literal["recovery", "resume"]
    """The run was lost and the program lived; or the program ended, and another went on."""
    cause: str
    from_run: str
    """The training run that was lost, or that the checkpoint is of."""
    to_run: str | None
    """The one that went on; None where none did."""
    checkpoint: int | None
    """The number of the checkpoint that it went on from; None is the run's beginning."""
    step: int
    """Of that checkpoint."""
    attempts: int
    """How many there were, the last one included."""
    outcome: Literal["completed", "failed"]
    error: str | None
    """Of the last attempt that failed."""
    steps_replayed: int
    """Steps that were complete and were computed again."""
    operations_replayed: int
    """Calls that were repeated by the client; after a new start the program itself makes them."""
    seconds: float
    """From the loss being noticed (or the new start) to work going on."""
    at: float
    """When that was, in seconds since 1970."""


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a durable run went through. Made by `DurableTrainingClient.report`, or `of` an account.

    Totals are over all incidents, those included that came to nothing.
    """

    base_model: str
    step: int
    """Of the newest confirmed checkpoint."""
    checkpoints: int
    """How many are there."""
    incidents: tuple[RunIncident, ...]
    """Oldest first."""

    @classmethod
    def of(cls, account: Account) -> Self:
        """Make the report of what is on record."""
        confirmed = account.confirmed
        return cls(
            base_model="" if account.run is None else account.run.base_model,
            step=confirmed[-1].step if confirmed else 0,
            checkpoints=len(confirmed),
            incidents=tuple(_incident(group, account) for group in _groups(account.recoveries)),
        )

    @property
    def recoveries(self) -> int:
        """Losses of the run that it was brought back from."""
        return sum(one.kind == "recovery" and one.outcome == "completed" for one in self.incidents)

    @property
    def resumes(self) -> int:
        """New starts of the program."""
        return sum(one.kind == "resume" for one in self.incidents)

    @property
    def failed(self) -> int:
        """Losses that no attempt brought the run back from."""
        return sum(one.outcome == "failed" for one in self.incidents)

    @property
    def attempts(self) -> int:
        """Attempts in all."""
        return sum(one.attempts for one in self.incidents)

    @property
    def steps_replayed(self) -> int:
        """Steps that were computed again."""
        return sum(one.steps_replayed for one in self.incidents)

    @property
    def operations_replayed(self) -> int:
        """Calls that were repeated."""
        return sum(one.operations_replayed for one in self.incidents)

    @property
    def seconds_lost(self) -> float:
        """Seconds in which no work went on."""
        return sum(one.seconds for one in self.incidents)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON, totals included."""
        totals = {
            name: getattr(self, name)
            for name in (
                *("recoveries", "resumes", "failed", "attempts"),
                *("steps_replayed", "operations_replayed", "seconds_lost"),
            )
        }
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return {**fields, "totals": totals}

    def as_text(self) -> str:
        """Return it as text: a line with the totals, then one for each incident."""
        first = (
            f"{self.base_model}: {self.checkpoints} checkpoints, the newest at step {self.step}; "
            f"{self.recoveries} recoveries and {self.resumes} new starts, {self.failed} failed; "
            f"{self.steps_replayed} steps repeated, {self.seconds_lost:.1f} s lost"
        )
        return "\n".join([first, *(_line(one) for one in self.incidents)])

    def __str__(self) -> str:
        return self.as_text()


def _groups(records: Sequence[RecoveryRecord]) -> list[list[RecoveryRecord]]:
    """Return the records by incident: attempts follow each other until one is completed."""
    groups: list[list[RecoveryRecord]] = []
    is_open = False
    for record in records:
        goes_on = is_open and record.kind == "recovery"
        if goes_on and groups[-1][-1].from_run == record.from_run:
            groups[-1].append(record)
        else:
            groups.append([record])
        is_open = record.kind == "recovery" and record.outcome == "failed"
    return groups


def _incident(group: Sequence[RecoveryRecord], account: Account) -> RunIncident:
    last = group[-1]
    return RunIncident(
        kind=last.kind,
        cause=group[0].cause,
        from_run=last.from_run,
        to_run=last.to_run if last.outcome == "completed" else None,
        checkpoint=last.checkpoint,
        step=0 if last.checkpoint is None else account.entry(last.checkpoint).step,
        attempts=len(group),
        outcome=last.outcome,
        error=next((one.error for one in reversed(group) if one.error), None),
        steps_replayed=sum(one.steps_replayed for one in group),
        operations_replayed=sum(one.operations_replayed for one in group),
        seconds=last.seconds,
        at=last.at,
    )


def _line(one: RunIncident) -> str:
    where = "the beginning" if one.checkpoint is None else f"step {one.step}"
    what = f"went on from {where}" if one.outcome == "completed" else f"failed: {one.error}"
    return (
        f"- {one.kind}, {one.cause}: {what} ({one.attempts} attempts, {one.steps_replayed} steps "
        f"and {one.operations_replayed} operations repeated, {one.seconds:.1f} s)"
    )
