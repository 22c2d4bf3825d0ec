"""What a durable run tells, as events of its session: its checkpoints, and each step of a recovery.

The rule: each is emitted once, at the moment that it names, and written to the log as well.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from tinker_async.events import DurableEvent, Events
from tinker_async.logs import log


class CheckpointSaved(DurableEvent, frozen=True, tag=True, kw_only=True):
    """A checkpoint is confirmed."""

    number: int
    step: int
    path: str
    reason: str
    duration_s: float


class CheckpointFailed(DurableEvent, frozen=True, tag=True, kw_only=True):
    """A save failed; training goes on, and another is tried later."""

    number: int
    step: int
    reason: str
    error: str
    message: str


class CheckpointDeleted(DurableEvent, frozen=True, tag=True, kw_only=True):
    """A checkpoint was deleted, since newer ones are there."""

    number: int
    step: int
    path: str


class RunResumed(DurableEvent, frozen=True, tag=True, kw_only=True):
    """A new program goes on with a run that an earlier one began."""

    step: int
    checkpoint: str | None
    """None where there was none, and the run begins again."""
    generation: int


class RecoveryDetected(DurableEvent, frozen=True, tag=True, kw_only=True):
    """A run is lost: a sign of it was confirmed."""

    source: Literal["corrupted", "operation", "poisoned", "session"]
    """The run is marked on the server, one of its operations failed, its order is lost here, or
    its session is over."""
    error: str
    message: str
    step: int


class RecoveryPollError(DurableEvent, frozen=True, tag=True, kw_only=True):
    """The run's state could not be read; it is looked at again later."""

    error: str
    message: str


class RecoveryStarted(DurableEvent, frozen=True, tag=True, kw_only=True):
    """An attempt begins."""

    attempt: int
    strategy: str
    generation: int


class RecoveryCheckpointSelected(DurableEvent, frozen=True, tag=True, kw_only=True):
    """The checkpoint that an attempt goes on from."""

    attempt: int
    strategy: str
    checkpoint: str | None
    """None for the model as it was made."""
    step: int | None


class RecoveryClientCreated(DurableEvent, frozen=True, tag=True, kw_only=True):
    """There is a new run with the checkpoint's weights; it is not yet verified."""

    attempt: int
    new_run_id: str
    checkpoint: str | None
    generation: int
    duration_s: float
    """Since the attempt began."""


class RecoveryResumed(DurableEvent, frozen=True, tag=True, kw_only=True):
    """The operations since the checkpoint begin to be repeated."""

    new_run_id: str
    operations: int
    """How many there are to repeat."""
    steps_lost: int
    """Steps since the checkpoint, which are computed again."""


class RecoveryCompleted(DurableEvent, frozen=True, tag=True, kw_only=True):
    """The run goes on where it was."""

    new_run_id: str
    attempt: int
    strategy: str
    checkpoint: str | None
    generation: int
    steps_lost: int
    """Steps that were computed again."""
    operations_replayed: int
    duration_s: float
    """Since the loss was detected."""


class RecoveryFailed(DurableEvent, frozen=True, tag=True, kw_only=True):
    """An attempt failed, or a hook did (then `stage` is `on_recovery` or `on_failure`)."""

    attempt: int
    stage: str
    """The state in which it failed, or the hook's name."""
    checkpoint: str | None
    error: str
    message: str
    delay_s: float | None
    """Until the next attempt; None where there is none."""


class RecoveryExhausted(DurableEvent, frozen=True, tag=True, kw_only=True):
    """There is nothing left to try; `RecoveryExhaustedError` leaves the block."""

    attempts: int
    checkpoints_tried: tuple[str, ...]
    steps_lost: int
    duration_s: float


class RecoverySuperseded(DurableEvent, frozen=True, tag=True, kw_only=True):
    """A call came for a generation that was replaced, and was refused."""

    operation: str
    generation: int
    current: int


class RecoveryCancelled(DurableEvent, frozen=True, tag=True, kw_only=True):
    """The program's block was cancelled during a recovery."""

    state: str
    attempt: int


_NAMES = {
    CheckpointSaved: "checkpoint_saved",
    CheckpointFailed: "checkpoint_failed",
    CheckpointDeleted: "checkpoint_deleted",
    RunResumed: "run_resumed",
    RecoveryDetected: "recovery_detected",
    RecoveryPollError: "recovery_poll_error",
    RecoveryStarted: "recovery_started",
    RecoveryCheckpointSelected: "recovery_checkpoint_selected",
    RecoveryClientCreated: "recovery_client_created",
    RecoveryResumed: "recovery_resumed",
    RecoveryCompleted: "recovery_completed",
    RecoveryFailed: "recovery_failed",
    RecoveryExhausted: "recovery_exhausted",
    RecoverySuperseded: "recovery_superseded",
    RecoveryCancelled: "recovery_cancelled",
}
"""The log's name for each."""

_ERRORS = (RecoveryExhausted,)
_QUIET = (CheckpointSaved, CheckpointDeleted)
_GOOD = (RunResumed, RecoveryResumed, RecoveryCompleted)


def tell(events: Events, event: DurableEvent) -> None:
    """Emit an event to the session's listeners and write it to the log. Never waits or fails."""
    write = log.warning
    if isinstance(event, _ERRORS):
        write = log.error
    elif isinstance(event, _QUIET):
        write = log.debug
    elif isinstance(event, _GOOD):
        write = log.info
    fields = msgspec.structs.asdict(event)
    if "error" in fields:
        fields["error_class"] = fields.pop("error")
    write(_NAMES[type(event)], **fields)
    events.emit(event)
