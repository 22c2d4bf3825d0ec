"""The training queue: one lane per model, in which operations are sent in call order.

A lane is one task. It takes the next operation, gives each of its requests the next
sequence number, and sends them one after the other; the results are awaited by other
tasks, so that the server always has the next operation at hand.

The server executes a model's requests strictly by number. So a number is used up only
by a request that the server has (or may have) accepted: a request that was refused or
never sent leaves its number to the next one, and a request whose delivery stays in
doubt poisons the lane, because nothing after it can be ordered.
"""

from __future__ import annotations

import copy
import functools
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import anyio
import anyio.abc
import anyio.lowlevel
import msgspec

from tinker_async.api.calls import Caller, Endpoint, decode_json
from tinker_async.api.features import Feature
from tinker_async.api.progress import DEFAULT, Timeout
from tinker_async.api.promises import PATH as RETRIEVE_PATH
from tinker_async.api.promises import RETRIEVE_ANY, RETRIEVE_JSON, Room, retrieve
from tinker_async.api.retry import RetryPolicy
from tinker_async.background.compression import Compression
from tinker_async.background.deadlines import Deadlines
from tinker_async.background.training_forms import Batch, sent_in_some_form
from tinker_async.errors import (
    InvalidInputError,
    ModelPoisonedError,
    OperationWithdrawnError,
    ResponseError,
    TinkerError,
    UnsupportedByServerError,
)
from tinker_async.events import ModelPoisoned
from tinker_async.futures import APIFuture
from tinker_async.logs import log
from tinker_async.transport import Buffer, Response
from tinker_async.wire.messages import UntypedAPIFuture
from tinker_async.wire.promises import PromiseResult

T = TypeVar("T")

_MOST_IDLE_COLLECTORS = 16

Collect: TypeAlias = Callable[[], Awaitable[None]]
"""Awaits an operation's results and settles its future."""


class TrainingRequest(msgspec.Struct, frozen=True, eq=False):
    """One request of an operation; its body is built when its number is known."""

    endpoint: Endpoint
    build: Callable[[int], Sequence[Buffer]]
    """From the sequence number to the body."""
    decode: Callable[[PromiseResult], Any]
    protobuf_result: bool = False
    compressed: Endpoint | None = None
    """Where a compressed body goes instead; None for requests that are never compressed."""
    batch: Batch | None = None
    """What it says, where it has other forms as well; `build` makes the newest one."""
    older: TrainingRequest | None = None
    """What does the same on a server without `Feature.WEIGHTS_ONLY_LOADING`."""


def in_form(request: TrainingRequest, batch: Batch, *, json: bool) -> TrainingRequest:
    """Return a request with dense tensors, in JSON or as it was."""
    batch = batch.dense()
    if json:
        return msgspec.structs.replace(
            request, endpoint=batch.json_endpoint(), build=batch.json_body, compressed=None
        )
    return msgspec.structs.replace(request, build=batch.protobuf_body)


class Operation(Protocol):
    """What a lane runs. `future` is settled by `run`, or by the lane when it ends."""

    future: APIFuture[Any]

    async def run(self, lane: Lane) -> Collect | None:
        """Send the requests, in this operation's turn.

        Returns:
            What awaits the results and settles the future, outside the turn; None when
            the future is settled already.
        """
        ...


class RequestsOperation(Generic[T]):
    """An operation of one or more requests whose results are merged.

    Args:
        name: The public method's name.
        requests: In order.
        merge: From the decoded results, in order, to the operation's value.
        policy: When to repeat; default the session's.
    """

    def __init__(
        self,
        name: str,
        requests: Sequence[TrainingRequest],
        merge: Callable[[list[Any]], T],
        policy: RetryPolicy | None = None,
    ) -> None:
        self.future: APIFuture[T] = APIFuture(name)
        self._requests = requests
        self._merge = merge
        self._policy = policy

    async def run(self, lane: Lane) -> Collect:
        """Send all requests, then return what waits for their results."""
        promises = []
        for request in self._requests:
            if len(self._requests) > 1:
                # Large bodies are built here: let the loop's other tasks in between.
                await anyio.lowlevel.checkpoint()
            promises.append(await lane.send(request, self.future, self._policy))
        return functools.partial(self._collect, lane, promises)

    async def _collect(self, lane: Lane, promises: Sequence[UntypedAPIFuture]) -> None:
        results = await lane.results(self._requests, promises, self.future, self._policy)
        self.future.resolve(self._merge(results))


