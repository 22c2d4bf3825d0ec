"""One loss of a run, told: its events, its lines of history, and what the ledger keeps of it.

The rule: it only tells. Nothing here decides what is tried, and a ledger that cannot be written
stops no recovery.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from tinker_async.durable import events as told
from tinker_async.durable.detection import Finding, Suspicion
from tinker_async.durable.records import RecoveryRecord
from tinker_async.durable.recovery_policy import Candidate, RecoveryPolicy
from tinker_async.durable.saving import Disk
from tinker_async.durable.states import Machine
from tinker_async.errors import LedgerError, RecoveryExhaustedError, TinkerError
from tinker_async.events import DurableEvent, Events
from tinker_async.logs import log
from tinker_async.training import TrainingClient


class Incident:
    """The loss of one run, from its sign to the run that goes on, or to the end.

    Args:
        run_id: The run that is lost.
        step: Steps that were complete.
        suspicion: The sign.
        finding: What the server said to it.
        policy: How it is brought back.
        machine: Where the recovery stands.
        disk: The record.
        events: Of the session.
        history: One line for each thing that was tried, of earlier losses too; added to.
    """

    def __init__(
        self,
        run_id: str,
        step: int,
        suspicion: Suspicion,
        finding: Finding,
        *,
        policy: RecoveryPolicy,
        machine: Machine,
        disk: Disk,
        events: Events,
        history: list[str],
    ) -> None:
        self.run_id = run_id
        self.began_s = suspicion.at
        self.tried: set[str | None] = set()
        """What is not to be tried again; None is the beginning."""
        self.attempt = 0
        """The present one: the machine forgets it as soon as work goes on."""
        self.last: BaseException | None = suspicion.cause
        """What went wrong last."""
        self._step = step
        self._cause = f"{finding.source}: {suspicion.error or finding.message}"
        self._policy = policy
        self._machine = machine
        self._disk = disk
        self._events = events
        self._history = history
        self._attempts = 0
        self._note(f"run {run_id} was lost at step {step}: {self._cause}")
        self._tell(
            told.RecoveryDetected(
                run_id=run_id,
                source=finding.source,
                error=suspicion.error,
                message=suspicion.message or finding.message,
                step=step,
            )
        )

    def _tell(self, event: DurableEvent) -> None:
        told.tell(self._events, event)

    def _note(self, line: str) -> None:
        self._history.append(line)

    def selected(self, candidate: Candidate | None) -> None:
        """An attempt begins; None is from the beginning."""
        self.attempt = self._machine.attempts
        self._attempts += 1
        strategy = self._policy.strategy_name
        self._tell(
            told.RecoveryStarted(
                run_id=self.run_id,
                attempt=self.attempt,
                strategy=strategy,
                generation=self._machine.generation + 1,
            )
        )
        self._tell(
            told.RecoveryCheckpointSelected(
                run_id=self.run_id,
                attempt=self.attempt,
                strategy=strategy,
                checkpoint=_path(candidate),
                step=0 if candidate is None else candidate.step,
            )
        )

    def created(self, new_run_id: str, candidate: Candidate | None, since_s: float) -> None:
        """There is a new run."""
        self._tell(
            told.RecoveryClientCreated(
                run_id=self.run_id,
                attempt=self.attempt,
                new_run_id=new_run_id,
                checkpoint=_path(candidate),
                generation=self._machine.generation,
                duration_s=anyio.current_time() - since_s,
            )
        )

    def resumed(self, new_run_id: str, operations: int, steps: int) -> None:
        """Operations begin to be repeated."""
        self._tell(
            told.RecoveryResumed(
                run_id=self.run_id, new_run_id=new_run_id, operations=operations, steps_lost=steps
            )
        )

    async def failed(
        self,
        new_run_id: str | None,
        candidate: Candidate | None,
        error: BaseException,
        *,
        stage: str,
        delay_s: float | None,
    ) -> None:
        """An attempt failed."""
        self.last = error
        what = f"{type(error).__name__}: {error}"
        where = _path(candidate) or "the beginning"
        self._note(f"attempt {self.attempt} from {where} failed at {stage}: {what}")
        await self._put_down(new_run_id, candidate, error=what)
        self._tell(
            told.RecoveryFailed(
                run_id=self.run_id,
                attempt=self.attempt,
                stage=stage,
                checkpoint=_path(candidate),
                error=type(error).__name__,
                message=str(error),
                delay_s=delay_s,
            )
        )

    async def completed(
        self, new_run_id: str, candidate: Candidate | None, operations: int, steps: int
    ) -> None:
        """The run goes on."""
        path = _path(candidate)
        self._tell(
            told.RecoveryCompleted(
                run_id=self.run_id,
                new_run_id=new_run_id,
                attempt=self.attempt,
                strategy=self._policy.strategy_name,
                checkpoint=path,
                generation=self._machine.generation,
                steps_lost=steps,
                operations_replayed=operations,
                duration_s=anyio.current_time() - self.began_s,
            )
        )
        where = path or "the beginning"
        what = f"{steps} steps, {operations} operations repeated"
        self._note(f"run {new_run_id} went on from {where}: {what}")
        await self._put_down(new_run_id, candidate, operations=operations, steps=steps)

    async def _put_down(
        self,
        new_run_id: str | None,
        candidate: Candidate | None,
        *,
        error: str | None = None,
        operations: int = 0,
        steps: int = 0,
    ) -> None:
        entry = None if candidate is None else candidate.entry
        record = RecoveryRecord(
            kind="recovery",
            generation=self._machine.generation,
            from_run=self.run_id,
            to_run=new_run_id,
            checkpoint=None if entry is None else entry.number,
            cause=self._cause,
            attempt=self.attempt,
            outcome="completed" if error is None else "failed",
            error=error,
            steps_replayed=steps,
            operations_replayed=operations,
            seconds=anyio.current_time() - self.began_s,
        )
        try:
            await self._disk.call(self._disk.ledger.recovered, record)
        except LedgerError as failure:
            log.warning("ledger_not_written", message=failure.message)

    def not_chosen(self, error: BaseException) -> None:
        """The policy's own strategy failed, so that nothing is chosen."""
        self.last = error
        self._note(f"strategy {self._policy.strategy_name} failed: {type(error).__name__}: {error}")

    # The end

    def cancelled(self) -> None:
        """The program's block ends meanwhile."""
        state = str(self._machine.state)
        self._tell(told.RecoveryCancelled(run_id=self.run_id, state=state, attempt=self.attempt))

    def exhausted(self, why: str) -> RecoveryExhaustedError:
        """Return what leaves the block: nothing is left to try."""
        self._note(why)
        self._tell(
            told.RecoveryExhausted(
                run_id=self.run_id,
                attempts=self._attempts,
                checkpoints_tried=tuple(sorted(path for path in self.tried if path)),
                steps_lost=self._step,
                duration_s=anyio.current_time() - self.began_s,
            )
        )
        error = RecoveryExhaustedError(
            f"run {self.run_id} was lost ({self._cause}) and could not be brought back: {why}",
            run_id=self.run_id,
            attempts=self._attempts,
            history=tuple(self._history),
        )
        error.__cause__ = self.last
        return error

    # Hooks

    async def success_hook(
        self, old: TrainingClient, new: TrainingClient, candidate: Candidate | None
    ) -> None:
        """Call the policy's `on_recovery`."""
        hook = self._policy.on_recovery
        if hook is not None:
            await self._hooked("on_recovery", lambda: hook(old, new, candidate))

    async def fail_hook(self, error: RecoveryExhaustedError) -> None:
        """Call the policy's `on_failure`."""
        hook = self._policy.on_failure
        if hook is not None:
            await self._hooked("on_failure", lambda: hook(error.run_id, error))

    async def _hooked(self, stage: str, call: Callable[[], Awaitable[None] | None]) -> None:
        try:
            with anyio.fail_after(self._policy.hook_time_s):
                awaited = call()
                if awaited is not None:
                    await awaited
        except Exception as error:  # noqa: BLE001  # the user's own function: it decides nothing
            self._tell(
                told.RecoveryFailed(
                    run_id=self.run_id,
                    attempt=self.attempt,
                    stage=stage,
                    checkpoint=None,
                    error=type(error).__name__,
                    message=str(error),
                    delay_s=None,
                )
            )


def tell_poll_failed(events: Events, run_id: str, error: TinkerError) -> None:
    """The run's mark could not be read."""
    event = told.RecoveryPollError(run_id=run_id, error=type(error).__name__, message=str(error))
    told.tell(events, event)


def _path(candidate: Candidate | None) -> str | None:
    return None if candidate is None else candidate.path
