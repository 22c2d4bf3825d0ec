"""When a checkpoint is due, and which may go."""

from __future__ import annotations

from typing import Any

import pytest
from durable.entries import entry
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.wire_values import quick

from tinker_async import CheckpointEntry, CheckpointPolicy, InvalidInputError
from tinker_async.durable.checkpoint_policy import PolicyState, by_value, metric_value

START = PolicyState()


def saves(policy: CheckpointPolicy, steps: int, *, takes: int = 0, **given: Any) -> dict[int, str]:
    """Train so many steps of a second each; return the steps that were saved, and why."""
    state, done, until = PolicyState(), dict[int, str](), 0
    for step in range(steps + 1):
        if state.in_flight and step >= until:
            state = state.confirmed()
        values = {name: of(step) for name, of in given.items()}
        metrics = values.get("metrics")
        epoch = values.get("epoch", 0)
        reason = policy.due(state, step=step, epoch=epoch, metrics=metrics, now_s=float(step))
        if reason:
            done[step] = reason
            value, mode = policy.value_of(metrics), policy.mode
            state = state.begun(step=step, epoch=epoch, now_s=float(step), value=value, mode=mode)
            until = step + takes
    return done


# What is right


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("strategy", "sometimes"),
        ("strategy", None),
        ("save_every", 0),
        ("save_every", 2.5),
        ("save_every", True),
        ("save_every_s", 0),
        ("save_every_s", float("nan")),
        ("keep_last", 0),
        ("keep_last", True),
        ("save_best", -1),
        ("save_best", "yes"),
        ("metric", ""),
        ("mode", "lowest"),
        ("ttl_s", 3599),
        ("ttl_s", "1h"),
        ("on_exit", 1),
        ("before_risky", None),
    ],
)
def test_a_setting_that_cannot_be_right_is_refused_and_named(field: str, wrong: object) -> None:
    """When the policy is made, not when a save is due."""
    with pytest.raises(InvalidInputError) as caught:
        CheckpointPolicy(**{field: wrong})  # type: ignore[arg-type]  # that is the point

    assert field == caught.value.field


def test_a_training_spec_loads_as_it_is() -> None:
    """The field names are those that specs use; None is no value of theirs that changes a type."""
    spec = {
        "strategy": "best",
        "save_every": 7,
        "keep_last": 3,
        "save_best": True,
        "metric": "accuracy",
        "mode": "max",
    }
    policy = CheckpointPolicy.from_spec(spec)

    assert spec == {name: getattr(policy, name) for name in spec}
    with pytest.raises(InvalidInputError, match="save_evry: is no setting"):
        CheckpointPolicy.from_spec({"save_evry": 3})


# When


def test_steps_are_saved_at_multiples_and_never_at_zero() -> None:
    """The same steps whenever the program began."""
    policy = CheckpointPolicy(save_every=10)

    assert dict.fromkeys([10, 20, 30], "steps") == saves(policy, 35)
    resumed = PolicyState(step=15)
    assert policy.due(resumed, step=19, now_s=0.0) is None
    assert "steps" == policy.due(resumed, step=20, now_s=0.0)


def test_what_falls_due_during_a_slow_save_is_one_save() -> None:
    """It is taken as soon as the slow one has ended, and the multiples go on as before."""
    assert [10, 33, 56] == list(saves(CheckpointPolicy(save_every=10), 60, takes=23))
    assert [10, 23, 36, 49] == list(saves(CheckpointPolicy(save_every=10), 55, takes=13))


def test_seconds_count_besides_the_steps() -> None:
    """From the beginning of the last save, whatever it was for."""
    policy = CheckpointPolicy(save_every=10, save_every_s=7.0)

    assert {7: "seconds", 10: "steps", 17: "seconds", 20: "steps"} == saves(policy, 20)


