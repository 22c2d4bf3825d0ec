"""Brings a lost run back: from a sign, over a checkpoint, to the operation where it was.

The rule: between the last repeated operation and the first new one nothing is waited for, so that
none is left out and none is sent twice; and whatever was tried is on record before the next try.
"""

from __future__ import annotations

import random
import time
from functools import partial

import anyio

from tinker_async.durable.calls import Calls
from tinker_async.durable.checkpoint_policy import CheckpointPolicy
from tinker_async.durable.detection import Detector, Finding, Suspicion, source_of
from tinker_async.durable.incident import Incident, tell_poll_failed
from tinker_async.durable.journal import Journal
from tinker_async.durable.making import Maker, is_at_fault
from tinker_async.durable.recovery_policy import Candidate, RecoveryPolicy, choose
from tinker_async.durable.repeating import repeat
from tinker_async.durable.saving import Disk, Saver
from tinker_async.durable.states import Machine, Signal, State
from tinker_async.errors import (
    InvalidInputError,
    LedgerError,
    RecoveryExhaustedError,
    SupersededError,
    TinkerError,
)
from tinker_async.events import Events
from tinker_async.logs import log
from tinker_async.renewal import Seat
from tinker_async.training import TrainingClient

_MOST_ASKING = 10
"""So many times `max_attempts` a silent server is asked whether the run lives."""


