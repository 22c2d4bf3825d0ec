"""How a durable training begins: anew, or where an earlier program of the same run came to.

The rule: a run that has checkpoints never begins again by itself. Where none of them can be used,
that is an error, and everything stays as it is.
"""

from __future__ import annotations

import time

import anyio
import msgspec

from tinker_async.durable.checkpoint_policy import CheckpointPolicy
from tinker_async.durable.events import RunResumed, tell
from tinker_async.durable.making import Maker, is_at_fault
from tinker_async.durable.records import CheckpointEntry, RecoveryRecord
from tinker_async.durable.recovery_policy import Candidate, RecoveryPolicy, choose
from tinker_async.durable.saving import Disk
from tinker_async.errors import RecoveryExhaustedError, TinkerError
from tinker_async.events import Events
from tinker_async.training import TrainingClient


class Start(msgspec.Struct, frozen=True, eq=False):
    """What a durable training begins with."""

    client: TrainingClient
    candidate: Candidate | None
    """The checkpoint that it goes on from; None for a model that was made just now."""
    generation: int

    @property
    def entry(self) -> CheckpointEntry | None:
        """What is on record of the checkpoint."""
        return None if self.candidate is None else self.candidate.entry

    @property
    def step(self) -> int:
        """Steps that are in it."""
        return 0 if self.entry is None else self.entry.step

    @property
    def mark(self) -> int | None:
        """For `Journal.mark_loaded`: 0 is a checkpoint that is not of this run."""
        if self.candidate is None:
            return None
        return 0 if self.entry is None else self.entry.number


async def started(
    disk: Disk,
    maker: Maker,
    *,
    checkpoints: CheckpointPolicy,
    recovery: RecoveryPolicy,
    events: Events,
    reached: int = 0,
) -> Start:
    """Make the model of a run, or load it.

    Args:
        disk: The record.
        maker: Makes runs.
        checkpoints: By which the best is known.
        recovery: What is tried first.
        events: Of the session.
        reached: The step that the last program had come to.

    Raises:
        RecoveryExhaustedError: There are checkpoints, and none can be used.
        TinkerError: The server cannot be asked, or does not make such a model.
    """
    began_s = anyio.current_time()
    await _settle_pending(disk, maker)
    account = disk.ledger.account
    was_begun = bool(account.confirmed)
    is_again = bool(account.entries or account.recoveries or reached)
    generation = account.generation + 1 if is_again else 1
    candidates = choose(
        account.entries,
        recovery,
        metric=checkpoints.metric,
        mode=checkpoints.mode,
        now_s=time.time(),
    )
    history: list[str] = []
    last: TinkerError | None = None
    for candidate in candidates:
        try:
            client = await maker.loaded(candidate.path)
            if candidate.entry is not None:
                await maker.check_weights(client, candidate.entry)
        except TinkerError as error:
            if not is_at_fault(error):
                raise
            history.append(f"{candidate.path}: {type(error).__name__}: {error}")
            last = error
            continue
        start = Start(client, candidate, generation)
        await _told(start, disk, events, reached, anyio.current_time() - began_s)
        return start
    if was_begun or candidates:
        raise _exhausted(history, account.confirmed) from last
    start = Start(await maker.anew(), None, generation)
    if is_again:
        await _told(start, disk, events, reached, anyio.current_time() - began_s)
    return start


async def _settle_pending(disk: Disk, maker: Maker) -> None:
    """Find out what became of saves that an earlier program did not see the end of."""
    for entry in disk.ledger.account.pending:
        path = await maker.path_of(entry)
        if path is None:
            await disk.call(disk.ledger.fail, entry.number, "it was never there")
        else:
            await disk.call(disk.ledger.confirm, entry.number, path)


async def _told(start: Start, disk: Disk, events: Events, reached: int, seconds: float) -> None:
    entry, path = start.entry, None if start.candidate is None else start.candidate.path
    record = RecoveryRecord(
        kind="resume",
        generation=start.generation,
        from_run="" if entry is None else entry.run_id,
        to_run=start.client.model_id,
        checkpoint=None if entry is None else entry.number,
        cause="the program was started again",
        steps_replayed=max(reached - start.step, 0),
        seconds=seconds,
    )
    await disk.call(disk.ledger.recovered, record)
    event = RunResumed(
        run_id=start.client.model_id,
        step=start.step,
        checkpoint=path,
        generation=start.generation,
    )
    tell(events, event)


def _exhausted(
    history: list[str], confirmed: tuple[CheckpointEntry, ...]
) -> RecoveryExhaustedError:
    lines = history or [f"{one.path}: the server has deleted it by now" for one in confirmed]
    run_id = confirmed[-1].run_id if confirmed else ""
    return RecoveryExhaustedError(
        f"none of the run's {len(lines)} checkpoints can be used: {lines[0]}",
        run_id=run_id,
        attempts=len(history),
        history=tuple(lines),
        hint="read history; to begin the run again, give another run_dir",
    )
