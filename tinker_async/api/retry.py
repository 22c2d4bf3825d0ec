"""The one retry policy: a pure decision, no sleeping and no clock.

An error says itself whether a repetition can help (`retryable`); the policy says how
often and how long apart. A request with a sequence number is always repeated under
the same number.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from tinker_async.data import given
from tinker_async.errors import APIStatusError, TinkerError

spread = random.Random().random  # noqa: S311  # jitter, no secret
"""Numbers in [0, 1) of our own: workers that seed `random` alike must not repeat alike."""
_JITTER = 0.25
"""A delay is shortened by up to this share, so that clients do not march in step."""


class RetryPolicy(msgspec.Struct, frozen=True):
    """When to repeat a failed request.

    Args:
        max_attempts: Requests on the wire for one call, the first included; 1 never repeats.
        window_s: Give up when this much time has passed since the first failure.
        base_s: First delay; it doubles with each failure.
        max_s: Longest delay of our own choosing.
        max_server_s: Longest delay that is taken from a `Retry-After`.

    Raises:
        InvalidInputError: Less than one attempt, or a time below zero.
    """

    max_attempts: int = 30
    window_s: float = 300.0
    base_s: float = 0.5
    max_s: float = 10.0
    max_server_s: float = 60.0

    def __post_init__(self) -> None:
        given.whole(self.max_attempts, "max_attempts", least=1)
        for field in ("window_s", "base_s", "max_s", "max_server_s"):
            given.number(getattr(self, field), field, least=0)

    def next_delay(
        self,
        error: TinkerError,
        *,
        attempt: int,
        failing_for_s: float,
        jitter: Callable[[], float] = spread,
    ) -> float | None:
        """Return the seconds to wait before the next attempt, or None to give up.

        Args:
            error: What attempt number `attempt` (from 1) ended in.
            attempt: How many attempts were made.
            failing_for_s: Time since the first failure of this call.
            jitter: A source of numbers in [0, 1).
        """
        if not may_repeat(error) or attempt >= self.max_attempts:
            return None
        delay = self.pause_s(attempt - 1, jitter=jitter)
        if isinstance(error, APIStatusError) and error.retry_after_s is not None:
            delay = max(delay, min(error.retry_after_s, self.max_server_s))
        return delay if failing_for_s + delay <= self.window_s else None

    def pause_s(self, failures: int, *, jitter: Callable[[], float] = spread) -> float:
        """Return a pause of our own choosing after so many failures before this one."""
        pause_s = min(self.base_s * 2.0 ** min(failures, 30), self.max_s)
        return pause_s * (1 - _JITTER * jitter())


def check_policy(policy: object) -> None:
    """Check what a call was given as `retry`.

    Raises:
        InvalidInputError: It is something else.
    """
    if policy is not None and not isinstance(policy, RetryPolicy):
        raise given.wrong(
            "retry",
            f"must be a RetryPolicy, got {given.shown(policy)}",
            "the form is RetryPolicy(max_attempts=5); 1 repeats nothing",
        )


def may_repeat(error: TinkerError) -> bool:
    """Whether repeating the request can help: the server's word first, then the class."""
    return error.retryable if error.should_retry is None else error.should_retry


def parse_retry_after(
    retry_after_ms: bytes | None, retry_after: bytes | None, *, now: datetime | None = None
) -> float | None:
    """Read the two header forms: milliseconds, then seconds or an HTTP date.

    Returns:
        Seconds from now, at least 0; None when absent or unreadable.
    """
    try:
        if retry_after_ms is not None:
            return _not_negative(float(retry_after_ms) / 1000)
        if retry_after is None:
            return None
        try:
            return _not_negative(float(retry_after))
        except ValueError:
            import email.utils  # noqa: PLC0415  # many modules for a rare header

            when = email.utils.parsedate_to_datetime(retry_after.decode("latin-1"))
    except (ValueError, TypeError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - (now or datetime.now(UTC))).total_seconds())


def _not_negative(seconds: float) -> float | None:
    return seconds if 0 <= seconds < float("inf") else None