def test_an_epoch_is_saved_once() -> None:
    """After the step that ended it."""
    policy = CheckpointPolicy(strategy="epoch")

    assert dict.fromkeys([4, 8, 12], "epoch") == saves(policy, 13, epoch=lambda step: step // 4)


@pytest.mark.parametrize(
    ("mode", "values", "steps"),
    [
        ("min", [0, 5.0, 4.0, 4.0, 4.5, 3.0], [1, 2, 5]),
        ("max", [0, 5.0, 4.0, 6.0, 6.0, 7.0], [1, 3, 5]),
        ("min", [0, float("nan"), 4.0, float("-inf"), 3.0, None], [2, 4]),
    ],
)
def test_only_an_improvement_is_saved_as_best(
    mode: Any, values: list[float | None], steps: list[int]
) -> None:
    """Equal is none, and what is no number is none."""
    policy = CheckpointPolicy(strategy="best", mode=mode)

    def metrics(step: int) -> dict[str, float]:
        value = values[step]
        return {} if value is None else {"loss:sum": value}

    assert dict.fromkeys(steps, "best") == saves(policy, len(values) - 1, metrics=metrics)


def test_the_best_of_a_save_that_failed_counts_no_more() -> None:
    """A worse one that follows is the best that there is."""
    policy = CheckpointPolicy(strategy="best")
    good = START.begun(step=3, now_s=0.0, value=1.0, mode="min").confirmed()
    failed = good.begun(step=5, now_s=0.0, value=0.1, mode="min").failed()

    assert 1.0 == failed.best
    assert "retry" == policy.due(failed, step=6, metrics={"loss": 5.0}, now_s=0.0)


def test_a_failed_save_is_tried_again_ever_more_seldom() -> None:
    """After one step, then two, four, and at last every 32."""
    policy = CheckpointPolicy(strategy="last")
    state, tried = START.begun(step=10, now_s=0.0, mode="min").failed(), list[int]()
    for step in range(11, 130):
        if policy.due(state, step=step, now_s=0.0):
            tried.append(step)
            state = state.begun(step=step, now_s=0.0, mode="min").failed()

    assert [11, 13, 17, 25, 41, 73, 105] == tried
    confirmed = state.begun(step=130, now_s=0.0, mode="min").confirmed()
    assert policy.due(confirmed, step=200, now_s=0.0) is None


def test_all_saves_each_step_and_last_none() -> None:
    """The end is another matter: `due_at_end`."""
    assert [1, 2, 3] == list(saves(CheckpointPolicy(strategy="all"), 3))
    assert {} == saves(CheckpointPolicy(strategy="last"), 300)


def test_a_full_journal_makes_a_save_due_whatever_the_strategy() -> None:
    """So that it does not grow without end."""
    policy = CheckpointPolicy(strategy="last")

    assert "journal" == policy.due(START, step=1, now_s=0.0, journal_full=True)
    assert policy.due(START, step=0, now_s=0.0, journal_full=True) is None


def test_the_end_is_saved_unless_nothing_is_new() -> None:
    """Also when a save of this very step has failed."""
    policy = CheckpointPolicy()
    saved = START.begun(step=3, now_s=0.0, mode="min")

    assert "exit" == policy.due_at_end(START, step=3)
    assert "signal" == policy.due_at_end(START, step=3, signal=True)
    assert policy.due_at_end(START, step=0) is None
    assert policy.due_at_end(saved.confirmed(), step=3) is None
    assert "exit" == policy.due_at_end(saved.failed(), step=3)
    assert CheckpointPolicy(on_exit=False).due_at_end(START, step=3) is None


def test_only_what_replaces_weights_is_risky() -> None:
    """And only while there is something to lose."""
    policy = CheckpointPolicy()

    assert "risky" == policy.due_before("load_state", START, step=1)
    assert policy.due_before("optim_step", START, step=1) is None
    assert policy.due_before("load_state", START, step=0) is None
    assert CheckpointPolicy(before_risky=False).due_before("load_state", START, step=1) is None


def test_a_new_program_remembers_what_is_on_record() -> None:
    """The newest confirmed step and the best confirmed value; others never happened."""
    policy = CheckpointPolicy()
    entries = [
        entry(1, step=10, loss=2.0),
        entry(2, step=20, loss=0.5, status="failed"),
        entry(3, step=30, loss=3.0, epoch=2),
        entry(4, step=40, status="pending"),
    ]

    expected = PolicyState(step=30, epoch=2, saved_s=9.0, best=2.0)
    assert expected == policy.state_from(entries, now_s=9.0)
    assert PolicyState(saved_s=9.0) == policy.state_from([], now_s=9.0)


@pytest.mark.parametrize(
    ("metrics", "value"),
    [
        ({"loss": 1.0, "loss:mean": 2.0}, 1.0),
        ({"loss:sum": 3.0, "loss:mean": 2.0}, 2.0),
        ({"loss:sum": 3.0}, 3.0),
        ({"loss:max": 3.0}, None),
        ({"loss": float("inf")}, None),
        (None, None),
    ],
)
def test_a_metric_is_found_with_its_reduction_or_without(
    metrics: dict[str, float] | None, value: float | None
) -> None:
    """The exact name first."""
    assert value == metric_value(metrics, "loss")


# What goes


def test_retention_keeps_the_last_and_the_best() -> None:
    """The oldest goes first; pending and failed ones count for nothing."""
    entries = [
        *(entry(1, loss=0.1), entry(2, loss=0.2), entry(3, loss=9.0), entry(4, loss=8.0)),
        *(entry(5, status="pending"), entry(6, status="failed"), entry(7, loss=7.0)),
    ]
    policy = CheckpointPolicy(keep_last=1)

    assert [2, 3, 4] == [one.number for one in policy.to_delete(entries)]
    two = CheckpointPolicy(keep_last=1, save_best=2)
    assert [3, 4] == [one.number for one in two.to_delete(entries)]
    assert [] == CheckpointPolicy(keep_last=None).to_delete(entries)
    assert [] == CheckpointPolicy(strategy="all", keep_last=1).to_delete(entries)


def test_nothing_goes_before_its_replacement_is_confirmed() -> None:
    """A save under way is no replacement yet."""
    policy = CheckpointPolicy(keep_last=1)

    assert [] == policy.to_delete([entry(1), entry(2, status="pending")])
    assert [1] == [one.number for one in policy.to_delete([entry(1), entry(2)])]


def test_of_equal_values_the_newer_is_the_better() -> None:
    """And what has no value is not among them."""
    entries = [entry(1, loss=1.0), entry(2, loss=1.0), entry(3), entry(4, loss=2.0)]

    assert [2, 1, 4] == [one.number for one in by_value(entries, "loss", "min")]
    assert [4, 2, 1] == [one.number for one in by_value(entries, "loss", "max")]


class Retention(RuleBasedStateMachine):
    """Saves that end in every way, and deletions as the policy says, in every order."""

    @initialize(
        keep=st.integers(1, 3),
        best=st.sampled_from([False, True, 0, 2]),
        mode=st.sampled_from(["min", "max"]),
    )
    def begin(self, keep: int, best: Any, mode: Any) -> None:
        self.policy = CheckpointPolicy(keep_last=keep, save_best=best, mode=mode)
        self.entries: list[CheckpointEntry] = []
        self.in_use: set[str | int] = set()
        self.published: set[str | int] = set()

    @rule(loss=st.none() | st.sampled_from([0.5, 1.0, 2.0, float("nan")]))
    def save(self, loss: float | None) -> None:
        self.entries.append(entry(len(self.entries) + 1, status="pending", loss=loss))

    @rule(which=st.integers(0, 50), status=st.sampled_from(["confirmed", "confirmed", "failed"]))
    def settle(self, which: int, status: Any) -> None:
        pending = [one for one in self.entries if one.status == "pending"]
        if pending:
            number = pending[which % len(pending)].number
            self._replace(number, status)

    @rule(which=st.integers(0, 50), by_path=st.booleans(), publish=st.booleans())
    def hold(self, which: int, *, by_path: bool, publish: bool) -> None:
        if self.entries:
            one = self.entries[which % len(self.entries)]
            held = self.published if publish else self.in_use
            held.add(one.sampler_path or one.number if by_path else one.number)

    @rule()
    def release(self) -> None:
        self.in_use.clear()

    @rule()
    def delete(self) -> None:
        there = [one for one in self.entries if one.is_confirmed]
        going = self.policy.to_delete(self.entries, in_use=self.in_use, published=self.published)
        gone = {one.number for one in going}
        held = self.in_use | self.published
        assert not [one for one in going if not one.is_confirmed]
        assert not gone & held
        assert not {one.sampler_path for one in going} & held
        if there:
            assert there[-1].number not in gone
            sign = 1 if self.policy.mode == "min" else -1
            values = [one.metrics["loss"] * sign for one in there if one.metrics]
            left = [
                one.metrics["loss"] * sign
                for one in there
                if one.metrics and one.number not in gone
            ]
            assert min(values, default=None) == min(left, default=None)
        left_over = [one for one in there if one.number not in gone]
        assert len(left_over) >= min(len(there), self.policy.keep_last or 0)
        for number in gone:
            self._replace(number, "deleted")

    @invariant()
    def something_is_left(self) -> None:
        """A run that ever had a checkpoint has one to go back to."""
        entries = getattr(self, "entries", [])
        ever = any(one.status in ("confirmed", "deleted") for one in entries)
        assert not ever or any(one.is_confirmed for one in entries)

    def _replace(self, number: int, status: Any) -> None:
        old = self.entries[number - 1]
        loss = old.metrics.get("loss")
        self.entries[number - 1] = entry(number, status=status, loss=loss)


TestRetention = Retention.TestCase
TestRetention.settings = quick


@quick
@given(st.data())
def test_a_save_is_never_due_while_one_is_under_way(data: st.DataObject) -> None:
    """Whatever else is so."""
    policy = CheckpointPolicy(
        strategy=data.draw(st.sampled_from(["steps", "epoch", "best", "all"])),
        save_every=1,
        save_every_s=1.0,
    )
    state = PolicyState(
        step=data.draw(st.integers(0, 5)), in_flight=True, failures=data.draw(st.integers(0, 3))
    )

    assert (
        policy.due(
            state,
            step=data.draw(st.integers(0, 50)),
            epoch=data.draw(st.integers(0, 3)),
            metrics={"loss": 1.0},
            now_s=100.0,
            journal_full=data.draw(st.booleans()),
        )
        is None
    )
