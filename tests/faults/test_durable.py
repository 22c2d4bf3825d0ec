"""A durable training meets every kind of fault, once and every time, in each of its requests.

It ends with the losses of an undisturbed one or with a documented error, never without an end; and
the next start, without the fault, goes on from what is on record to the same losses.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from faults.calls import ADAM, BASE_MODEL, DATA
from faults.cells import POLICY, TIMEOUT_S, tasks_of_the_loop
from faults.reasons import BILLING_PAUSE_S, ONE_OF_EACH, Case, meaning
from faults.virtual_asyncio import virtual_backends

from tinker_async import (
    CheckpointPolicy,
    Ledger,
    RecoveryExhaustedError,
    RecoveryPolicy,
    RequestFailedError,
    RequestTimeoutError,
    Session,
    TinkerError,
)
from tinker_async.testing import FakeService

T = TypeVar("T")

VIRTUAL = pytest.mark.parametrize("anyio_backend", virtual_backends(), ids=["asyncio", "trio"])
EACH_STEP = CheckpointPolicy(save_every=1, keep_last=1)
RECOVERY = RecoveryPolicy(enabled=True, backoff_s=1.0, poll_interval_s=20.0, fallback=0)
PAUSE_S = 21.0
"""After each step: heartbeats and looks at the run come in between."""
LOST_AT, STARTED_AGAIN_AT, STEPS = 1, 2, 3

ENDS = (RecoveryExhaustedError, RequestFailedError, RequestTimeoutError)
"""Besides what the fault itself means: nothing helped, the run stays lost, the time was over."""
MET = [
    case
    for case in ONE_OF_EACH
    if case.group not in {"slow", "lost", "busy", "limited", "asked again"}
]
"""The others are sent again like some of these: that is the matrix's matter."""
REQUESTS = (
    *("create_model", "forward_backward", "optim_step", "retrieve_future"),
    *("save_weights", "run_checkpoints", "delete_checkpoint"),
    *("get_info", "training_run", "session_heartbeat"),
    *("weights_info", "load_weights"),
)
"""For training, for saving and tidying, for finding a loss, for loading."""


@pytest.fixture(autouse=True)
def threads_are_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual time does not wait for threads: what waits for the disk does so in the loop."""

    async def run_sync(function: Callable[..., T], *arguments: Any, **_: Any) -> T:
        await anyio.lowlevel.checkpoint()
        return function(*arguments)

    monkeypatch.setattr(anyio.to_thread, "run_sync", run_sync)
    monkeypatch.setattr(os, "fsync", lambda _: None)


async def undisturbed() -> dict[int, float]:
    """The losses of the same training on a plain client."""
    losses = {}
    async with FakeService(base_models=(BASE_MODEL,)).session() as session:
        trainer = await session.create_lora_training_client(BASE_MODEL, rank=8, seed=7)
        for step in range(STEPS):
            result = trainer.forward_backward(DATA, "cross_entropy")
            await trainer.optim_step(ADAM)
            losses[step] = (await result).metrics["loss:sum"]
    return losses


async def program(service: FakeService, folder: Path) -> dict[int, float]:
    """Train, lose the run, end, start again; return the losses of the steps that were left."""
    losses: dict[int, float] = {}
    async with service.session(
        timeout=TIMEOUT_S, retry=POLICY, billing_pause_s=BILLING_PAUSE_S
    ) as session:
        for until in (STARTED_AGAIN_AT, STEPS):
            await train(session, service, folder, until, losses)
    return losses


async def train(
    session: Session, service: FakeService, folder: Path, until: int, losses: dict[int, float]
) -> None:
    async with session.durable_training(
        folder, base_model=BASE_MODEL, rank=8, seed=7, checkpoints=EACH_STEP, recovery=RECOVERY
    ) as trainer:
        for step in trainer.steps(until):
            if step == LOST_AT:
                service.corrupt(trainer.model_id)
            result = trainer.forward_backward(DATA, "cross_entropy")
            await trainer.optim_step(ADAM)
            losses[step] = (await result).metrics["loss:sum"]
            await trainer.saved()
            await anyio.sleep(PAUSE_S)


async def outcome_of(service: FakeService, folder: Path) -> dict[int, float] | TinkerError:
    try:
        return await program(service, folder)
    except TinkerError as error:
        return error


async def run_cell(endpoint: str, case: Case, folder: Path, *, always: bool) -> None:
    """Meet a fault; then start again without it."""
    service, losses = FakeService(base_models=(BASE_MODEL,)), await undisturbed()
    rule = service.faults.on(endpoint, case.fault, times=None if always else 1)
    before = tasks_of_the_loop()
    with anyio.fail_after(100 * TIMEOUT_S):
        found = await outcome_of(service, folder)
        rule.remove()
        assert rule.hits >= 1, "it met no fault"
        assert before == tasks_of_the_loop(), "tasks are left"
        assert service.ledger.pending() == []
        if isinstance(found, TinkerError):
            assert always or not case.repeated, f"one of these ends it: {found!r}"
            assert type(found) in {case.error, meaning(case), *ENDS}, f"{found!r}"
            assert found.hint, f"{found!r} has no hint"
        else:
            assert found == losses
        again = await program(service, folder)
    assert again.items() <= losses.items()
    with Ledger(folder) as ledger:
        newest = ledger.account.confirmed[-1]
        assert STEPS == newest.step
        assert newest.number == len(ledger.account.entries)


@VIRTUAL
@pytest.mark.parametrize("endpoint", REQUESTS)
async def test_a_durable_training_comes_through_every_fault(
    endpoint: str, tmp_path: Path, anyio_backend: Any
) -> None:
    wrong = []
    # What lasts is told by the policy, which is the same on all loops.
    lengths = (False,) if anyio_backend[0] == "trio" else (False, True)
    cells = [(case, always) for case in MET for always in lengths]
    for number, (case, always) in enumerate(cells):
        if not case.fault.fits(endpoint):
            continue
        try:
            await run_cell(endpoint, case, tmp_path / str(number), always=always)
        except Exception as error:  # noqa: BLE001  # each cell has its own line
            wrong.append(_report(f"{case} {'always' if always else 'once'}", error))
    assert wrong == [], "\n".join(["", *wrong])


def _report(cell: str, error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    said = (str(error).splitlines() or [""])[0] or place.line
    return f"{cell}: {type(error).__name__}: {said} ({place.name}:{place.lineno})"
