"""Watches the runs of a durable training, and has those that are lost brought back.

The rule: no sign is believed before the server was asked, none is forgotten, and the operations
that failed are settled only when it is known which it was: a loss, or their own failure.
"""

from __future__ import annotations

import random
from functools import partial

import anyio
import msgspec

from tinker_async.durable.attempts import Attempts, Means
from tinker_async.durable.detection import Detector, Finding, Suspicion
from tinker_async.durable.incident import Incident, tell_poll_failed
from tinker_async.durable.states import Signal
from tinker_async.errors import RecoveryExhaustedError
from tinker_async.training import TrainingClient

_MOST_ASKING = 10
"""So many times `max_attempts` a silent server is asked whether the run lives."""


class Recovery:
    """Watches the runs of one durable training, and replaces those that are lost.

    Args:
        means: What to work with.
        turn: Held by a recovery: so many may run at a time.
    """

    def __init__(self, means: Means, turn: anyio.CapacityLimiter) -> None:
        self._means = means
        self._policy = means.policy
        self._machine = means.machine
        self._calls = means.calls
        self._turn = turn
        self.history: list[str] = []
        """One line for each thing that was tried."""

    def watch(self, client: TrainingClient) -> Detector:
        """Return a detector for a run."""
        seat = self._means.seat
        detector = Detector(
            client.model_id,
            caller=self._means.maker.parts.caller,
            seat=seat,
            poll_interval_s=self._policy.poll_interval_s,
            on_poll_error=partial(tell_poll_failed, self._means.events, client.model_id),
        )
        if seat.loss is not None:
            detector.note_loss(seat.loss)
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
        """Ask until the server says what there is to a sign; a long silence is a loss.

        So is a run that lives and has not done what it was asked for, since what came after that
        may have been done.
        """
        finding = await self._detector.confirm(suspicion)
        attempt = 1
        while finding.state == "unreachable" and attempt < _MOST_ASKING * self._policy.max_attempts:
            await anyio.sleep(self._policy.delay_s(attempt, random.random))
            newest = self._detector.suspicion or suspicion
            finding = await self._detector.confirm(newest)
            attempt += 1
        if finding.state == "healthy" and self._calls.has_hole:
            finding = msgspec.structs.replace(finding, state="lost")
        return finding

    async def _recover(self, suspicion: Suspicion, finding: Finding) -> None:
        """Bring the run back that is lost.

        Raises:
            RecoveryExhaustedError: It cannot be.
        """
        means, lost = self._means, self._calls.client
        self._machine.apply(Signal.CONFIRMED)
        incident = Incident(
            lost.model_id,
            self._calls.step,
            suspicion,
            finding,
            policy=self._policy,
            machine=self._machine,
            disk=means.disk,
            events=means.events,
            history=self.history,
        )
        means.retire(lost)
        self._calls.lost()
        try:
            async with self._turn:
                await means.saver.idle()  # a save under way ends: it may be the newest
                found = await Attempts(means, incident, self.watch).bring_back()
        except anyio.get_cancelled_exc_class():
            incident.cancelled()
            self._machine.apply(Signal.CANCEL)
            raise
        except RecoveryExhaustedError as error:
            await incident.fail_hook(error)
            raise
        await incident.success_hook(lost, found.client, found.candidate)
