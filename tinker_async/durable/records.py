"""What is written down about a run: its checkpoints, what became of them, and its recoveries.

Plain data and one fold over it. The rule: a record is never changed, only followed by another
that says what happened since, so that any beginning of the file is a true account of its time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias

import msgspec

from tinker_async.errors import InvalidInputError

CheckpointStatus: TypeAlias = Literal["pending", "confirmed", "deleted", "failed"]

FORMAT = 1
"""Of the file; a reader refuses one that is newer than it knows."""


class RunRecord(msgspec.Struct, frozen=True, kw_only=True, tag="run", omit_defaults=True):
    """What the run is: enough to make its model again as it was at the beginning."""

    base_model: str
    rank: int
    seed: int
    """Of the adapter's first weights: always known, so that the beginning can be repeated."""
    options: dict[str, Any] = msgspec.field(default_factory=dict)
    """The other arguments of its making, as JSON: `train_mlp`, `optimizer`, ..."""
    began_at: float = 0.0
    """Seconds since 1970."""
    format: int = msgspec.field(default_factory=lambda: FORMAT)  # a factory: always written


class CheckpointEntry(
    msgspec.Struct, frozen=True, kw_only=True, tag="checkpoint", omit_defaults=True
):
    """One checkpoint, and where the program stood when it was taken."""

    number: int
    """Counts the checkpoints of the run from 1, in the order in which they were begun."""
    run_id: str
    """The training run on the server whose weights these are."""
    step: int
    """Steps that were complete."""
    name: str
    """Of the checkpoint on the server."""
    generation: int = 1
    """Which of the run's lives on the server it belongs to."""
    epoch: int = 0
    reason: str = "asked"
    """Why it was taken: `steps`, `seconds`, `epoch`, `best`, `exit`, `signal`, `risky`, ..."""
    metrics: dict[str, float] = msgspec.field(default_factory=dict)
    position: Any = None
    """Where the data stood: what the program set, as JSON."""
    random_state: dict[str, Any] = msgspec.field(default_factory=dict)
    """The generators that the program registered, by name."""
    operation: int = 0
    """The journal's number of the last operation that is in these weights."""
    parent: int | None = None
    """The number of the checkpoint before it in this line of weights; None from the beginning."""
    began_at: float = 0.0
    """Seconds since 1970."""
    expires_at: float | None = None
    """When the server will delete it, in seconds since 1970; None never."""
    extra: dict[str, Any] = msgspec.field(default_factory=dict)
    """What its owner keeps with it, as JSON."""
    status: CheckpointStatus = "pending"
    path: str | None = None
    """Of weights and optimizer; None until it is confirmed."""
    sampler_path: str | None = None
    """Of the weights alone, where they were saved for samplers too."""
    fingerprint: tuple[float, ...] | None = None
    """What a few probes scored with these weights, to compare with after a load."""
    ended_at: float | None = None
    """When its status was last settled, in seconds since 1970."""
    error: str | None = None
    """Why it failed."""

    @property
    def is_confirmed(self) -> bool:
        """Whether the server has said that it is there, and nobody has deleted it since."""
        return self.status == "confirmed"

    def has_expired(self, now_s: float) -> bool:
        """Whether the server may have deleted it by then, in seconds since 1970."""
        return self.expires_at is not None and self.expires_at <= now_s


class StatusRecord(msgspec.Struct, frozen=True, kw_only=True, tag="status", omit_defaults=True):
    """What became of a checkpoint."""

    number: int
    status: CheckpointStatus
    at: float
    path: str | None = None
    sampler_path: str | None = None
    fingerprint: tuple[float, ...] | None = None
    error: str | None = None


class RecoveryRecord(msgspec.Struct, frozen=True, kw_only=True, tag="recovery", omit_defaults=True):
    """One attempt to bring the run back, or one start of the program that went on with it."""

    kind: Literal["recovery", "resume"]
    """In the living program, or by a new one."""
    generation: int
    """The one that came of it; of an attempt that failed, the one that would have."""
    from_run: str
    to_run: str | None
    """None where no run came of it."""
    checkpoint: int | None
    """The number of the checkpoint it went on from; None for the run's beginning."""
    cause: str
    attempt: int = 1
    outcome: Literal["completed", "failed"] = "completed"
    error: str | None = None
    steps_replayed: int = 0
    """Steps that were complete and are computed again, by the client or by the new program."""
    operations_replayed: int = 0
    seconds: float = 0.0
    """From the loss being noticed to work going on."""
    at: float = 0.0
    """Seconds since 1970."""


Record: TypeAlias = RunRecord | CheckpointEntry | StatusRecord | RecoveryRecord


