"""The checkpoints of a durable training: taken when the policy says so, written down, tidied up.

The rule: one save at a time, and it goes through the training queue, so that it holds exactly the
operations before it; where the program stood is what it was when the last step ended. A save that
fails costs nothing but itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import msgspec

from tinker_async.data.results import SaveWeightsResponse
from tinker_async.durable.calls import Calls
from tinker_async.durable.checkpoint_policy import CheckpointPolicy, PolicyState, Reason
from tinker_async.durable.events import CheckpointDeleted, CheckpointFailed, CheckpointSaved, tell
from tinker_async.durable.journal import Journal
from tinker_async.durable.ledger import Ledger
from tinker_async.durable.making import Maker
from tinker_async.durable.random_state import Captured
from tinker_async.durable.records import CheckpointEntry
from tinker_async.durable.states import Machine
from tinker_async.durable.validation import Probe, fingerprint
from tinker_async.errors import InvalidInputError, LedgerError, SupersededError, TinkerError
from tinker_async.events import Events
from tinker_async.futures import APIFuture
from tinker_async.logs import log

_LOOK_UP_S = 30.0


class Boundary(msgspec.Struct, frozen=True, kw_only=True):
    """Where the program stood when a step ended."""

    step: int = 0
    epoch: int = 0
    metrics: dict[str, float] = msgspec.field(default_factory=dict)
    position: Any = None
    known_state: dict[str, Any] = msgspec.field(default_factory=dict)
    """Of the random generators, as a checkpoint has it on record."""
    random_state: Captured | None = None
    """Of the random generators; None where it is the known one."""

    def random_json(self) -> dict[str, Any]:
        """Return the random generators' states, for the record."""
        return self.known_state if self.random_state is None else self.random_state.to_json()


class Disk:
    """The ledger, from the loop: its methods wait for the disk, so a worker thread calls them."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._limiter = anyio.CapacityLimiter(1)

    async def call(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call a blocking function, one at a time, to its end also when cancelled."""
        with anyio.CancelScope(shield=True):
            return await anyio.to_thread.run_sync(
                partial(method, *args, **options), limiter=self._limiter
            )


