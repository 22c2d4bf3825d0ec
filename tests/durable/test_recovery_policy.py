"""Which checkpoint is tried, in what order, and how long between two attempts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from durable.entries import entry
from hypothesis import given
from hypothesis import strategies as st
from support.wire_values import quick

from tinker_async import CheckpointEntry, InvalidInputError, RecoveryPolicy
from tinker_async.durable.recovery_policy import choose

ENTRIES = [
    entry(1, loss=0.5),
    entry(2, loss=2.0),
    entry(3, status="failed"),
    entry(4, loss=0.1, status="deleted"),
    entry(5),
    entry(6, status="pending"),
    entry(7, loss=1.0),
]


def numbers(policy: RecoveryPolicy, *failed: int, **rest: Any) -> list[int | None]:
    paths = [f"tinker://run/weights/c{number}" for number in failed]
    return [
        None if one.entry is None else one.entry.number
        for one in choose(ENTRIES, policy, paths, **rest)
    ]


def test_nothing_is_automatic_and_the_defaults_are_known() -> None:
    """As the requirements have them."""
    policy = RecoveryPolicy()
    expected = {
        "enabled": False,
        "max_attempts": 3,
        "backoff_s": 5.0,
        "max_backoff_s": 60.0,
        "poll_interval_s": 30.0,
        "strategy": "latest",
        "restore_optimizer": True,
        "on_recovery": None,
        "on_failure": None,
        "concurrency": 1,
    }

    assert expected == {name: getattr(policy, name) for name in expected}


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("enabled", {"enabled": 1}),
        ("max_attempts", {"max_attempts": 0}),
        ("backoff_s", {"backoff_s": -1}),
        ("backoff_s", {"backoff_s": float("inf")}),
        ("max_backoff_s", {"backoff_s": 10, "max_backoff_s": 5}),
        ("poll_interval_s", {"poll_interval_s": 0}),
        ("strategy", {"strategy": "newest"}),
        ("strategy", {"strategy": None}),
        ("specific_path", {"strategy": "specific"}),
        ("specific_path", {"specific_path": "tinker://run/weights/c1"}),
        ("specific_path", {"strategy": "specific", "specific_path": "c1"}),
        (
            "specific_path",
            {"strategy": "specific", "specific_path": "tinker://run/sampler_weights/c1"},
        ),
        ("restore_optimizer", {"restore_optimizer": None}),
        ("on_recovery", {"on_recovery": "print"}),
        ("hook_time_s", {"hook_time_s": 0}),
        ("concurrency", {"concurrency": True}),
        ("fallback", {"fallback": -1}),
    ],
)
def test_a_setting_that_cannot_be_right_is_refused_and_named(
    field: str, settings: dict[str, Any]
) -> None:
    """It does not silently become the default."""
    with pytest.raises(InvalidInputError) as caught:
        RecoveryPolicy(**settings)

    assert field == caught.value.field


def test_the_latest_comes_first_and_the_older_ones_after_it() -> None:
    """Only what is confirmed, and not what failed in this incident."""
    assert [7, 5, 2, 1] == numbers(RecoveryPolicy())
    assert [5, 1] == numbers(RecoveryPolicy(), 7, 2)
    assert [] == numbers(RecoveryPolicy(), 1, 2, 5, 7)


def test_the_best_comes_first_then_the_others() -> None:
    """What has no value of the metric comes at the end."""
    best = RecoveryPolicy(strategy="best")

    assert [1, 7, 2, 5] == numbers(best)
    assert [2, 7, 1, 5] == numbers(best, mode="max")
    assert [7, 5, 2, 1] == numbers(best, metric="accuracy")


def test_a_specific_one_comes_first() -> None:
    """One of another run too, unless a living program would have to repeat what came after it."""
    path = "tinker://run/weights/c2"
    ours = RecoveryPolicy(strategy="specific", specific_path=path)
    foreign = RecoveryPolicy(strategy="specific", specific_path="tinker://other/weights/x")

    assert [2, 7, 5, 1] == numbers(ours)
    assert [7, 5, 1] == numbers(ours, 2)
    assert [None, 7, 5, 2, 1] == numbers(foreign)
    assert [7, 5, 2, 1] == numbers(foreign, reachable=lambda one: True)


def test_a_strategy_of_ones_own_is_obeyed() -> None:
    """It sees the confirmed ones, newest first, and nothing is added to what it returns."""
    seen: list[int] = []

    def oldest(entries: Sequence[CheckpointEntry]) -> Sequence[CheckpointEntry]:
        seen.extend(one.number for one in entries)
        return entries[:1:-1]

    policy = RecoveryPolicy(strategy=oldest)
    assert "oldest" == policy.strategy_name
    assert [1, 2] == numbers(policy)
    assert [7, 5, 2, 1] == seen
    with pytest.raises(InvalidInputError, match="<lambda> returned"):
        numbers(RecoveryPolicy(strategy=lambda entries: [ENTRIES[3]]))


def test_what_cannot_be_gone_back_to_is_left_out() -> None:
    """Expired on the server, or with operations since that the journal has no more."""
    gone = [entry(1), entry(2, expires_at=100.0)]

    assert [1] == [
        one.entry.number for one in choose(gone, RecoveryPolicy(), now_s=100.0) if one.entry
    ]
    assert 2 == len(choose(gone, RecoveryPolicy(), now_s=99.0))
    assert 2 == len(choose(gone, RecoveryPolicy()))
    assert [7, 5] == numbers(RecoveryPolicy(), reachable=lambda one: one.number >= 5)


@quick
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["confirmed", "failed", "deleted", "pending"]),
            st.none() | st.floats(0, 1),
        ),
        max_size=8,
    ),
    st.sampled_from(["latest", "best"]),
    st.sets(st.integers(1, 8)),
)
def test_every_confirmed_one_is_tried_once(
    made: list[tuple[Any, float | None]], strategy: Any, failed: set[int]
) -> None:
    """Whatever the order: nothing that could save the run is left out."""
    entries = [entry(i, status=status, loss=loss) for i, (status, loss) in enumerate(made, 1)]
    paths = {f"tinker://run/weights/c{number}" for number in failed}
    chosen = choose(entries, RecoveryPolicy(strategy=strategy), paths)

    there = {one.path for one in entries if one.is_confirmed} - paths
    assert there == {one.path for one in chosen}
    assert len(there) == len(chosen)


def test_pauses_double_up_to_the_cap_and_are_drawn_from_zero() -> None:
    """So that many runs that failed together do not come back together."""
    policy = RecoveryPolicy(backoff_s=5, max_backoff_s=60)

    assert [5, 10, 20, 40, 60, 60] == [policy.delay_s(n, lambda: 1.0) for n in range(1, 7)]
    assert 0 == policy.delay_s(3, lambda: 0.0)
    assert 60 == policy.delay_s(10**6, lambda: 1.0)
    chance = random.Random(1)
    assert all(0 <= policy.delay_s(n, chance.random) <= 60 for n in range(1, 50))
