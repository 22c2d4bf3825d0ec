"""Where weights came from, handed on to whoever keeps such things.

A store takes artifacts (checkpoints) and edges between them. The rule: what a store is given is
plain JSON, each thing once it is on the disk here, and a store that fails disturbs no training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from tinker_async.durable.records import (
    Account,
    CheckpointEntry,
    Record,
    RecoveryRecord,
    RunRecord,
    artifact_id,
    artifact_of,
)
from tinker_async.logs import log


class LineageStore(Protocol):
    """What keeps lineage. Methods must not wait: a store that is far away queues."""

    def run(self, facts: dict[str, Any]) -> None:
        """Take what the run is, once."""
        ...

    def artifact(self, artifact_id: str, facts: dict[str, Any]) -> None:
        """Take a checkpoint, or what is new about one."""
        ...

    def edge(self, source: str, target: str, kind: str, facts: dict[str, Any]) -> None:
        """Take that `target` came from `source`, by `trained`, `recovery` or `resume`."""
        ...


def follow(store: LineageStore) -> Callable[[Record], None]:
    """Return what hands each record of a run on to a store.

    For `Session.durable_training(..., on_record=follow(store))`, or a `Ledger` of one's own.
    What the store raises is logged and forgotten.
    """

    def hand_on(record: Record) -> None:
        try:
            _hand_on(store, record)
        except Exception as error:  # noqa: BLE001  # a user's store must not stop the training
            log.error("lineage_store_failed", error=type(error).__name__, message=str(error))

    return hand_on


def export(account: Account, store: LineageStore) -> None:
    """Hand all that is on record on to a store; what it raises leaves."""
    if account.run is not None:
        _hand_on(store, account.run)
    records: list[Record] = [*account.entries, *account.recoveries]
    for record in records:
        _hand_on(store, record)


def _hand_on(store: LineageStore, record: Record) -> None:
    if isinstance(record, RunRecord):
        store.run(_facts(record))
    elif isinstance(record, CheckpointEntry):
        store.artifact(artifact_id(record.number), artifact_of(record))
        facts: dict[str, Any] = {"run_id": record.run_id, "step": record.step}
        store.edge(artifact_id(record.parent), artifact_id(record.number), "trained", facts)
    elif isinstance(record, RecoveryRecord):
        facts = _facts(record)
        kind = str(facts.pop("kind"))
        if record.to_run is not None:
            store.edge(artifact_id(record.checkpoint), record.to_run, kind, facts)
    else:
        store.artifact(artifact_id(record.number), _facts(record))


def _facts(record: Record) -> dict[str, Any]:
    facts: dict[str, Any] = msgspec.to_builtins(record)
    del facts["type"]
    return facts
