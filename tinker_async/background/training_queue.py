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

import functools
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import anyio
import anyio.abc
import anyio.lowlevel
import msgspec

from tinker_async.api.calls import Caller, Endpoint, decode_json
from tinker_async.api.promises import (
    RETRIEVE_ANY,
    RETRIEVE_JSON,
    retrieve,
)
from tinker_async.api.retry import RetryPolicy
from tinker_async.background.compression import Compression
from tinker_async.errors import (
    ModelPoisonedError,
    ResponseError,
    SessionClosedError,
    TinkerError,
)
from tinker_async.futures import APIFuture
from tinker_async.logs import log
from tinker_async.transport import Buffer
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
    """

    def __init__(
        self,
        name: str,
        requests: Sequence[TrainingRequest],
        merge: Callable[[list[Any]], T],
    ) -> None:
        self.future: APIFuture[T] = APIFuture(name)
        self._requests = requests
        self._merge = merge

    async def run(self, lane: Lane) -> Collect:
        """Send all requests, then return what waits for their results."""
        promises = []
        for request in self._requests:
            if len(self._requests) > 1:
                # Large bodies are built here: let the loop's other tasks in between.
                await anyio.lowlevel.checkpoint()
            promises.append(await lane.send(request, self.future))
        return functools.partial(self._collect, lane, promises)

    async def _collect(self, lane: Lane, promises: Sequence[UntypedAPIFuture]) -> None:
        results = await lane.results(self._requests, promises, self.future)
        self.future.resolve(self._merge(results))


class Lane:
    """The queue of one model. `run` is its life; it belongs into the session's task group."""

    def __init__(
        self,
        model_id: str,
        caller: Caller,
        policy: RetryPolicy,
        *,
        on_settled: Callable[[APIFuture[Any]], None],
        compression: Compression | None = None,
    ) -> None:
        self.model_id = model_id
        self.compression = compression
        """How large bodies are compressed; None leaves all as they are."""
        self.compute = anyio.CapacityLimiter(1)
        """For the user's own loss functions: one worker thread a model."""
        self._on_settled = on_settled
        self._caller = caller
        self._policy = policy
        self._queue: deque[Operation] = deque()
        self._wake = anyio.Event()
        self._idle = anyio.Event()
        self._next_seq_id = 1
        self._unsettled: set[APIFuture[Any]] = set()
        self._poison: TinkerError | None = None
        self._closed: BaseException | None = None

    def submit(self, operation: Operation) -> None:
        """Queue an operation; it is sent after all that were queued before it.

        Raises:
            SessionClosedError: The session has ended.
            ModelPoisonedError: An earlier request was lost.
        """
        if self._closed is not None:
            raise self._closed
        if self._poison is not None:
            raise self._poisoned()
        operation.future.on_settled(self._settled)
        self._queue.append(operation)
        self._unsettled.add(operation.future)
        self._wake.set()

    def _settled(self, future: APIFuture[Any]) -> None:
        self._unsettled.discard(future)
        self._on_settled(future)
        if not self._unsettled:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until every queued operation is settled."""
        while self._unsettled:
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
                if self._poison is not None:
                    operation.future.fail(self._poisoned())
                    continue
                await self._take_turn(operation, collectors)

    async def _take_turn(self, operation: Operation, collectors: _Collectors) -> None:
        operation.future.sent = True
        try:
            collect = await operation.run(self)
        except TinkerError as error:
            operation.future.fail(error)
        else:
            if collect is not None:
                collectors.take(operation.future, collect)

    def close(self, reason: SessionClosedError) -> None:
        """Refuse new operations and fail all that are not settled."""
        self._closed = reason
        self._queue.clear()
        for future in list(self._unsettled):
            future.fail(reason)

    async def send(self, request: TrainingRequest, future: APIFuture[Any]) -> UntypedAPIFuture:
        """Send one request under the next number and return its promise.

        Raises:
            TinkerError: It was refused, or could not be delivered.
        """
        seq_id = self._next_seq_id
        endpoint, body = request.endpoint, request.build(seq_id)
        if self.compression is not None and request.compressed is not None:
            smaller = await self.compression.compressed(body)
            if smaller is not None:
                endpoint, body = request.compressed, smaller
        try:
            response = await self._caller.call(endpoint, body, policy=self._policy)
        except TinkerError as error:
            if error.delivery_in_doubt:
                self._lose(error, seq_id)
            raise
        try:
            promise = decode_json(response.body, UntypedAPIFuture, request.endpoint.path)
        except ResponseError as error:
            # The server took the request; without its promise the result is out of reach.
            self._lose(error, seq_id)
            raise
        self._next_seq_id = seq_id + 1
        if future.request_id is None:
            future.request_id = promise.request_id
        return promise

    def _lose(self, error: TinkerError, seq_id: int) -> None:
        self._poison = error
        log.warning("model_poisoned", model_id=self.model_id, seq_id=seq_id)

    async def results(
        self,
        requests: Sequence[TrainingRequest],
        promises: Sequence[UntypedAPIFuture],
        future: APIFuture[Any],
    ) -> list[Any]:
        """Wait for the results of promises, all at once, and decode them in order.

        Raises:
            TinkerError: The first failure; the other results are no longer awaited.
        """
        if len(promises) == 1:
            return [await self._result(requests[0], promises[0], future)]
        values: list[Any] = [None] * len(promises)
        errors: list[TinkerError] = []

        async def fill(index: int) -> None:
            try:
                values[index] = await self._result(requests[index], promises[index], future)
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
        self, request: TrainingRequest, promise: UntypedAPIFuture, future: APIFuture[Any]
    ) -> Any:
        def note(state: str, reason: str | None) -> None:
            future.queue_state, future.queue_state_reason = state, reason

        endpoint = RETRIEVE_ANY if request.protobuf_result else RETRIEVE_JSON
        result = await retrieve(
            self._caller,
            promise.request_id,
            endpoint=endpoint,
            policy=self._policy,
            on_queue_state=note,
        )
        return request.decode(result)

    def _poisoned(self) -> ModelPoisonedError:
        error = ModelPoisonedError(
            f"an earlier request of {self.model_id} was lost, so later ones cannot be ordered",
            hint="make a new training client from the last checkpoint",
        )
        error.__cause__ = self._poison
        return error

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
    try:
        await collect()
    except TinkerError as error:
        future.fail(error)
