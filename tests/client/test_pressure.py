"""What refusals do to the number of samples under way: pure decisions, and their laws."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tinker_async import RateLimitError, RetryPolicy
from tinker_async.background.pressure import SMALL_BYTES, Pressure

POLICY = RetryPolicy()


def pause_s(
    pressure: Pressure, window: int, asked_s: float | None = None, nbytes: int = SMALL_BYTES
) -> float:
    refusal = RateLimitError("busy", status=429, retry_after_s=asked_s)
    return pressure.pause_s(refusal, window, nbytes=nbytes, policy=POLICY)


def refuse(pressure: Pressure, window: int, in_use: int, *, now: float = 10.0) -> bool:
    return pressure.refused(window, in_use=in_use, pause_s=1.0, now=now)


def test_a_burst_that_is_refused_as_a_whole_halves_the_limit_once() -> None:
    """Requests sent before the decrease say nothing of the limit after it."""
    pressure = Pressure(100)

    assert [True, False, False] == [refuse(pressure, 0, 100 - n) for n in range(3)]
    assert (50, 1) == (pressure.limit, pressure.window)


def test_half_of_what_was_under_way_counts_where_that_is_less() -> None:
    """A limit that nobody had reached is not what the server refused."""
    pressure = Pressure(2000)
    refuse(pressure, 0, 60)

    assert pressure.limit == 30


def test_each_window_of_successes_adds_a_step() -> None:
    """As many acceptances as the limit; at the ceiling it stays."""
    pressure = Pressure(100)
    refuse(pressure, 0, 100)

    assert [False] * 49 + [True] == [pressure.accepted(1) for _ in range(50)]
    assert pressure.limit == 52
    for _ in range(10_000):
        pressure.accepted(1)
    assert pressure.limit == 100


def test_successes_of_requests_sent_before_the_decrease_add_nothing() -> None:
    """They were sent under another limit."""
    pressure = Pressure(4)
    refuse(pressure, 0, 4)

    assert not any(pressure.accepted(0) for _ in range(100))
    assert pressure.limit == 2


def test_pauses_double_while_nothing_is_accepted_up_to_the_longest() -> None:
    """1 s for small requests, 5 s for large ones."""
    pressure = Pressure(8)
    pauses = []
    for window in range(6):
        pauses.append(pause_s(pressure, window))
        refuse(pressure, window, 8)

    assert [1, 2, 4, 8, 10, 10] == pauses
    pressure.accepted(6)
    assert pause_s(pressure, 6) == 1
    assert pause_s(pressure, 6, nbytes=SMALL_BYTES + 1) == 5


def test_the_others_of_a_burst_ask_for_no_longer_pause() -> None:
    """The first refusal has begun a new window; theirs is the old one."""
    pressure = Pressure(8)
    refuse(pressure, 0, 8)

    assert pause_s(pressure, 0) == 1
    assert pause_s(pressure, 1) == 2


@pytest.mark.parametrize(
    ("asked_s", "expected"), [(None, 1.0), (0.0, 1.0), (0.5, 1.0), (7.0, 7.0), (9999.0, 60.0)]
)
def test_the_servers_pause_is_a_floor_with_a_ceiling(
    asked_s: float | None, expected: float
) -> None:
    """Never shorter than it asks, nor for ever."""
    assert expected == pause_s(Pressure(8), 0, asked_s)


def test_how_long_everything_was_refused_is_told() -> None:
    """From the first refusal to the next acceptance."""
    pressure = Pressure(8)
    assert pressure.failing_for_s(5.0) == 0
    refuse(pressure, 0, 8, now=10.0)
    refuse(pressure, 1, 8, now=20.0)
    assert pressure.failing_for_s(25.0) == 15
    pressure.accepted(0)
    assert pressure.failing_for_s(30.0) == 0


class Laws(RuleBasedStateMachine):
    """Any order of sendings, acceptances and refusals."""

    def __init__(self) -> None:
        super().__init__()
        self.pressure = Pressure(1)
        self.sent: list[int] = []
        """The window of each request that was sent and not answered."""
        self.now = 0.0
        self.falls: set[int] = set()

    @initialize(ceiling=st.integers(1, 3000))
    def start(self, ceiling: int) -> None:
        self.pressure = Pressure(ceiling)

    @rule(number=st.integers(1, 50))
    def send(self, number: int) -> None:
        self.sent += [self.pressure.window] * number

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def accept(self, data: st.DataObject) -> None:
        window = self.sent.pop(data.draw(st.integers(0, len(self.sent) - 1)))
        before = self.pressure.limit
        grew = self.pressure.accepted(window)
        step = max(1, min(self.pressure.ceiling // 50, before // 4))
        assert (self.pressure.limit > before) == grew
        assert self.pressure.limit in (before, min(self.pressure.ceiling, before + step))

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), pause_s=st.floats(0, 100), later=st.floats(0, 100))
    def refuse(self, data: st.DataObject, pause_s: float, later: float) -> None:
        self.now += later
        in_use = len(self.sent)
        window = self.sent.pop(data.draw(st.integers(0, len(self.sent) - 1)))
        before, resume_at = self.pressure.limit, self.pressure.resume_at
        fell = self.pressure.refused(window, in_use=in_use, pause_s=pause_s, now=self.now)
        assert self.pressure.resume_at >= max(resume_at, self.now + pause_s)
        if fell:
            assert window not in self.falls, "one decrease for each window"
            self.falls.add(window)
            assert self.pressure.limit == max(1, min(before, in_use) // 2)
        else:
            assert before == self.pressure.limit

    @invariant()
    def limit_is_between_one_and_the_ceiling(self) -> None:
        assert 1 <= self.pressure.limit <= self.pressure.ceiling


TestLaws: Any = Laws.TestCase


@settings(deadline=None)
@given(capacity=st.integers(1, 200), ceiling=st.integers(1, 400))
def test_against_a_server_of_fixed_capacity_work_goes_on_and_refusals_stay_rare(
    capacity: int, ceiling: int
) -> None:
    """Rounds of as many requests as the limit says: soon most of them are taken."""
    pressure = Pressure(ceiling)
    taken = refused = 0
    for now in range(200):
        window, limit = pressure.window, pressure.limit
        for number in range(limit):
            if number < capacity:
                pressure.accepted(window)
            else:
                refuse(pressure, window, limit, now=float(now))
        if now >= 100:
            taken += min(limit, capacity)
            refused += max(0, limit - capacity)

    assert taken > 0
    assert refused <= taken / 2
