"""The attempts to bring one lost run back: checkpoint after checkpoint, until work goes on.

The rule: between the last repeated operation and the first new one nothing is waited for, so that
none is left out and none is sent twice; and whatever was tried is on record before the next try.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import NamedTuple

import anyio
import msgspec

from tinker_async.durable.calls import Calls
from tinker_async.durable.checkpoint_policy import CheckpointPolicy
from tinker_async.durable.detection import Detector, source_of
from tinker_async.durable.events import RecoverySuperseded, tell
from tinker_async.durable.incident import Incident
from tinker_async.durable.journal import Journal
from tinker_async.durable.making import Maker, is_at_fault
from tinker_async.durable.recovery_policy import Candidate, RecoveryPolicy, choose
from tinker_async.durable.repeating import repeat
from tinker_async.durable.saving import Disk, Saver
from tinker_async.durable.states import Machine, Signal, State
from tinker_async.errors import InvalidInputError, LedgerError, SupersededError, TinkerError
from tinker_async.events import Events
from tinker_async.logs import log
from tinker_async.renewal import Seat
from tinker_async.training import TrainingClient

_NOT_LEFT = "no checkpoint is left to try"
_SPENT = "no attempt is left"


class Means(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What the recoveries of one durable training work with."""

    policy: RecoveryPolicy
    checkpoints: CheckpointPolicy
    """By which the best is known."""
    calls: Calls
    """Whose client is replaced."""
    saver: Saver
    disk: Disk
    journal: Journal
    """What is to be repeated."""
    machine: Machine
    maker: Maker
    seat: Seat
    """Of the session."""
    events: Events

    def retire(self, client: TrainingClient) -> None:
        """Let a run go; who still asks it for something is refused, and that is told."""
        generation = self.machine.generation
        reason = SupersededError(
            f"run {client.model_id} was replaced by a recovery",
            generation=generation,
            current=generation + 1,
        )

        def refused(operation: str) -> None:
            if self.calls.is_asking:
                return  # the durable training's own call: it waits for the next run
            event = RecoverySuperseded(
                run_id=client.model_id,
                operation=operation,
                generation=generation,
                current=max(self.machine.generation, generation + 1),
            )
            tell(self.events, event)

        self.maker.retire(client, reason, refused)


class Recovered(NamedTuple):
    """What came of a recovery."""

    client: TrainingClient
    candidate: Candidate | None
    """What it went on from; None is the beginning."""


