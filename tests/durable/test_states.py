"""The states of a run: only what the table allows, whatever happens in whatever order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.wire_values import quick

from tinker_async.durable.states import TRANSITIONS, Machine, Signal, State

S = Signal
ATTEMPT = (S.SELECTED, S.RESTORED, S.VERIFIED, S.RESUMED)
LOST = (S.FAILURE, S.CONFIRMED, S.QUIESCED)

REQUIRED = {
    State.HEALTHY: {State.SUSPECT},
    State.SUSPECT: {State.HEALTHY, State.QUIESCING},
    State.QUIESCING: {State.SELECTING},
    State.SELECTING: {State.RESTORING, State.EXHAUSTED},
    State.RESTORING: {State.VERIFYING, State.BACKOFF, State.EXHAUSTED},
    State.VERIFYING: {State.RESUMING, State.BACKOFF, State.EXHAUSTED},
    State.RESUMING: {State.HEALTHY, State.BACKOFF, State.EXHAUSTED},
    State.BACKOFF: {State.SELECTING},
    State.EXHAUSTED: set[State](),
    State.CANCELLED: set[State](),
}
"""What may follow what, written down a second time; `CANCELLED` from wherever it is not over."""


def run(machine: Machine, *signals: Signal) -> State:
    for signal in signals:
        machine.apply(signal)
    return machine.state


def test_the_table_is_what_the_requirements_say() -> None:
    """Every edge is wanted, and every wanted edge is there."""
    edges: dict[State, set[State]] = {state: set() for state in State}
    for (state, _), to in TRANSITIONS.items():
        if to is not state:
            edges[state].add(to)

    cancelled = {state: set[State]() if state.is_over else {State.CANCELLED} for state in State}
    assert {state: REQUIRED[state] | cancelled[state] for state in State} == edges


@quick
@given(st.lists(st.tuples(st.sampled_from(Signal), st.integers(-1, 1)), max_size=60))
def test_any_signals_in_any_order_reach_only_allowed_states(
    signals: list[tuple[Signal, int]],
) -> None:
    """What has no place is refused and changes nothing; generations and attempts keep their bounds."""
    machine = Machine(max_attempts=2)
    for signal, older in signals:
        state, generation, attempts = machine.state, machine.generation, machine.attempts
        try:
            machine.apply(signal, generation=generation + older)
        except RuntimeError:
            assert (state, generation, attempts) == (
                *(machine.state, machine.generation),
                machine.attempts,
            )
        if machine.state is not state:
            assert machine.state in REQUIRED[state] | {State.CANCELLED}
            assert 0 == older
        assert generation <= machine.generation <= generation + 1
        assert 0 <= machine.attempts <= 2


def test_a_false_alarm_costs_nothing() -> None:
    """The run is healthy again, in the same generation, with no attempt counted."""
    machine = Machine(3)

    assert State.HEALTHY is run(machine, S.FAILURE, S.FAILURE, S.FALSE_ALARM)
    assert (1, 0) == (machine.generation, machine.attempts)


def test_work_is_admitted_only_while_the_run_may_live() -> None:
    """In recovery it waits in the journal; what is over takes none."""
    assert {State.HEALTHY, State.SUSPECT} == {state for state in State if state.admits_work}


def test_a_recovery_begins_a_generation() -> None:
    """With the new run, not with its completion."""
    machine = Machine(3)
    run(machine, *LOST, S.SELECTED)

    assert 1 == machine.generation
    machine.apply(S.RESTORED)
    assert 2 == machine.generation
    assert State.HEALTHY is run(machine, S.VERIFIED, S.RESUMED)


def test_signals_of_an_older_generation_mean_nothing() -> None:
    """The failures of the lost run's operations come late, and are not the new run's."""
    machine = Machine(3)
    run(machine, *LOST, *ATTEMPT)

    assert State.HEALTHY is machine.apply(S.FAILURE, generation=1)
    assert State.SUSPECT is machine.apply(S.FAILURE, generation=2)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_attempts_are_spent_wherever_they_fail(stage: int) -> None:
    """The last one to fail ends the run."""
    machine = Machine(2)
    run(machine, *LOST, *ATTEMPT[:stage], S.FAILED)

    assert State.BACKOFF is machine.state
    assert State.EXHAUSTED is run(machine, S.BACKED_OFF, *ATTEMPT[:stage], S.FAILED)


def test_a_run_that_dies_again_without_progress_uses_its_attempts_up() -> None:
    """An operation that kills every run comes to an end, though each recovery succeeds."""
    machine = Machine(2)
    run(machine, *LOST, *ATTEMPT)
    run(machine, *LOST, *ATTEMPT[:3])

    assert State.EXHAUSTED is machine.apply(S.FAILED)


def test_recoveries_that_come_to_nothing_are_attempts_as_well() -> None:
    """A run that is lost again right after each of them is given up like one that never came."""
    machine = Machine(2)
    run(machine, *LOST, *ATTEMPT, *LOST, *ATTEMPT)

    assert State.HEALTHY is machine.state
    assert State.EXHAUSTED is run(machine, *LOST, S.SELECTED)


@pytest.mark.parametrize("ending", [(S.PROGRESS, S.RESUMED), (S.RESUMED, S.PROGRESS)])
def test_progress_gives_all_attempts_back(ending: tuple[Signal, ...]) -> None:
    """During the repetition or after it."""
    machine = Machine(2)
    run(machine, *LOST, *ATTEMPT[:3], *ending)

    assert (State.HEALTHY, 0) == (machine.state, machine.attempts)


def test_a_late_success_of_a_lost_run_gives_no_attempt_back() -> None:
    """It says nothing of the run to come."""
    machine = Machine(2)
    run(machine, *LOST, S.SELECTED, S.PROGRESS)

    assert 1 == machine.attempts


def test_a_run_that_is_over_stays_so() -> None:
    """Whoever was still at it may say so without harm."""
    for end in (S.CANCEL, S.NONE_LEFT):
        machine = Machine(1)
        over = run(machine, *LOST, end)
        assert all(over is machine.apply(signal) for signal in Signal)
