"""Shares and the waiting line: plain state, so plain tests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinker_async.transport import TrafficClass
from tinker_async.transport.lanes import Line, Shares

SESSION, TRAINING = TrafficClass.SESSION, TrafficClass.TRAINING
SAMPLING, POLLING = TrafficClass.SAMPLING, TrafficClass.POLLING


def fill(shares: Shares, traffic: TrafficClass) -> int:
    """Take places until none is left for a class; return how many."""
    number = 0
    while shares.admits(traffic):
        shares.take(traffic)
        number += 1
    return number


@pytest.mark.parametrize(
    ("capacity", "polls", "submissions", "session"),
    [(1, 1, 0, 0), (2, 1, 1, 0), (8, 6, 1, 1), (64, 48, 12, 4), (100, 76, 20, 4)],
)
def test_each_class_stops_before_the_places_of_the_next(
    capacity: int, polls: int, submissions: int, session: int
) -> None:
    """Polls first, then submissions, then the session: each still finds its own."""
    shares = Shares(capacity)
    assert polls == fill(shares, POLLING)
    assert submissions == fill(shares, SAMPLING)
    assert 0 == fill(shares, TRAINING)
    assert session == fill(shares, SESSION)
    assert capacity == shares.taken


def test_session_traffic_does_not_use_up_the_room_of_the_others() -> None:
    """Its reserved places count for it first."""
    shares = Shares(64)
    for _ in range(4):
        shares.take(SESSION)
    assert 60 == fill(shares, SAMPLING)


@given(
    st.integers(0, 300),
    st.lists(st.tuples(st.sampled_from(list(TrafficClass)), st.booleans()), max_size=400),
)
def test_shares_never_exceed_their_capacity(
    capacity: int, steps: list[tuple[TrafficClass, bool]]
) -> None:
    """Whatever comes and goes: the sums are right and the reserve is kept."""
    shares = Shares(capacity)
    for traffic, come in steps:
        if come and shares.admits(traffic):
            shares.take(traffic)
        elif not come and shares.taken_by[traffic]:
            shares.give_back(traffic)
        assert sum(shares.taken_by.values()) == shares.taken <= capacity
        if capacity > 1:
            assert shares.taken_by[POLLING] < capacity


async def test_the_line_is_fair_among_classes_and_puts_the_session_first() -> None:
    """Order of arrival, except that a heartbeat passes everybody."""
    line: Line[int] = Line()
    tickets = [line.join(traffic) for traffic in (POLLING, SAMPLING, POLLING, TRAINING, SESSION)]
    order = []
    while (ticket := line.first(lambda _: True)) is not None:
        line.call(ticket, 0)
        order.append(tickets.index(ticket))
    assert [4, 0, 1, 2, 3] == order
    assert 0 == len(line)


async def test_a_class_that_is_not_admitted_lets_others_pass() -> None:
    """The head of one class never blocks another."""
    line: Line[int] = Line()
    line.join(POLLING)
    second = line.join(SAMPLING)
    assert second is line.first(lambda traffic: traffic is SAMPLING)
    assert line.first(lambda _: False) is None


async def test_leaving_the_line_counts_once() -> None:
    """Whoever was called is not in line any more."""
    line: Line[int] = Line()
    first, second = line.join(POLLING), line.join(POLLING)
    assert line.leave(first)
    assert not line.leave(first)
    line.call(second, 7)
    assert not line.leave(second)
    assert (7, True) == (second.place, second.called.is_set())


async def test_dismissal_fails_everybody_with_an_error_of_their_own() -> None:
    """And wakes them."""
    line: Line[int] = Line()
    tickets = [line.join(traffic) for traffic in TrafficClass]
    line.dismiss(lambda: ValueError("over"))
    assert all(ticket.called.is_set() for ticket in tickets)
    assert len(tickets) == len({id(ticket.error) for ticket in tickets})
    assert 0 == len(line)
