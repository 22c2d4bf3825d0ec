"""The calls of a durable training: put down, sent to the present run, and settled for their callers.

The rule: a caller's future belongs to the durable training, never to a run on the server. So a run
that is lost fails nobody: what was asked of it stays in the journal until a run has answered it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio
import msgspec

from tinker_async.data.custom_loss import LossHandle
from tinker_async.data.datum import Datum
from tinker_async.durable.detection import Detector
from tinker_async.durable.futures import DurableFuture
from tinker_async.durable.journal import Journal
from tinker_async.durable.losses import Losses
from tinker_async.durable.operations import Operation, OperationKind
from tinker_async.durable.states import Machine, State
from tinker_async.errors import (
    GoneError,
    ModelPoisonedError,
    OperationWithdrawnError,
    RequestFailedError,
    SessionLostError,
    SupersededError,
    TinkerError,
)
from tinker_async.futures import APIFuture
from tinker_async.training import TrainingClient

_GRADIENTS = frozenset({"forward_backward", "forward_backward_custom"})
_STEPS = frozenset({"optim_step", "train_step"})


class Calls:
    """Sends the calls of one durable training, and keeps what came of them.

    Args:
        journal: Where they are put down.
        machine: Whether they may be sent.
        on_settled: Told of each of the callers' futures.
    """

    def __init__(
        self, journal: Journal, machine: Machine, on_settled: Callable[[APIFuture[Any]], None]
    ) -> None:
        self._journal = journal
        self._machine = machine
        self._on_settled = on_settled
        self._held: list[tuple[Operation, APIFuture[Any]]] = []
        """What is not settled before it is known whether the run is lost."""
        self.losses = Losses()
        """Custom ones."""
        self.is_asking = False
        """Whether a call of the durable training is being sent: what is refused then, waits."""
        self._changed = anyio.Event()
        self.client: TrainingClient
        """Of the present run; one that is retired while there is none."""
        self.detector: Detector | None = None
        """Of the present run; None where losses are not survived."""
        self.closed: TinkerError | None = None
        """Why nothing more is taken."""
        self.step = 0
        """Steps that are complete."""
        self.metrics: dict[str, float] = {}
        """Of the newest result that had any."""
        self.batch: Sequence[Datum] | None = None
        """The newest data, to make probes of."""
        self.is_between = True
        """Whether the model is as it was when the last step ended."""
        self.has_gradients = False
        """Whether there are gradients that no optimizer step has used, which no save would keep."""

    def call(
        self,
        kind: OperationKind,
        arguments: Mapping[str, Any],
        data: Sequence[Datum] | None = None,
    ) -> DurableFuture[Any]:
        """Put down a call and send it, or let it wait for the run that is being made.

        Raises:
            InvalidInputError: As the method of `TrainingClient` raises it; nothing was put down.
            TinkerError: The durable training is over.
        """
        if self.closed is not None:
            raise self.closed
        inner: APIFuture[Any] | None = None
        self.is_asking = True
        try:
            inner = self.asked(self.client, kind, arguments, data)
        except (SupersededError, SessionLostError, ModelPoisonedError) as error:
            if self.detector is None:
                raise
            if not isinstance(error, SupersededError):
                self.detector.note_failure(error)
        finally:
            self.is_asking = False
        future: DurableFuture[Any] = DurableFuture(kind)
        future.on_settled(self._on_settled)
        operation = self._journal.record(
            kind, data=data, arguments=arguments, future=future, step=self.step
        )
        self._note(operation, data)
        future.on_settled(lambda _: self._left(operation))
        if inner is not None:
            self.follow(operation, inner)
        return future

    def _note(self, operation: Operation, data: Sequence[Datum] | None) -> None:
        if operation.changes_model:
            self.is_between = False
        if operation.kind in _GRADIENTS:
            self.has_gradients, self.batch = True, data
        elif operation.kind in _STEPS:
            self.has_gradients = False
            self.batch = data or self.batch

    def asked(
        self,
        client: TrainingClient,
        kind: OperationKind,
        arguments: Mapping[str, Any],
        data: Sequence[Datum] | None,
    ) -> APIFuture[Any]:
        """Ask a run for an operation, in the words of its session."""
        loss_fn = arguments.get("loss_fn")
        if isinstance(loss_fn, LossHandle):
            arguments = {**arguments, "loss_fn": self._own(loss_fn, client)}
        method = getattr(client, kind)
        future: APIFuture[Any] = method(**arguments) if data is None else method(data, **arguments)
        if isinstance(loss_fn, LossHandle):
            self.losses.note_used(loss_fn)
        return future

    def _own(self, handle: LossHandle, client: TrainingClient) -> LossHandle:
        session_id = client._session_id  # noqa: SLF001  # of a client that it has made
        own = self.losses.own(handle, session_id)
        is_retired = client is self.client and not self._machine.state.admits_work
        if is_retired and own.session_id != session_id:
            # It checks the data and sends nothing: let it not mind whose loss this is.
            own = msgspec.structs.replace(own, session_id=session_id)
        return own

    # Results

    def follow(self, operation: Operation, inner: APIFuture[Any]) -> None:
        """Settle a call with what becomes of it in the present run."""
        if isinstance(operation.future, DurableFuture):
            operation.future.take(inner)

        def settled(_: APIFuture[Any]) -> None:
            self._settled(operation, inner)

        if inner.done:
            settled(inner)
        else:
            inner.on_settled(settled)

    def _settled(self, operation: Operation, inner: APIFuture[Any]) -> None:
        error = inner.error  # looking at it makes it ours
        if isinstance(error, SupersededError):
            return
        if isinstance(operation.future, DurableFuture):
            operation.future.inner = None
        if error is None and self.has_hole:
            self._held.append((operation, inner))  # of a model that lacks what is before it
        elif error is None:
            self._answered(operation, inner)
        elif isinstance(error, OperationWithdrawnError) or not self._is_sign(error):
            self.fail(operation, error)
        else:
            self._held.append((operation, inner))

    def _is_sign(self, error: BaseException) -> bool:
        return self.detector is not None and self.detector.note_failure(error)

    def _answered(self, operation: Operation, inner: APIFuture[Any]) -> None:
        if operation.outcome != "pending":
            return
        value = inner._value  # noqa: SLF001  # it is done, and there is no loop to wait in
        metrics = metrics_of(value)
        if metrics:
            self.metrics = metrics
        future = operation.future
        if self._journal.settle(operation, metrics=metrics):
            self._machine.progressed()
        if future is not None:
            future.resolve(value)

    def fail(self, operation: Operation, error: BaseException) -> None:
        """Settle a call with an error of its own."""
        future = operation.future
        if isinstance(error, OperationWithdrawnError):
            self._journal.withdraw(operation)
        else:
            self._journal.settle(operation, failed=True)
        if future is not None:
            if isinstance(error, OperationWithdrawnError):
                future.cancel()  # observed, as whoever withdrew it knows
            future.fail(error)

    def _left(self, operation: Operation) -> None:
        """Take in that a caller's future is settled, perhaps by its caller."""
        if operation.outcome == "pending":
            self._journal.withdraw(operation)
        self._changed.set()

    # Losses of the run

    @property
    def has_hole(self) -> bool:
        """Whether a change of the model was not made, while later ones may have been.

        What an operation fails with by itself is no hole: it would again.
        """
        return any(
            operation.changes_model
            and inner.error is not None
            and not isinstance(inner.error, RequestFailedError)
            for operation, inner in self._held
        )

    def lost(self) -> None:
        """Forget what failed with the run: it will be answered by the next one."""
        self._held.clear()
        for operation in self._journal.pending:
            if isinstance(operation.future, DurableFuture):
                operation.future.inner = None

    def all_clear(self) -> None:
        """Settle what was held, for the run is well: what failed, failed by itself."""
        held, self._held = self._held, []
        for operation, inner in held:
            error = inner.error
            if error is None:
                self._answered(operation, inner)
            else:
                self.fail(operation, error)

    def close(self, reason: TinkerError) -> None:
        """Take no more calls, and fail those whose callers wait."""
        self.closed = reason
        for operation in self._journal.pending:
            future = operation.future
            self._journal.settle(operation, failed=True)
            if future is not None:
                future.fail(reason)
                _ = future.error  # told by the block itself
        self._changed.set()

    def note_change(self) -> None:
        """Wake whoever waits for calls, or for the run."""
        self._changed.set()

    async def present(self) -> TrainingClient:
        """Return the client of the present run; in a recovery, wait for it.

        Raises:
            TinkerError: The durable training is over.
        """
        while not self._machine.state.admits_work and self.closed is None:
            await self._change()
        if self.closed is not None:
            raise self.closed
        return self.client

    async def is_lost(self, client: TrainingClient, error: TinkerError) -> bool:
        """Wait until it is known whether a question to a run failed since that was lost."""
        detector = self.detector
        if detector is None or not isinstance(error, (GoneError, SessionLostError)):
            return False
        if client is self.client:
            detector.note_failure(error)
        while client is self.client and self.closed is None:
            if self._machine.state is State.HEALTHY and detector.suspicion is None:
                return False  # the alarm was false
            await self._change()
        return True

    async def _change(self) -> None:
        if self._changed.is_set():
            self._changed = anyio.Event()
        await self._changed.wait()

    async def settled(self) -> None:
        """Wait until no caller waits, and the run is well or over."""
        while self._journal.pending or self._machine.state is not State.HEALTHY:
            if self._machine.state.is_over or self.closed is not None:
                return
            await self._change()


def metrics_of(value: Any) -> dict[str, float] | None:
    """Return the metrics of an operation's result, where it has any."""
    metrics = getattr(value, "metrics", None)
    return dict(metrics) if isinstance(metrics, Mapping) else None
