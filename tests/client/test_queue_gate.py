"""The gate of paused queues: pure decisions, and their laws."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tinker_async.background.queue_gate import PAUSE_S, QueueGate


def test_a_pause_shuts_the_gate_once_and_the_sample_itself_opens_it() -> None:
    """`told` says true when the gate was open before."""
    gate = QueueGate()

    assert gate.told("a", "paused_capacity", 100.0)
    assert not gate.told("a", "paused_capacity", 110.0)
    assert gate.shut_until == 110.0 + PAUSE_S
    assert not gate.told("a", "active", 120.0)
    assert gate.shut_until == 0


def test_the_longest_of_several_pauses_counts() -> None:
    """One sample that goes on does not open the gate for the others."""
    gate = QueueGate()
    gate.told("a", "paused_capacity", 100.0)
    gate.told("b", "paused_rate_limit", 103.0)
    gate.told("b", "active", 104.0)
    assert gate.shut_until == 100.0 + PAUSE_S
    gate.forget("a")
    assert gate.shut_until == 0


def test_a_result_opens_the_gate_whatever_is_paused() -> None:
    """The queue moves."""
    gate = QueueGate()
    gate.told("a", "paused_capacity", 100.0)
    gate.told("b", "paused_capacity", 101.0)
    gate.completed()

    assert (0, 0) == (gate.shut_until, gate.pauses)


def test_a_pause_of_which_nothing_more_is_heard_ends_by_itself() -> None:
    """And the next one is news again."""
    gate = QueueGate()
    gate.told("a", "paused_capacity", 100.0)

    assert gate.told("a", "paused_capacity", 100.0 + PAUSE_S)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["paused_capacity", "paused_rate_limit", "active", "gone", "result"]),
            st.integers(0, 4),
            st.floats(0, 2 * PAUSE_S),
        )
    )
)
def test_the_gate_is_shut_just_while_a_pause_is_active(
    story: list[tuple[str, int, float]],
) -> None:
    """Against a plain list of what each sample said last."""
    gate = QueueGate()
    said: dict[int, float] = {}
    now = 1000.0
    for what, sample, later in story:
        now += later
        if what == "result":
            gate.completed()
            said.clear()
        elif what == "gone":
            gate.forget(sample)
            said.pop(sample, None)
        else:
            gate.told(sample, what, now)
            said.pop(sample, None)
            if what != "active":
                said[sample] = now
        expected = max((at + PAUSE_S for at in said.values()), default=0.0)
        assert max(expected, now) == max(gate.shut_until, now)
        assert len(said) == gate.pauses