class Recovery:
    """Watches the runs of one durable training, and replaces those that are lost.

    Args:
        policy: Whether, how often, from what.
        checkpoints: By what the best is known.
        calls: Whose client it replaces.
        saver: Whose saves it waits for.
        disk: The record.
        journal: What is to be repeated.
        machine: The state.
        maker: What makes runs.
        seat: Of the session.
        turn: Held by a recovery: so many may run at a time.
        events: Of the session.
    """

    def __init__(
        self,
        *,
        policy: RecoveryPolicy,
        checkpoints: CheckpointPolicy,
        calls: Calls,
        saver: Saver,
        disk: Disk,
        journal: Journal,
        machine: Machine,
        maker: Maker,
        seat: Seat,
        turn: anyio.CapacityLimiter,
        events: Events,
    ) -> None:
        self._policy = policy
        self._checkpoints = checkpoints
        self._calls = calls
        self._saver = saver
        self._disk = disk
        self._journal = journal
        self._machine = machine
        self._maker = maker
        self._seat = seat
        self._turn = turn
        self._events = events
        self.history: list[str] = []
        """One line for each thing that was tried."""

    def watch(self, client: TrainingClient) -> Detector:
        """Return a detector for a run."""
        detector = Detector(
            client.model_id,
            caller=self._maker.parts.caller,
            seat=self._seat,
            poll_interval_s=self._policy.poll_interval_s,
            on_poll_error=partial(tell_poll_failed, self._events, client.model_id),
        )
        if self._seat.loss is not None:
            detector.note_loss(self._seat.loss)
        return detector

    @property
    def _detector(self) -> Detector:
        detector = self._calls.detector
        if detector is None:
            raise RuntimeError("nothing is watched")
        return detector

    async def run(self) -> None:
        """Watch until cancelled.

        Raises:
            RecoveryExhaustedError: A run was lost and could not be brought back.
        """
        while True:
            suspicion = await self._suspected()
            self._machine.apply(Signal.FAILURE)
            finding = await self._found(suspicion)
            if finding.state == "healthy":
                self._detector.all_clear()
                self._machine.apply(Signal.FALSE_ALARM)
                self._calls.all_clear()
            else:
                await self._recover(suspicion, finding)
            self._calls.note_change()

    async def _suspected(self) -> Suspicion:
        """Wait for a sign, polling the run's mark meanwhile."""
        detector = self._detector
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(detector.poll)
            suspicion = await detector.suspected()
            tasks.cancel_scope.cancel()
        return suspicion

    async def _found(self, suspicion: Suspicion) -> Finding:
        """Ask until the server says what there is to a sign; a long silence is a loss."""
        finding = await self._detector.confirm(suspicion)
        attempt = 1
        while finding.state == "unreachable" and attempt < _MOST_ASKING * self._policy.max_attempts:
            await anyio.sleep(self._policy.delay_s(attempt, random.random))
            newest = self._detector.suspicion or suspicion
            finding = await self._detector.confirm(newest)
            attempt += 1
        return finding

    # One loss

    async def _recover(self, suspicion: Suspicion, finding: Finding) -> None:
        lost = self._calls.client
        self._machine.apply(Signal.CONFIRMED)
        incident = Incident(
            lost.model_id,
            self._calls.step,
            suspicion,
            finding,
            policy=self._policy,
            machine=self._machine,
            disk=self._disk,
            events=self._events,
            history=self.history,
        )
        self._retire(lost)
        self._calls.lost()
        try:
            async with self._turn:
                await self._bring_back(incident)
        except anyio.get_cancelled_exc_class():
            incident.cancelled()
            self._machine.apply(Signal.CANCEL)
            raise
        except RecoveryExhaustedError as error:
            await incident.fail_hook(error)
            raise

    async def _bring_back(self, incident: Incident) -> None:
        await self._saver.idle()  # a save under way comes to its end: it may be the newest
        self._machine.apply(Signal.QUIESCED)
        while not await self._tried_from(incident, self._select(incident)):
            delay_s = self._policy.delay_s(incident.attempt, random.random)
            await anyio.sleep(delay_s)
            self._machine.apply(Signal.BACKED_OFF)

    def _select(self, incident: Incident) -> Candidate | None:
        """Return the next checkpoint to try; None for the beginning.

        Raises:
            RecoveryExhaustedError: There is none, or there were too many attempts.
        """
        candidates = choose(
            self._disk.ledger.account.entries,
            self._policy,
            {path for path in incident.tried if path is not None},
            metric=self._checkpoints.metric,
            mode=self._checkpoints.mode,
            now_s=time.time(),
            reachable=lambda entry: self._journal.reaches(entry.number),
        )
        candidate = candidates[0] if candidates else None
        if candidate is None and (None in incident.tried or not self._journal.reaches(None)):
            self._machine.apply(Signal.NONE_LEFT)
            raise incident.exhausted("no checkpoint is left to try")
        if self._machine.apply(Signal.SELECTED) is State.EXHAUSTED:
            raise incident.exhausted("no attempt is left")
        incident.selected(candidate)
        return candidate

    async def _tried_from(self, incident: Incident, candidate: Candidate | None) -> bool:
        """Make one attempt; return whether the run goes on."""
        since_s = anyio.current_time()
        client: TrainingClient | None = None
        try:
            await self._seat.usable()
            path = None if candidate is None else candidate.path
            client = await (self._maker.anew() if path is None else self._maker.loaded(path))
            self._machine.apply(Signal.RESTORED)
            self._calls.detector = self.watch(client)
            incident.created(client.model_id, candidate, since_s)
            if candidate is not None and candidate.entry is not None:
                await self._maker.check_weights(client, candidate.entry)
            await self._adopt_losses()
            self._machine.apply(Signal.VERIFIED)
            operations, steps = await self._repeat(incident, client, candidate)
        except (TinkerError, OSError) as error:
            await self._failed(incident, client, candidate, error)
            return False
        entry = None if candidate is None else candidate.entry
        self._saver.parent = None if entry is None else entry.number
        await incident.completed(client.model_id, candidate, operations, steps)
        await self._give_up_bad_ones(incident)
        return True

    async def _adopt_losses(self) -> None:
        """Make the custom losses known to the session, which may be another one now."""
        losses = self._maker.parts.custom_losses
        for handle in self._calls.losses():
            self._calls.adopt(handle, await losses.adopt(handle))

    async def _repeat(
        self, incident: Incident, client: TrainingClient, candidate: Candidate | None
    ) -> tuple[int, int]:
        """Repeat all calls since a checkpoint, and let new ones out: of operations and steps."""
        entry = None if candidate is None else candidate.entry
        replay = self._journal.since(None if entry is None else entry.number)
        from_step = 0 if entry is None else entry.step
        steps = self._calls.step - from_step
        incident.resumed(client.model_id, replay.remaining, steps)
        await repeat(replay, client, calls=self._calls, from_step=from_step)
        self._machine.apply(Signal.RESUMED)  # nothing was awaited since the last one
        self._calls.client = client
        return replay.repeated, steps

    async def _failed(
        self,
        incident: Incident,
        client: TrainingClient | None,
        candidate: Candidate | None,
        error: BaseException,
    ) -> None:
        """Take in that an attempt failed.

        Raises:
            RecoveryExhaustedError: It was the last.
        """
        state = self._machine.state
        over = await self._session_is_over(error)
        loading = state in (State.RESTORING, State.VERIFYING)
        if (loading and not over and is_at_fault(error)) or isinstance(error, InvalidInputError):
            incident.tried.add(None if candidate is None else candidate.path)
        if client is not None:
            self._retire(client)
        self._calls.lost()
        is_last = self._machine.apply(Signal.FAILED) is State.EXHAUSTED
        new_run_id = None if client is None else client.model_id
        await incident.failed(new_run_id, candidate, error, stage=str(state), delay_s=None)
        if is_last:
            raise incident.exhausted("no attempt is left")

    async def _session_is_over(self, error: BaseException) -> bool:
        """Find out whether the session died meanwhile, so that its renewal begins now."""
        if source_of(error) is None:
            return False
        try:
            return not await self._seat.confirm()
        except TinkerError:
            return False

    async def _give_up_bad_ones(self, incident: Incident) -> None:
        """Put down the checkpoints that could not be used, now that another could."""
        for entry in self._disk.ledger.account.confirmed:
            if entry.path in incident.tried:
                self._journal.drop(entry.number)
                why = "a recovery could not load it"
                try:
                    await self._disk.call(self._disk.ledger.fail, entry.number, why)
                except LedgerError as error:
                    log.warning("ledger_not_written", message=error.message)

    def _retire(self, client: TrainingClient) -> None:
        reason = SupersededError(
            f"run {client.model_id} was replaced by a recovery",
            generation=self._machine.generation,
            current=self._machine.generation + 1,
        )
        self._maker.retire(client, reason)