class Attempts:
    """Brings one lost run back.

    Args:
        means: What to work with.
        incident: The loss, which is told of each attempt.
        watch: Makes the detector of a new run.
    """

    def __init__(
        self, means: Means, incident: Incident, watch: Callable[[TrainingClient], Detector]
    ) -> None:
        self._means = means
        self._machine = means.machine
        self._calls = means.calls
        self._incident = incident
        self._watch = watch

    async def bring_back(self) -> Recovered:
        """Try until the run goes on.

        Raises:
            RecoveryExhaustedError: There is no checkpoint left, or there were too many attempts.
        """
        self._machine.apply(Signal.QUIESCED)
        while True:
            candidate = self._selected()
            client = await self._tried_from(candidate)
            if client is not None:
                return Recovered(client, candidate)
            self._machine.apply(Signal.BACKED_OFF)

    def _selected(self) -> Candidate | None:
        """Return the next checkpoint to try; None for the beginning.

        Raises:
            RecoveryExhaustedError: There is none, or there were too many attempts.
        """
        options = self._options()
        if not options:
            self._machine.apply(Signal.NONE_LEFT)
            raise self._incident.exhausted(_NOT_LEFT)
        if self._machine.apply(Signal.SELECTED) is State.EXHAUSTED:
            raise self._incident.exhausted(_SPENT)
        self._incident.selected(options[0])
        return options[0]

    def _options(self) -> list[Candidate | None]:
        """Return what may be tried, in order."""
        means, tried = self._means, self._incident.tried
        try:
            found = choose(
                means.disk.ledger.account.entries,
                means.policy,
                {path for path in tried if path is not None},
                metric=means.checkpoints.metric,
                mode=means.checkpoints.mode,
                now_s=time.time(),
                reachable=lambda entry: means.journal.reaches(entry.number),
            )
        except Exception as error:  # noqa: BLE001  # the user's own strategy may raise anything
            self._incident.not_chosen(error)
            return []
        if not found and None not in tried and means.journal.reaches(None):
            return [None]
        return [*found]

    async def _tried_from(self, candidate: Candidate | None) -> TrainingClient | None:
        """Make one attempt; return the run that goes on, or None after the pause that follows."""
        means, incident = self._means, self._incident
        since_s = anyio.current_time()
        client: TrainingClient | None = None
        try:
            await means.seat.usable()
            path = None if candidate is None else candidate.path
            client = await (means.maker.anew() if path is None else means.maker.loaded(path))
            self._machine.apply(Signal.RESTORED)
            self._calls.detector = self._watch(client)
            incident.created(client.model_id, candidate, since_s)
            if candidate is not None and candidate.entry is not None:
                await means.maker.check_weights(client, candidate.entry)
            await self._calls.losses.adopt_by(means.maker.parts.custom_losses)
            self._machine.apply(Signal.VERIFIED)
            operations, steps = await self._repeat(client, candidate)
        except (TinkerError, OSError) as error:
            await anyio.sleep(await self._failed(client, candidate, error))
            return None
        entry = None if candidate is None else candidate.entry
        means.saver.parent = None if entry is None else entry.number
        await incident.completed(client.model_id, candidate, operations, steps)
        await self._give_up_bad_ones()
        return client

    async def _repeat(self, client: TrainingClient, candidate: Candidate | None) -> tuple[int, int]:
        """Repeat all calls since a checkpoint, and let new ones out: of operations and steps."""
        entry = None if candidate is None else candidate.entry
        replay = self._means.journal.since(None if entry is None else entry.number)
        from_step = 0 if entry is None else entry.step
        steps = self._calls.step - from_step
        self._incident.resumed(client.model_id, replay.remaining, steps)
        await repeat(replay, client, calls=self._calls, from_step=from_step)
        self._machine.apply(Signal.RESUMED)  # nothing was awaited since the last one
        self._calls.client = client
        self._calls.note_change()
        return replay.repeated, steps

    async def _failed(
        self, client: TrainingClient | None, candidate: Candidate | None, error: BaseException
    ) -> float:
        """Take in that an attempt failed; return the seconds until the next.

        Raises:
            RecoveryExhaustedError: It was the last.
        """
        means, incident = self._means, self._incident
        state = self._machine.state
        over = await self._session_is_over(error)
        loading = state in (State.RESTORING, State.VERIFYING)
        if (loading and not over and is_at_fault(error)) or isinstance(error, InvalidInputError):
            incident.tried.add(None if candidate is None else candidate.path)
        if client is not None:
            means.retire(client)
        self._calls.lost()
        why = None if self._options() else _NOT_LEFT
        if self._machine.apply(Signal.FAILED) is State.EXHAUSTED:
            why = _SPENT
        delay_s = means.policy.delay_s(incident.attempt, random.random)
        new_run_id = None if client is None else client.model_id
        await incident.failed(
            new_run_id,
            candidate,
            error,
            stage=str(state),
            delay_s=delay_s if why is None else None,
        )
        if why is not None:
            self._give_up()
            raise incident.exhausted(why)
        return delay_s

    def _give_up(self) -> None:
        """Come to the end without a pause."""
        if not self._machine.state.is_over:
            self._machine.apply(Signal.BACKED_OFF)
            self._machine.apply(Signal.NONE_LEFT)

    async def _session_is_over(self, error: BaseException) -> bool:
        """Find out whether the session died meanwhile, so that its renewal begins now."""
        if source_of(error) is None:
            return False
        try:
            return not await self._means.seat.confirm()
        except TinkerError:
            return False

    async def _give_up_bad_ones(self) -> None:
        """Put down the checkpoints that could not be used, now that another could."""
        disk = self._means.disk
        for entry in disk.ledger.account.confirmed:
            if entry.path in self._incident.tried:
                self._means.journal.drop(entry.number)
                why = "a recovery could not load it"
                try:
                    await disk.call(disk.ledger.fail, entry.number, why)
                except LedgerError as error:
                    log.warning("ledger_not_written", message=error.message)
