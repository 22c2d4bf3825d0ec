"""`APIFuture`: the handle of a queued operation, awaitable by many tasks and many times.

A future is settled exactly once, by the part of the session that owns the operation.
Cancelling a task that waits for it leaves the operation alone.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Self, TypeVar

import anyio
import msgspec

from tinker_async.api.progress import Progress
from tinker_async.errors import (
    InvalidInputError,
    OperationWithdrawnError,
    RequestTimeoutError,
)

T = TypeVar("T")


class QueueState(msgspec.Struct, frozen=True):
    """What the server said of an operation's place in its queue."""

    state: str
    """`active`, `paused_capacity`, `paused_rate_limit`, or what a newer server wrote."""
    reason: str | None
    since: float
    """`anyio.current_time()` of the change."""


class _Link:
    """A state and the one that followed, so that each reader goes on from where it is."""

    __slots__ = ("next", "state")

    def __init__(self, state: QueueState) -> None:
        self.state = state
        self.next: _Link | None = None


class APIFuture(Progress, Generic[T]):
    """The result of an operation in a training queue.

    Made by client methods, at once and in call order. `await future` gives the value
    or raises the operation's error, as often as one likes.
    """

    __slots__ = (
        "_changed",
        "_done",
        "_error",
        "_last_state",
        "_observed",
        "_on_queue_state",
        "_on_settled",
        "_results_scope",
        "_value",
        "_waiters",
        "sent",
    )

    _value: T

    def __init__(self, operation: str) -> None:
        super().__init__(operation)
        self.sent = False
        """Whether the operation was (perhaps) sent: then it cannot be withdrawn."""
        self._error: BaseException | None = None
        self._done = False
        self._observed = False
        self._waiters: anyio.Event | None = None
        self._on_settled: Callable[[APIFuture[Any]], None] | None = None
        self._on_queue_state: Callable[[str, str | None], object] | None = None
        self._last_state: _Link | None = None
        self._changed: anyio.Event | None = None
        self._results_scope: anyio.CancelScope | None = None

    @property
    def done(self) -> bool:
        """Whether the operation has ended, one way or the other."""
        return self._done

    @property
    def failed_unobserved(self) -> bool:
        """Whether the operation failed and nobody has awaited it."""
        return self._error is not None and not self._observed

    def cancel(self) -> bool:
        """Withdraw the operation if it was not sent yet; later ones close up, no gap is left.

        Returns:
            Whether it was withdrawn. Waiters then get `OperationWithdrawnError`.
        """
        if self.sent or self._done:
            return False
        self._observed = True
        self.fail(OperationWithdrawnError(f"{self.operation} was withdrawn before it was sent"))
        return True

    def __await__(self) -> Generator[Any, Any, T]:
        return self.result().__await__()

    async def result(self, timeout: float | None = None) -> T:  # noqa: ASYNC109  # the official name
        """Wait for the result.

        Args:
            timeout: Seconds to wait; the operation goes on when they are over.

        Raises:
            InvalidInputError: `timeout` is no number.
            RequestTimeoutError: The time is over.
            TinkerError: The operation's own error.
        """
        if timeout is not None:
            _check_wait(timeout)
        self._observed = True
        if not self._done:
            if self._waiters is None:
                self._waiters = anyio.Event()
            if timeout is None:
                await self._waiters.wait()
            else:
                with anyio.move_on_after(timeout):
                    await self._waiters.wait()
        if not self._done:
            raise RequestTimeoutError(
                f"{self.operation} had no result after {timeout} s",
                hint="it is still under way: await it again, or wait longer",
            )
        if self._error is not None:
            raise self._error
        return self._value

    def queue_states(self) -> AsyncIterator[QueueState]:
        """Iterate over what the server says of this operation's place in its queue.

        The present state comes first, then each change once; the end comes when the operation is
        settled. Any number of iterators may be open, and none has to be closed.
        """
        return _QueueStates(self)

    def note_queue_state(self, state: str, reason: str | None) -> bool:
        """Record what the server said; return whether it is something new."""
        if not super().note_queue_state(state, reason):
            return False
        link = _Link(QueueState(state, reason, self.queue_state_since or 0.0))
        if self._last_state is not None:
            self._last_state.next = link
        self._last_state = link
        self._wake_readers()
        if self._on_queue_state is not None:
            self._on_queue_state(state, reason)
        return True

    def on_queue_state(self, callback: Callable[[str, str | None], object]) -> None:
        """Call back, synchronously, with each new state and its reason. There is one callback."""
        self._on_queue_state = callback

    async def _change(self) -> None:
        if self._changed is None:
            self._changed = anyio.Event()
        await self._changed.wait()

    def _wake_readers(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    @contextmanager
    def while_wanted(self) -> Iterator[None]:
        """Wrap the wait for results: settling the future from outside ends it."""
        with anyio.CancelScope() as scope:
            if self._done:
                scope.cancel()
            self._results_scope = scope
            try:
                yield
            finally:
                self._results_scope = None  # cancelling costs more than all the rest of settling

    def resolve(self, value: T) -> None:
        """Settle with a value; the first settlement counts."""
        if not self._done:
            self._value = value
            self._settle()

    def fail(self, error: BaseException) -> None:
        """Settle with an error; the first settlement counts."""
        if not self._done:
            self._error = error
            self._settle()

    def on_settled(self, callback: Callable[[APIFuture[Any]], None]) -> None:
        """Call back, synchronously, when the future is settled; the newest callback first."""
        older = self._on_settled
        if older is None:
            self._on_settled = callback
            return

        def both(future: APIFuture[Any]) -> None:
            callback(future)
            older(future)

        self._on_settled = both

    def _settle(self) -> None:
        self._done = True
        if self._waiters is not None:
            self._waiters.set()
        if self._results_scope is not None:
            self._results_scope.cancel()
        self._wake_readers()
        # Let go of whoever is told: they may hold us, and a result should not wait for the cycle
        # collector, for it can be large.
        told, self._on_settled, self._on_queue_state = self._on_settled, None, None
        if told is not None:
            told(self)

    @property
    def error(self) -> BaseException | None:
        """The operation's error once it failed, else None. Looking counts as observing."""
        if self._error is not None:
            self._observed = True
        return self._error

    def describe_error(self) -> str:
        """Return the error's class and text; looking this way does not count as observing."""
        return f"{type(self._error).__name__}: {self._error}"

    def __repr__(self) -> str:
        state = "pending" if not self._done else ("failed" if self._error else "done")
        queue = f", {self.queue_state}" if self.queue_state and not self._done else ""
        return f"<APIFuture {self.operation}: {state}{queue}>"


class _QueueStates:
    """Reads the states of one future, from the present one on."""

    def __init__(self, future: APIFuture[Any]) -> None:
        self._future = future
        self._at: _Link | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> QueueState:
        future = self._future
        while True:
            link = future._last_state if self._at is None else self._at.next  # noqa: SLF001  # its own
            if link is not None:
                self._at = link
                return link.state
            if future.done:
                raise StopAsyncIteration
            await future._change()  # noqa: SLF001  # its own


def _check_wait(timeout: object) -> None:
    if not isinstance(timeout, (int, float)) or math.isnan(timeout):
        raise InvalidInputError(
            f"timeout: must be a number of seconds, got {timeout!r}",
            field="timeout",
            hint="None waits without a limit, 0 not at all",
        )
