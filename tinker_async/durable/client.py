"""`DurableTrainingClient`: a training client that survives its run, its session and its program.

The rule: where the program stands (steps, position, random numbers) is taken when a step ends, and
at no other moment; so every checkpoint is a place from which the program gives the same again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import msgspec

from tinker_async.data.datum import Datum
from tinker_async.durable.calls import Calls
from tinker_async.durable.checkpoint_policy import CheckpointPolicy
from tinker_async.durable.methods import TrainingMethods, check_steps
from tinker_async.durable.operations import OperationKind
from tinker_async.durable.random_state import Captured, kind_of, restore
from tinker_async.durable.reached import Reached
from tinker_async.durable.records import CheckpointEntry, check_json
from tinker_async.durable.report import RunReport
from tinker_async.durable.saving import Boundary, Saver
from tinker_async.errors import InvalidInputError, TinkerError
from tinker_async.futures import APIFuture
from tinker_async.training import TrainingClient

T = TypeVar("T")

_STEPS = ("optim_step", "train_step")


class DurableTrainingClient(TrainingMethods):
    """Trains one model, through the loss of its run and of its session, and goes on after a crash.

    Made by `Session.durable_training`; valid inside its block. Its methods are those of
    `TrainingClient`. Operations run in call order, and each one's future gives the result that it
    would have had without any loss. `timeout` of an operation counts anew in each run.

    A step ends when the loop over `steps` comes round, at `end_step`, or, where neither is used,
    with each `optim_step` or `train_step`. Checkpoints are taken when a step ends.
    """

    def __init__(
        self,
        calls: Calls,
        saver: Saver,
        policy: CheckpointPolicy,
        entry: CheckpointEntry | None,
        reached: Reached,
    ) -> None:
        self._calls = calls
        self._saver = saver
        self._policy = policy
        self._entry = entry
        self._reached = reached
        self._tracked: dict[str, Any] = {}
        self._stepping = False
        self._epoch = 0 if entry is None else entry.epoch
        self._position: bytes = msgspec.json.encode(None if entry is None else entry.position)
        self._step_ended = anyio.Event()
        calls.step = 0 if entry is None else entry.step
        self.boundary = Boundary(
            step=calls.step,
            epoch=self._epoch,
            metrics={} if entry is None else entry.metrics,
            position=self.position,
            known_state={} if entry is None else entry.random_state,
        )
        """Where the program stood when the last step ended."""
        self.ending = False
        """Whether the program was asked to end: the next step that ends is saved."""

    @property
    def client(self) -> TrainingClient:
        """The client of the present run. After a recovery it raises `SupersededError`."""
        return self._calls.client

    def _call(
        self,
        kind: OperationKind,
        arguments: Mapping[str, Any],
        data: Sequence[Datum] | None = None,
    ) -> APIFuture[Any]:
        reason = self._policy.due_before(kind, self._saver.state, step=self.step)
        if reason is not None and self._saver.can_save:
            self._saver.begin(self.boundary, reason)
        future = self._calls.call(kind, arguments, data)
        if kind in _STEPS and not self._stepping:
            self.end_step()
        return future

    async def _asked(self, ask: Callable[[TrainingClient], Awaitable[T]]) -> T:
        while True:
            client = await self._calls.present()
            try:
                return await ask(client)
            except TinkerError as error:
                if not await self._calls.is_lost(client, error):
                    raise

    def report(self) -> RunReport:
        """Return what the run went through so far, in earlier programs too, and what that cost."""
        return RunReport.of(self._saver.ledger.account)

    # Where the program stands

    @property
    def step(self) -> int:
        """Steps that are complete: where a loop begins, or goes on after a crash."""
        return self._calls.step

    @property
    def epoch(self) -> int:
        """Epochs that are complete; set it where checkpoints depend on them."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch = epoch

    @property
    def position(self) -> Any:
        """Where the data stand: any JSON that the program sets, as it was at the checkpoint.

        Raises:
            InvalidInputError: When set: it is no JSON, or JSON would change it.
        """
        return msgspec.json.decode(self._position)

    @position.setter
    def position(self, position: Any) -> None:
        self._position = msgspec.json.encode(check_json(position, "position"))

    def track(self, name: str, generator: T) -> T:
        """Keep a random generator's state with the checkpoints, and put it back after a crash.

        Args:
            name: The same at each start of the program.
            generator: `random.Random`, a generator of numpy, or of torch.

        Returns:
            The generator.

        Raises:
            InvalidInputError: It is none, the name is taken, or what is on record does not fit.
        """
        kind_of(generator, name)
        if name in self._tracked:
            raise InvalidInputError(f"{name}: is tracked already", field=name)
        if self._entry is not None and name in self._entry.random_state:
            restore({name: generator}, self._entry.random_state)
        self._tracked[name] = generator
        return generator

    def steps(self, total: int) -> Iterator[int]:
        """Iterate over the steps that are left, up to a total; each ends when the next is asked for.

        A step that is left by `break` or by an exception has not ended.

        Raises:
            InvalidInputError: It is no number of steps.
        """
        check_steps(total)
        return self._steps(total)

    def _steps(self, total: int) -> Iterator[int]:
        self._stepping = True
        try:
            while (step := self.step) < total:
                yield step
                if self.step == step:
                    self.end_step()
        finally:
            self._stepping = False

    def end_step(self, metrics: Mapping[str, float] | None = None) -> None:
        """Say that a step is complete, and begin a checkpoint if one is due. Does not wait.

        Args:
            metrics: By which the best checkpoint is known; default those of the newest result.
        """
        calls = self._calls
        calls.step += 1
        calls.is_between = True
        self._reached.note(calls.step)
        self.boundary = Boundary(
            step=calls.step,
            epoch=self._epoch,
            metrics=dict(calls.metrics if metrics is None else metrics),
            position=self.position,
            random_state=Captured(self._tracked),
        )
        if self.ending and self._saver.can_save:
            self._saver.begin(self.boundary, "signal")
        else:
            self._saver.after_step(self.boundary)
        self._step_ended.set()

    async def checkpoint(self) -> CheckpointEntry:
        """Save now, between two steps, and wait until the checkpoint is confirmed.

        Raises:
            InvalidInputError: There are operations after the last step, which are in no step.
            TinkerError: The save failed.
        """
        while True:
            await self._saver.idle()
            await self._calls.settled()
            if self._calls.closed is not None:
                raise self._calls.closed
            if not self._saver.can_save:
                raise InvalidInputError(
                    "checkpoint: the step is not complete", field="checkpoint", hint="call end_step"
                )
            if self._saver.begin(self.boundary, "asked"):
                break
            await anyio.lowlevel.checkpoint()  # the run was lost just now
        await self._saver.idle()
        if self._saver.failure is not None:
            raise self._saver.failure
        return self._saver.ledger.account.confirmed[-1]

    async def saved(self) -> None:
        """Wait until no save is under way; whether it was one, the events and the record say."""
        await self._saver.idle()

    async def next_step(self) -> None:
        """Wait until a step has ended."""
        self._step_ended = anyio.Event()
        await self._step_ended.wait()

    def __repr__(self) -> str:
        return f"<DurableTrainingClient: step {self.step}, run {self.model_id}>"
