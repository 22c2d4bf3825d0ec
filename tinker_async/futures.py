"""`APIFuture`: the handle of a queued operation, awaitable by many tasks and many times.

A future is settled exactly once, by the part of the session that owns the operation.
Cancelling a task that waits for it leaves the operation alone.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

import anyio

from tinker_async.errors import OperationWithdrawnError, RequestTimeoutError

T = TypeVar("T")


class APIFuture(Generic[T]):
    """The result of an operation in a training queue.

    Made by client methods, at once and in call order. `await future` gives the value
    or raises the operation's error, as often as one likes.
    """

    __slots__ = (
        "_done",
        "_error",
        "_observed",
        "_on_settled",
        "_value",
        "_waiters",
        "operation",
        "queue_state",
        "queue_state_reason",
        "request_id",
        "sent",
    )

    _value: T

    def __init__(self, operation: str) -> None:
        self.operation = operation
        """Name of the operation, such as `forward_backward`."""
        self.request_id: str | None = None
        """The server's id of the (first) request, once it was accepted."""
        self.queue_state: str | None = None
        """What the server last said: `active`, `paused_capacity`, `paused_rate_limit`."""
        self.queue_state_reason: str | None = None
        self.sent = False
        """Whether the operation was (perhaps) sent: then it cannot be withdrawn."""
        self._error: BaseException | None = None
        self._done = False
        self._observed = False
        self._waiters: anyio.Event | None = None
        self._on_settled: Callable[[APIFuture[Any]], None] | None = None

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
            RequestTimeoutError: The time is over.
            TinkerError: The operation's own error.
        """
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
        """Call back, synchronously, when the future is settled. One callback only."""
        self._on_settled = callback

    def _settle(self) -> None:
        self._done = True
        if self._waiters is not None:
            self._waiters.set()
        if self._on_settled is not None:
            self._on_settled(self)

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
