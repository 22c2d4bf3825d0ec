"""Lineage stores: each record of a ledger once, and no harm from a store that fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import structlog

from tinker_async import (
    AdamParams,
    CheckpointPolicy,
    Datum,
    Ledger,
    ModelInput,
    RecoveryRecord,
)
from tinker_async.ports import LineageStore, export, follow
from tinker_async.testing import FakeService


class Kept:
    """A store that keeps what it is given."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def run(self, facts: dict[str, Any]) -> None:
        self.told.append(("run", facts["base_model"]))

    def artifact(self, artifact_id: str, facts: dict[str, Any]) -> None:
        json.dumps(facts)
        self.told.append((artifact_id, facts["status"]))

    def edge(self, source: str, target: str, kind: str, facts: dict[str, Any]) -> None:
        json.dumps(facts)
        self.told.append((source, target, kind))


def train(folder: Path, store: LineageStore) -> None:
    with Ledger(folder, on_record=follow(store)) as ledger:
        ledger.describe("tiny", 8, 1)
        ledger.begin(run_id="run", name="a", step=1)
        ledger.confirm(1, "tinker://run/weights/a")
        for outcome, to_run in (("failed", None), ("completed", "run2")):
            ledger.recovered(
                RecoveryRecord(
                    kind="recovery",
                    generation=2,
                    from_run="run",
                    to_run=to_run,
                    checkpoint=1,
                    cause="corrupted",
                    outcome=outcome,  # type: ignore[arg-type]  # one of a table's two
                )
            )


def test_a_store_is_told_of_each_record_as_it_is_written(tmp_path: Path) -> None:
    """An attempt that failed made nothing, and is no edge."""
    store = Kept()
    train(tmp_path, store)

    assert [
        ("run", "tiny"),
        ("checkpoint-1", "pending"),
        ("origin", "checkpoint-1", "trained"),
        ("checkpoint-1", "confirmed"),
        ("checkpoint-1", "run2", "recovery"),
    ] == store.told


async def test_a_durable_training_tells_a_store_as_it_goes(tmp_path: Path) -> None:
    """Each checkpoint when it is begun and when it is there."""
    store = Kept()
    policy = CheckpointPolicy(save_every=1, on_exit=False)
    data = [Datum(ModelInput.from_ints([1, 2, 3]), {"target_tokens": [2, 3, 4]})]
    async with FakeService().session() as session:
        training = session.durable_training(
            tmp_path, base_model="toy", rank=4, checkpoints=policy, on_record=follow(store)
        )
        async with training as trainer:
            await trainer.train_step(data, "cross_entropy", AdamParams())

    assert [
        ("run", "toy"),
        ("checkpoint-1", "pending"),
        ("origin", "checkpoint-1", "trained"),
        ("checkpoint-1", "confirmed"),
    ] == store.told


def test_all_that_is_on_record_can_be_handed_on_later(tmp_path: Path) -> None:
    """As it stands by then."""
    train(tmp_path, Kept())
    store = Kept()
    export(Ledger.read(tmp_path), store)

    assert [
        ("run", "tiny"),
        ("checkpoint-1", "confirmed"),
        ("origin", "checkpoint-1", "trained"),
        ("checkpoint-1", "run2", "recovery"),
    ] == store.told


def test_a_store_that_fails_disturbs_nothing(tmp_path: Path) -> None:
    """It is logged, and the ledger goes on."""

    class Broken(Kept):
        def artifact(self, artifact_id: str, facts: dict[str, Any]) -> None:
            raise OSError(artifact_id)

    with structlog.testing.capture_logs() as logs:
        train(tmp_path, Broken())
    assert ["lineage_store_failed"] * 2 == [one["event"] for one in logs]
    assert Ledger.read(tmp_path).entry(1).is_confirmed
    with pytest.raises(OSError, match="checkpoint-1"):
        export(Ledger.read(tmp_path), Broken())
