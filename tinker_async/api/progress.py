"""What is known of one call while it is under way, and its deadline.

One `Progress` goes with a call from its first line to its last: whoever repeats, polls or
waits writes into it, and the error that ends the call takes its facts from it.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from typing import Literal, TypeAlias, TypeVar

import anyio

from tinker_async.errors import InvalidInputError, RequestTimeoutError, TinkerError

T = TypeVar("T")


class Default(enum.Enum):
    """Stands for an argument that was not given, where None says something of its own."""

    DEFAULT = "DEFAULT"

    def __repr__(self) -> str:
        return self.value


DEFAULT = Default.DEFAULT
"""As the session has it."""

Timeout: TypeAlias = float | Literal[Default.DEFAULT] | None
"""Seconds for all of a call; None is no limit, and `DEFAULT` the session's own."""


class Progress:
    """The state of one call. `APIFuture` is one."""

    __slots__ = (
        "attempts",
        "in_doubt",
        "last_contact",
        "on_wire",
        "operation",
        "queue_state",
        "queue_state_reason",
        "queue_state_since",
        "request_id",
    )

    def __init__(self, operation: str) -> None:
        self.operation = operation
        """Name of the public method."""
        self.request_id: str | None = None
        """The server's id of the (first) request, once it was accepted."""
        self.attempts = 0
        """Requests sent for it so far, polls not counted."""
        self.in_doubt = False
        """Whether a request of it may have had its effect without our hearing of it."""
        self.on_wire = False
        """Whether its present request has (perhaps) left this machine."""
        self.queue_state: str | None = None
        """What the server last said: `active`, `paused_capacity`, `paused_rate_limit`."""
        self.queue_state_reason: str | None = None
        self.queue_state_since: float | None = None
        """`anyio.current_time()` of the last change of the two."""
        self.last_contact: float | None = None
        """`anyio.current_time()` of the server's last answer to a request of this call."""

    def note_queue_state(self, state: str, reason: str | None) -> bool:
        """Record what the server said; return whether it is something new."""
        if (state, reason) == (self.queue_state, self.queue_state_reason):
            return False
        self.queue_state, self.queue_state_reason = state, reason
        self.queue_state_since = anyio.current_time()
        return True

    def describe(self, error: TinkerError) -> TinkerError:
        """Add what is known of the call to an error that ends it, and return the error."""
        contact = self.last_contact
        error.add_context(
            operation=self.operation,
            request_id=self.request_id,
            attempts=self.attempts,
            queue_state=self.queue_state,
            silent_s=None if contact is None else anyio.current_time() - contact,
        )
        return error

    def timed_out(self, timeout_s: float, hint: str) -> RequestTimeoutError:
        """Make the error of a call whose deadline is over."""
        where = "before it was accepted" if self.request_id is None else "after it was accepted"
        state = f", queue state {self.queue_state}" if self.queue_state else ""
        error = RequestTimeoutError(
            f"{self.operation} had no result after {timeout_s:g} s: {where}{state}", hint=hint
        )
        self.describe(error)
        return error


def check_timeout(timeout: float | None, *, field: str = "timeout") -> float | None:
    """Return a deadline a user gave.

    Raises:
        InvalidInputError: It is not above zero.
    """
    if timeout is not None and (not isinstance(timeout, (int, float)) or not timeout > 0):
        raise InvalidInputError(
            f"{field}: must be above 0 seconds, got {timeout!r}",
            field=field,
            hint="None waits without a limit",
        )
    return timeout


async def within(
    timeout_s: float | None,
    progress: Progress,
    work: Callable[[], Awaitable[T]],
    *,
    hint: str = "wait longer, or look at session.health()",
) -> T:
    """Do work under one deadline, which covers all of its waiting.

    What fails in it is told as the failure of this call, whatever other calls it made.

    Raises:
        RequestTimeoutError: The time is over; the work was cancelled.
    """
    try:
        if timeout_s is None:
            return await work()
        with anyio.move_on_after(timeout_s):
            return await work()
    except TinkerError as error:
        error.operation = progress.operation
        progress.describe(error)
        raise
    raise progress.timed_out(timeout_s, hint)