class LaneStatistics(msgspec.Struct, frozen=True):
    """Figures of one model's training queue."""

    queued: int
    """Operations whose turn has not come."""
    unsettled: int
    """Operations without a result so far, the queued ones included."""
    next_seq_id: int
    """The number of the next request."""


class Lane:
    """The queue of one model. `run` is its life; it belongs into the session's task group."""

    def __init__(
        self,
        model_id: str,
        caller: Caller,
        *,
        on_settled: Callable[[APIFuture[Any]], None],
        deadlines: Deadlines,
        compression: Compression | None = None,
        room: Room | None = None,
    ) -> None:
        self.model_id = model_id
        self.caller = caller
        self.compression = compression
        """How large bodies are compressed; None leaves all as they are."""
        self.compute = anyio.CapacityLimiter(1)
        """For the user's own loss functions: one worker thread a model."""
        self._room = room
        self._on_settled = on_settled
        self._deadlines = deadlines
        self._queue: deque[Operation] = deque()
        self._wake = anyio.Event()
        self._idle = anyio.Event()
        self._next_seq_id = 1
        self._sending = False
        self._unsettled: set[APIFuture[Any]] = set()
        self._poison: ModelPoisonedError | None = None
        self._closed: BaseException | None = None
        self._on_refused: Callable[[str], None] | None = None
        self.saved_names: set[str] = set()
        """Checkpoints of this model that the server has, or may have."""

    def submit(self, operation: Operation, timeout: Timeout = DEFAULT) -> None:
        """Queue an operation; it is sent after all that were queued before it.

        Args:
            operation: What to run.
            timeout: Seconds until its future fails, if it has no result before.

        Raises:
            SessionClosedError: The session has ended.
            ModelPoisonedError: An earlier request was lost.
            InvalidInputError: The time is not above zero.
        """
        if self._closed is not None:
            if self._on_refused is not None:
                self._on_refused(operation.future.operation)
            raise self._closed
        self._refuse_if_poisoned(operation.future)
        limit_s = self.caller.limit_of(timeout)
        operation.future.on_settled(self._settled)
        self._queue.append(operation)
        self._unsettled.add(operation.future)
        if limit_s is not None:
            self._deadlines.add(operation.future, limit_s)
        self._wake.set()

    def _settled(self, future: APIFuture[Any]) -> None:
        self._unsettled.discard(future)
        self._deadlines.discard(future)
        self._on_settled(future)
        self._note_rest()

    def _note_rest(self) -> None:
        if not self._unsettled and not self._sending:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until every queued operation is settled, and none is being sent."""
        while self._unsettled or self._sending:
            self._idle = anyio.Event()
            await self._idle.wait()

    async def run(self) -> None:
        """Send queued operations in turn, until cancelled."""
        async with anyio.create_task_group() as tasks:
            collectors = _Collectors(tasks)
            while True:
                if not self._queue:
                    self._wake = anyio.Event()
                    await self._wake.wait()
                    continue
                operation = self._queue.popleft()
                if operation.future.done:
                    continue
                await self._take_turn(operation, collectors)

    async def _take_turn(self, operation: Operation, collectors: _Collectors) -> None:
        future = operation.future
        future.sent = self._sending = True
        try:
            with _failures_of(future):
                self._refuse_if_poisoned(future)
                collect = await operation.run(self)
                if collect is not None and not future.done:
                    collectors.take(future, collect)
        finally:
            self._sending = False
            self._note_rest()

    def close(self, reason: TinkerError, on_refused: Callable[[str], None] | None = None) -> None:
        """Refuse new operations and fail all that are not settled.

        Args:
            reason: What is raised.
            on_refused: Called with the name of each operation that comes after all.
        """
        self._closed, self._on_refused = reason, on_refused
        self._queue.clear()
        for future in list(self._unsettled):
            future.fail(reason)

    async def send(
        self, request: TrainingRequest, future: APIFuture[Any], policy: RetryPolicy | None = None
    ) -> UntypedAPIFuture:
        """Send one request under the next number and return its promise.

        Raises:
            TinkerError: It was refused, or could not be delivered.
        """
        try:
            return await self.deliver(request, future, policy)
        except TinkerError as error:
            if error.delivery_in_doubt:
                self.lose(error, future)
            raise

    async def deliver(
        self, request: TrainingRequest, future: APIFuture[Any], policy: RetryPolicy | None
    ) -> UntypedAPIFuture:
        """As `send`, for one who knows what to do about a delivery in doubt.

        Raises:
            TinkerError: `delivery_in_doubt` says whether the number may be used up.
        """
        if request.batch is None:
            response = await self._sent(request, future, policy)
        else:
            attempt = functools.partial(self._send, request, future, policy)
            response = await sent_in_some_form(self.caller.features, request.batch, attempt)
        try:
            promise = decode_json(response.body, UntypedAPIFuture, request.endpoint.path)
        except ResponseError as error:
            # The server took the request; without its promise the result is out of reach.
            future.in_doubt = error.delivery_in_doubt = True
            future.describe(error)
            raise
        self.use_number()
        if future.request_id is None:
            future.request_id = promise.request_id
        return promise

    async def _sent(
        self, request: TrainingRequest, future: APIFuture[Any], policy: RetryPolicy | None
    ) -> Response:
        if request.older is None:
            return await self._send(request, future, policy)
        if Feature.WEIGHTS_ONLY_LOADING not in self.caller.features.missing:
            try:
                return await self._send(request, future, policy)
            except UnsupportedByServerError as error:
                if error.feature != Feature.WEIGHTS_ONLY_LOADING:
                    raise
        return await self._send(request.older, future, policy)

    async def _send(
        self,
        request: TrainingRequest,
        future: APIFuture[Any],
        policy: RetryPolicy | None,
        *,
        json: bool = False,
        dense: bool = False,
        unless: Callable[[TinkerError], bool] | None = None,
        attempts_before: int = 0,
    ) -> Response:
        """Send a request under the next number, in one of its forms."""
        if request.batch is not None and (json or (dense and request.batch.is_sparse)):
            request = in_form(request, request.batch, json=json)
        endpoint = request.endpoint
        body = _encoded(request, self._next_seq_id, future.operation)
        if self.compression is not None and request.compressed is not None:
            smaller = await self.compression.compressed(body)
            if smaller is not None:
                endpoint, body = request.compressed, smaller
        return await self.caller.call(
            endpoint,
            body,
            policy=policy,
            progress=future,
            unless=unless,
            attempts_before=attempts_before,
        )

    def use_number(self) -> None:
        """Note that the server has the request of the next number."""
        self._next_seq_id += 1

    def lose(self, error: TinkerError, future: APIFuture[Any]) -> None:
        """Send nothing more: whether the request of the next number ran is not known."""
        seq_id, name = self._next_seq_id, type(error).__name__
        poison = ModelPoisonedError(
            f"{future.operation} (seq_id {seq_id}) of {self.model_id} was lost ({name}), so later "
            "operations cannot be ordered",
            hint="make a new training client from the last checkpoint",
            model_id=self.model_id,
            lost_operation=future.operation,
            lost_seq_id=seq_id,
            lost_error=name,
            lost_message=error.message,
        )
        poison.__cause__ = error
        self._poison = poison
        log.warning("model_poisoned", model_id=self.model_id, seq_id=seq_id)
        self.caller.events.emit(
            ModelPoisoned(self.model_id, future.operation, seq_id, name, error.message)
        )

    async def results(
        self,
        requests: Sequence[TrainingRequest],
        promises: Sequence[UntypedAPIFuture],
        future: APIFuture[Any],
        policy: RetryPolicy | None = None,
    ) -> list[Any]:
        """Wait for the results of promises, all at once, and decode them in order.

        Raises:
            TinkerError: The first failure; the other results are no longer awaited.
            OperationWithdrawnError: The future was settled by somebody else.
        """
        with future.while_wanted():
            if len(promises) == 1:
                return [await self._result(requests[0], promises[0], future, policy)]
            return await self._all_results(requests, promises, future, policy)
        raise OperationWithdrawnError(f"{future.operation} is no longer awaited")

    async def _all_results(
        self,
        requests: Sequence[TrainingRequest],
        promises: Sequence[UntypedAPIFuture],
        future: APIFuture[Any],
        policy: RetryPolicy | None,
    ) -> list[Any]:
        values: list[Any] = [None] * len(promises)
        errors: list[TinkerError] = []

        async def fill(index: int) -> None:
            try:
                values[index] = await self._result(requests[index], promises[index], future, policy)
            except TinkerError as error:
                errors.append(error)
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for index in range(len(promises)):
                group.start_soon(fill, index)
        if errors:
            raise errors[0]
        return values

    async def _result(
        self,
        request: TrainingRequest,
        promise: UntypedAPIFuture,
        future: APIFuture[Any],
        policy: RetryPolicy | None,
    ) -> Any:
        large = request.protobuf_result
        result = await retrieve(
            self.caller,
            promise.request_id,
            endpoint=RETRIEVE_ANY if large else RETRIEVE_JSON,
            policy=policy,
            progress=future,
            room=self._room if large else None,
        )
        return request.decode(result)

    @property
    def poison(self) -> str | None:
        """How the first lost request was lost, or None."""
        return None if self._poison is None else self._poison.message

    def _refuse_if_poisoned(self, future: APIFuture[Any]) -> None:
        if self._poison is None:
            return
        error = copy.copy(self._poison)  # of its own: each has its place and its traceback
        error.__cause__ = self._poison.__cause__
        future.describe(error)
        raise error

    def statistics(self) -> LaneStatistics:
        """Return the current figures."""
        return LaneStatistics(len(self._queue), len(self._unsettled), self._next_seq_id)

    def __repr__(self) -> str:
        state = "poisoned" if self._poison else ("closed" if self._closed else "open")
        return (
            f"<Lane {self.model_id}: {state}, {len(self._queue)} queued, "
            f"{len(self._unsettled)} unsettled, next seq_id {self._next_seq_id}>"
        )


class _Collectors:
    """Tasks that await results. One that is done is kept: waking it costs less than a new one."""

    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        self._tasks = tasks
        self._idle: list[_IdleCollector] = []

    def take(self, future: APIFuture[Any], collect: Collect) -> None:
        """Collect an operation's results in some task."""
        if self._idle:
            idle = self._idle.pop()
            idle.work = (future, collect)
            idle.wake.set()
        else:
            self._tasks.start_soon(self._run, future, collect)

    async def _run(self, future: APIFuture[Any], collect: Collect) -> None:
        while True:
            await _settle(future, collect)
            del future, collect  # a result is not kept alive by a task that waits
            if len(self._idle) >= _MOST_IDLE_COLLECTORS:
                return
            idle = _IdleCollector()
            self._idle.append(idle)
            await idle.wake.wait()
            future, collect = idle.work
            del idle