class Saver:
    """Takes the checkpoints of one durable training.

    Args:
        disk: The record.
        journal: Learns which operations a checkpoint holds.
        policy: When to save, and what to keep.
        calls: Whose client saves.
        machine: Whether there is a run that can save.
        maker: What deletes, and looks up.
        events: Of the session.
        tasks: Where saves are waited for.
    """

    def __init__(
        self,
        *,
        disk: Disk,
        journal: Journal,
        policy: CheckpointPolicy,
        calls: Calls,
        machine: Machine,
        maker: Maker,
        events: Events,
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        self._disk = disk
        self._journal = journal
        self._policy = policy
        self._calls = calls
        self._machine = machine
        self._maker = maker
        self._events = events
        self._tasks = tasks
        self._idle = anyio.Event()
        self._idle.set()
        self.state = PolicyState()
        self.parent: int | None = None
        """The newest confirmed checkpoint in this line of weights."""
        self.failure: TinkerError | None = None
        """Of the newest save, if it failed."""

    @property
    def ledger(self) -> Ledger:
        """The record."""
        return self._disk.ledger

    @property
    def is_idle(self) -> bool:
        """Whether no save is under way."""
        return self._idle.is_set()

    async def idle(self) -> None:
        """Wait until no save is under way."""
        await self._idle.wait()

    @property
    def can_save(self) -> bool:
        """Whether a save now would hold what the boundary says: the model is between two steps."""
        calls = self._calls
        settled = calls.is_between and not calls.has_gradients
        return settled and self.is_idle and self._machine.state.admits_work

    def after_step(self, boundary: Boundary) -> None:
        """Save if a checkpoint is due after a step."""
        reason = self._policy.due(
            self.state,
            step=boundary.step,
            epoch=boundary.epoch,
            metrics=boundary.metrics,
            now_s=anyio.current_time(),
            journal_full=self._journal.is_full,
        )
        if reason is not None and self.can_save:
            self.begin(boundary, reason)

    def begin(self, boundary: Boundary, reason: Reason) -> bool:
        """Queue a save of the model as it is at this place of the queue. Does not wait.

        Returns:
            Whether it was queued: the run may have been lost just now.
        """
        number = len(self.ledger.account.entries) + 1
        name = f"durable-{number:05d}-step-{boundary.step}"
        client, probe = self._calls.client, self._probe()
        ttl_s = None if self._policy.ttl_s is None else int(self._policy.ttl_s)
        try:
            saving = client.save_state(name, ttl_s)
            probing = None if probe is None else probe.ask(client)
        except TinkerError as error:  # the run was lost just now: its detector knows, or will
            log.info("checkpoint_not_begun", step=boundary.step, error=type(error).__name__)
            return False
        for future in (saving, probing):
            if future is not None:
                future.on_settled(_seen)
        self._idle = anyio.Event()
        self.state = self.state.begun(
            step=boundary.step,
            epoch=boundary.epoch,
            now_s=anyio.current_time(),
            value=self._policy.value_of(boundary.metrics),
            mode=self._policy.mode,
        )
        begun = CheckpointEntry(
            number=number,
            run_id=client.model_id,
            step=boundary.step,
            name=name,
            generation=self._machine.generation,
            epoch=boundary.epoch,
            reason=reason,
            metrics=boundary.metrics,
            position=boundary.position,
            random_state=boundary.random_json(),
            operation=self._journal.mark(number),
            parent=self.parent,
            extra={} if probe is None else {"probe": _as_json(probe)},
        )
        self._tasks.start_soon(self._finish, begun, saving, probing)
        return True

    def _probe(self) -> Probe | None:
        return None if self._calls.batch is None else Probe.of(self._calls.batch)

    async def _finish(
        self,
        begun: CheckpointEntry,
        saving: APIFuture[SaveWeightsResponse],
        probing: APIFuture[Any] | None,
    ) -> None:
        since = anyio.current_time()
        self.failure = None
        try:
            await self._begin(begun)
            path = await self._path(begun, saving)
            found = await self._scored(probing)
            await self._disk.call(self.ledger.confirm, begun.number, path, fingerprint=found)
        except TinkerError as error:
            await self._failed(begun, error)
        else:
            self._journal.confirm(begun.number)
            self.state, self.parent = self.state.confirmed(), begun.number
            event = CheckpointSaved(
                run_id=begun.run_id,
                number=begun.number,
                step=begun.step,
                path=path,
                reason=begun.reason,
                duration_s=anyio.current_time() - since,
            )
            tell(self._events, event)
            await self.tidy()
        finally:
            self._idle.set()
            self._calls.note_change()

    async def _begin(self, begun: CheckpointEntry) -> None:
        await self._disk.call(
            self.ledger.begin,
            run_id=begun.run_id,
            name=begun.name,
            step=begun.step,
            epoch=begun.epoch,
            generation=begun.generation,
            reason=begun.reason,
            metrics=begun.metrics,
            position=begun.position,
            random_state=begun.random_state,
            operation=begun.operation,
            parent=begun.parent,
            ttl_s=self._policy.ttl_s,
            extra=begun.extra,
        )

    async def _path(self, begun: CheckpointEntry, saving: APIFuture[SaveWeightsResponse]) -> str:
        """Return what the save gave; one whose end is not known is looked up by its name."""
        try:
            return (await saving).path
        except TinkerError as error:
            detector = self._calls.detector
            is_sign = detector is not None and detector.note_failure(error)
            if not is_sign and not isinstance(error, SupersededError):
                raise
            path: str | None = None
            with anyio.move_on_after(_LOOK_UP_S):
                path = await self._maker.path_of(begun)
            if path is None:
                raise
            return path

    async def _scored(self, probing: APIFuture[Any] | None) -> tuple[float, ...] | None:
        """Return the probe's log-probs; a checkpoint without them is one all the same."""
        if probing is None:
            return None
        try:
            return fingerprint(await probing)
        except TinkerError as error:
            log.info("checkpoint_not_probed", error=type(error).__name__)
            return None

    async def _failed(self, begun: CheckpointEntry, error: TinkerError) -> None:
        self.failure = error
        self._journal.drop(begun.number)
        self.state = self.state.failed()
        if len(self.ledger.account.entries) >= begun.number:
            try:
                await self._disk.call(self.ledger.fail, begun.number, str(error))
            except LedgerError as second:
                log.warning("ledger_not_written", message=second.message)
        event = CheckpointFailed(
            run_id=begun.run_id,
            number=begun.number,
            step=begun.step,
            reason=begun.reason,
            error=type(error).__name__,
            message=str(error),
        )
        tell(self._events, event)

    # What goes

    async def tidy(self) -> None:
        """Delete what the policy does not keep. What cannot be deleted now goes next time."""
        entries = self.ledger.account.entries
        in_use: set[str | int] = {e.number for e in entries if self._journal.reaches(e.number)}
        going = self._policy.to_delete(entries, in_use=in_use)
        if not going:
            return
        try:
            published = await self._maker.published({entry.run_id for entry in going})
            for entry in self._policy.to_delete(entries, in_use=in_use, published=published):
                await self._delete(entry)
        except (TinkerError, InvalidInputError) as error:
            log.warning("checkpoint_not_deleted", error=type(error).__name__, message=str(error))

    async def _delete(self, entry: CheckpointEntry) -> None:
        path = entry.path or ""
        await self._maker.delete(path)
        await self._disk.call(self.ledger.deleted, entry.number)
        event = CheckpointDeleted(
            run_id=entry.run_id, number=entry.number, step=entry.step, path=path
        )
        tell(self._events, event)


def _as_json(probe: Probe) -> Any:
    return msgspec.json.decode(msgspec.json.encode(probe))


def _seen(future: APIFuture[Any]) -> None:
    """What fails here is told as an event: no block is to end with it."""
    _ = future.error
