"""The retry policy's decisions, and the forms of Retry-After."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tinker_async import RetryPolicy
from tinker_async.api.retry import parse_retry_after
from tinker_async.errors import ConnectError, RequestTimeoutError, TinkerError, status_error


def decide(error: TinkerError, *, attempt: int = 1, failing_for_s: float = 0) -> float | None:
    return RetryPolicy().next_delay(
        error, attempt=attempt, failing_for_s=failing_for_s, jitter=lambda: 0.0
    )


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 599])
def test_passing_failures_are_repeated(status: int) -> None:
    """Overload, rate limits and server faults can pass."""
    assert decide(status_error(status, endpoint="/x", detail="")) == 0.5


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 410, 413, 422])
def test_final_refusals_are_not_repeated(status: int) -> None:
    """The same request would be refused again; 409 is never repeated blindly."""
    assert decide(status_error(status, endpoint="/x", detail="")) is None


@pytest.mark.parametrize("error", [ConnectError("x"), RequestTimeoutError("x")])
def test_transport_failures_are_repeated(error: TinkerError) -> None:
    """The network can come back."""
    assert decide(error) == 0.5


def test_the_servers_verdict_beats_the_status() -> None:
    """`x-should-retry` is obeyed in both directions."""
    never = status_error(503, endpoint="/x", detail="")
    never.should_retry = False
    again = status_error(400, endpoint="/x", detail="")
    again.should_retry = True

    assert decide(never) is None
    assert decide(again) == 0.5


def test_delays_double_up_to_the_limit_and_end_with_window_or_attempts() -> None:
    """0.5, 1, 2, 4, 8, 10, 10 ... until 300 s or 30 attempts."""
    error = ConnectError("x")

    assert [decide(error, attempt=n) for n in range(1, 8)] == [0.5, 1, 2, 4, 8, 10, 10]
    assert decide(error, attempt=30) is None
    assert decide(error, attempt=5, failing_for_s=293) is None
    assert decide(error, attempt=5, failing_for_s=292) == 8


def test_jitter_only_shortens() -> None:
    """Clients spread over the last quarter of the delay."""
    delay = RetryPolicy().next_delay(
        ConnectError("x"), attempt=3, failing_for_s=0, jitter=lambda: 0.999
    )

    assert delay is not None
    assert 1.5 < delay < 1.51


def test_retry_after_is_a_floor_with_a_ceiling() -> None:
    """The server's pause is kept, but not for ever."""
    patient = status_error(429, endpoint="/x", detail="", retry_after_s=7)
    absurd = status_error(429, endpoint="/x", detail="", retry_after_s=9999)

    assert decide(patient) == 7
    assert decide(absurd) == 60


@pytest.mark.parametrize(
    ("ms", "seconds", "expected"),
    [
        (b"1500", b"9", 1.5),
        (None, b"9", 9.0),
        (None, b"0.25", 0.25),
        (None, b"Sun, 22 Nov 2026 00:00:30 GMT", 30.0),
        (None, b"Sun, 22 Nov 2020 00:00:30 GMT", 0.0),
        (None, b"soon", None),
        (None, b"-3", None),
        (b"nan", None, None),
        (None, None, None),
    ],
)
def test_retry_after_is_read_in_every_form(
    ms: bytes | None, seconds: bytes | None, expected: float | None
) -> None:
    """Milliseconds, seconds, dates; nonsense is ignored."""
    now = datetime(2026, 11, 22, tzinfo=UTC)

    assert expected == parse_retry_after(ms, seconds, now=now)