class _IdleCollector:
    __slots__ = ("wake", "work")

    work: tuple[APIFuture[Any], Collect]

    def __init__(self) -> None:
        self.wake = anyio.Event()


async def _settle(future: APIFuture[Any], collect: Collect) -> None:
    """Await an operation's results; its failure is the future's, never the session's."""
    with _failures_of(future):
        await collect()


@contextmanager
def _failures_of(future: APIFuture[Any]) -> Iterator[None]:
    """Settle an operation with whatever fails in a block.

    This is where a fault of our own ends: a result that decodes to nonsense, or a merge that
    stumbles over it, is this operation's failure, and the session goes on.
    """
    try:
        yield
    except TinkerError as error:
        future.fail(future.describe(error))
    except Exception as error:  # noqa: BLE001  # the named boundary
        log.error("operation_stumbled", operation=future.operation, error=type(error).__name__)
        failure = ResponseError(
            f"the result of {future.operation} could not be used: {type(error).__name__}: {error}",
            endpoint=RETRIEVE_PATH,
            hint="the server may speak a form of the protocol that this version does not know",
        )
        future.describe(failure)
        failure.__cause__ = error
        future.fail(failure)


def _encoded(request: TrainingRequest, seq_id: int, operation: str) -> Sequence[Buffer]:
    """Return a request's body; what cannot be encoded is its caller's error."""
    try:
        return request.build(seq_id)
    except TinkerError:
        raise
    except Exception as error:
        raise InvalidInputError(
            f"{operation} could not be encoded: {type(error).__name__}: {error}", field="data"
        ) from error