class Account(msgspec.Struct, frozen=True):
    """What a row of records comes to."""

    run: RunRecord | None = None
    entries: tuple[CheckpointEntry, ...] = ()
    """By number."""
    recoveries: tuple[RecoveryRecord, ...] = ()
    """Attempts and resumptions, oldest first."""

    def entry(self, number: int) -> CheckpointEntry:
        """Return a checkpoint.

        Raises:
            InvalidInputError: There is none of this number.
        """
        if not 1 <= number <= len(self.entries):
            raise InvalidInputError(f"number: there is no checkpoint {number}", field="number")
        return self.entries[number - 1]

    @property
    def confirmed(self) -> tuple[CheckpointEntry, ...]:
        """The checkpoints that are there, oldest first."""
        return tuple(entry for entry in self.entries if entry.is_confirmed)

    @property
    def pending(self) -> tuple[CheckpointEntry, ...]:
        """Those whose end is not known: after a crash they may be there or not."""
        return tuple(entry for entry in self.entries if entry.status == "pending")

    @property
    def generation(self) -> int:
        """The newest generation that is on record, at least 1."""
        known = [entry.generation for entry in self.entries]
        known += [one.generation for one in self.recoveries if one.outcome == "completed"]
        return max(known, default=1)

    def followed_by(self, record: Record) -> Account:
        """Return the account with one more record.

        Raises:
            InvalidInputError: It does not follow from what is there.
        """
        if isinstance(record, RunRecord):
            _check(self.run is None, "run", "a run is described once")
            return msgspec.structs.replace(self, run=record)
        if isinstance(record, RecoveryRecord):
            return msgspec.structs.replace(self, recoveries=(*self.recoveries, record))
        if isinstance(record, CheckpointEntry):
            follows = record.number == len(self.entries) + 1
            _check(follows, "number", f"checkpoint {record.number} is out of turn")
            return msgspec.structs.replace(self, entries=(*self.entries, record))
        return self._settled(record)

    def _settled(self, record: StatusRecord) -> Account:
        old = self.entry(record.number)
        allowed = (old.status, record.status) in _FOLLOWS
        _check(allowed, "status", f"{old.status} cannot become {record.status}")
        new = msgspec.structs.replace(
            old,
            status=record.status,
            ended_at=record.at,
            path=record.path or old.path,
            sampler_path=record.sampler_path or old.sampler_path,
            fingerprint=record.fingerprint or old.fingerprint,
            error=record.error,
        )
        at = record.number - 1
        entries = (*self.entries[:at], new, *self.entries[at + 1 :])
        return msgspec.structs.replace(self, entries=entries)


_FOLLOWS = {
    *(("pending", "confirmed"), ("pending", "failed")),
    *(("failed", "confirmed"), ("confirmed", "failed")),
    *(("confirmed", "deleted"), ("failed", "deleted"), ("confirmed", "confirmed")),
}
"""A save that was given up may turn out to be there, and one that was there may be found gone."""


def account_of(records: Iterable[Record]) -> Account:
    """Return what a row of records comes to.

    Raises:
        InvalidInputError: One does not follow from those before it.
    """
    return functools.reduce(Account.followed_by, records, Account())


def _check(holds: bool, field: str, says: str) -> None:
    if not holds:
        raise InvalidInputError(f"{field}: {says}", field=field)


def check_json(value: Any, field: str) -> Any:
    """Return a value that comes back from the file as it went in.

    Raises:
        InvalidInputError: It is no JSON, or JSON would change it: tuples, keys that are no text,
            numbers that are not finite.
    """
    try:
        same = msgspec.json.decode(msgspec.json.encode(value)) == value
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise InvalidInputError(f"{field}: cannot be kept as JSON: {error}", field=field) from None
    _check(same, field, "JSON would change it: use lists, keys of text and finite numbers")
    return value


def finite(metrics: Mapping[str, float] | None) -> dict[str, float]:
    """The metrics that a file can keep: a loss that is no number says nothing to compare by."""
    return {
        str(name): float(value)
        for name, value in (metrics or {}).items()
        if math.isfinite(float(value))
    }


def lineage(account: Account) -> dict[str, Any]:
    """Return where each checkpoint came from, as JSON: artifacts, and edges between them.

    An artifact is a checkpoint: what the ledger knows of it, the states of generators left out.
    An edge goes from a parent to its child (`trained`), and from a checkpoint to the run that
    went on from it (`recovery` or `resume`). The id `origin` is the model as it was made.
    """
    artifacts = [artifact_of(entry) for entry in account.entries]
    edges: list[dict[str, Any]] = [
        {
            "from": artifact_id(entry.parent),
            "to": artifact_id(entry.number),
            "kind": "trained",
            "run_id": entry.run_id,
            "steps": entry.step - (account.entry(entry.parent).step if entry.parent else 0),
        }
        for entry in account.entries
    ]
    for one in account.recoveries:
        fields = msgspec.to_builtins(one)
        fields.pop("type")
        kind = fields.pop("kind")
        fields["checkpoint"] = artifact_id(one.checkpoint)
        edges.append(
            {"from": artifact_id(one.checkpoint), "to": one.to_run, "kind": kind, **fields}
        )
    run = None
    if account.run is not None:
        run = msgspec.to_builtins(account.run)
        run.pop("type")
    return {"format": FORMAT, "run": run, "artifacts": artifacts, "edges": edges}


def artifact_of(entry: CheckpointEntry) -> dict[str, Any]:
    """Return a checkpoint as an artifact of the lineage."""
    fields: dict[str, Any] = msgspec.to_builtins(entry)
    for name in ("type", "random_state"):
        fields.pop(name, None)
    return {"id": artifact_id(entry.number), "status": entry.status, **fields}


def artifact_id(number: int | None) -> str:
    """Return what a checkpoint is called in the lineage; None is the model as it was made."""
    return "origin" if number is None else f"checkpoint-{number}"
