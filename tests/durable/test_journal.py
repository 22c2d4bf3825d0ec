"""The journal: what is to be asked again, in order, as it was asked, in bounded memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.wire_values import datums, mixed_datums, quick

from tinker_async import APIFuture, Datum, ImageAssetPointerChunk, InvalidInputError, ModelInput
from tinker_async.durable.journal import Journal
from tinker_async.durable.operations import Operation, same_metrics
from tinker_async.durable.snapshots import Snapshot

ON_DISK = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def datum(seed: int = 0, length: int = 1000) -> Datum:
    tokens = np.arange(seed, seed + length, dtype=np.int32)
    return Datum(ModelInput.from_ints(tokens), {"target_tokens": tokens.astype(np.int64)})


def steps(journal: Journal, count: int, *, done: bool = True) -> list[Operation]:
    """So many steps of two operations each."""
    made = []
    for _ in range(count):
        made.append(journal.record("forward_backward", data=[datum(journal.last)]))
        made.append(journal.record("optim_step"))
    if done:
        for one in made:
            journal.settle(one)
    return made


def to_repeat(journal: Journal, checkpoint: int | None) -> list[int]:
    replay, found = journal.since(checkpoint), list[int]()
    while (one := replay.next()) is not None:
        found.append(one.number)
    return found


def test_operations_are_repeated_in_the_order_of_their_calls(tmp_path: Path) -> None:
    """With their arguments; mappings as they were then."""
    journal = Journal(tmp_path)
    config: dict[str, float | str] = {"clip": 0.2}
    first = journal.record(
        "forward_backward", data=[datum()], arguments={"loss_fn": "ppo", "loss_fn_config": config}
    )
    second = journal.record("optim_step", step=4)
    config["clip"] = 9

    replay = journal.since(None)
    assert [first, second, None] == [replay.next(), replay.next(), replay.next()]
    assert {"loss_fn": "ppo", "loss_fn_config": {"clip": 0.2}} == first.arguments
    assert (None, 4, False) == (second.data(), second.step, second.has_data)


def test_a_call_that_comes_during_the_repetition_is_in_it(tmp_path: Path) -> None:
    """None is handed out only when there is really nothing more."""
    journal = Journal(tmp_path)
    steps(journal, 1)
    replay = journal.since(None)
    assert [1, 2] == [one.number for one in (replay.next(), replay.next()) if one]
    assert (None, 0) == (replay.next(), replay.remaining)
    journal.record("optim_step")

    assert 1 == replay.remaining
    late = replay.next()
    assert late is not None
    assert 3 == late.number
    assert 3 == replay.repeated


def test_only_what_changes_the_model_is_repeated_once_it_is_settled(tmp_path: Path) -> None:
    """The others only while somebody waits; what was taken back never."""
    journal = Journal(tmp_path)
    forward = journal.record("forward", data=[datum()])
    gradient = journal.record("forward_backward", data=[datum()])
    saved = journal.record("save_weights_for_sampler")
    withdrawn = journal.record("forward_backward", data=[datum()])
    assert [1, 2, 3, 4] == to_repeat(journal, None)

    journal.settle(forward)
    journal.settle(gradient, failed=True)
    journal.withdraw(withdrawn)
    assert [2, 3] == to_repeat(journal, None)
    assert [saved] == journal.pending
    assert "failed" == gradient.outcome


def test_a_settled_call_lets_go_of_its_future_and_keeps_its_metrics(tmp_path: Path) -> None:
    """A result may be large; of the first one alone is kept what a repetition is compared with."""
    journal = Journal(tmp_path)
    one = journal.record("forward_backward", data=[datum()], future=APIFuture("forward_backward"))

    assert journal.settle(one, metrics={"loss:sum": 2.0})
    assert not journal.settle(one, metrics={"loss:sum": 3.0}, failed=True)
    assert (None, {"loss:sum": 2.0}, "done") == (one.future, one.metrics, one.outcome)


# Checkpoints


def test_a_confirmed_checkpoint_and_its_fallback_are_reached(tmp_path: Path) -> None:
    """What is older than that is forgotten, with its data."""
    journal = Journal(tmp_path, fallback=1)
    reached = []
    for number in (1, 2, 3):
        steps(journal, 1)
        assert 4 * number - 2 == journal.mark(number)
        steps(journal, 1)
        assert not journal.reaches(number)
        journal.confirm(number)
        reached.append([one for one in (None, 1, 2, 3) if journal.reaches(one)])

    assert [[None, 1], [1, 2], [2, 3]] == reached
    assert [11, 12] == to_repeat(journal, 3)
    assert [7, 8, 9, 10, 11, 12] == to_repeat(journal, 2)
    assert 6 == journal.statistics().operations
    with pytest.raises(InvalidInputError, match="not all here"):
        journal.since(1)


def test_a_save_that_failed_takes_nothing_away(tmp_path: Path) -> None:
    """The operations go on to belong to the checkpoint before; one that is no good is dropped."""
    journal = Journal(tmp_path, fallback=0)
    steps(journal, 1)
    journal.mark(1)
    steps(journal, 1)
    journal.drop(1)
    assert ([1, 2, 3, 4], False) == (to_repeat(journal, None), journal.reaches(1))

    journal.mark(2)
    journal.confirm(1)
    assert journal.reaches(None)
    journal.confirm(2)
    assert (False, True) == (journal.reaches(None), journal.reaches(2))
    journal.drop(2)
    assert not journal.reaches(2)


def test_a_checkpoint_waits_for_the_callers_before_it(tmp_path: Path) -> None:
    """A run that went on from it would never give them their results."""
    journal = Journal(tmp_path, fallback=0)
    waiting = steps(journal, 1, done=False)
    journal.mark(1)
    steps(journal, 1)
    journal.confirm(1)
    assert (False, True) == (journal.reaches(1), journal.reaches(None))

    journal.settle(waiting[0])
    assert not journal.reaches(1)
    journal.withdraw(waiting[1])
    assert (True, [3, 4]) == (journal.reaches(1), to_repeat(journal, 1))


def test_a_new_program_begins_at_its_checkpoint(tmp_path: Path) -> None:
    """What an earlier one did is not here."""
    journal = Journal(tmp_path)
    journal.mark_loaded(5)
    steps(journal, 1)

    assert (True, False) == (journal.reaches(5), journal.reaches(None))
    assert [1, 2] == to_repeat(journal, 5)
    with pytest.raises(InvalidInputError):
        journal.mark_loaded(6)


# Data


def test_data_are_repeated_as_they_were_given(tmp_path: Path) -> None:
    """The caller may use its arrays again; unchanged ones are not even copied back."""
    journal = Journal(tmp_path)
    tokens = np.arange(100, dtype=np.int32)
    weights = np.ones(100, dtype=np.float32)
    batch = [Datum(ModelInput.from_ints(tokens), {"weights": weights}), datum(3)]
    one = journal.record("forward_backward", data=batch)
    kept = one.data()
    assert kept is not None
    assert batch[0] is kept[0]

    tokens[:] = 7
    weights *= 0
    second = batch.pop()
    kept = one.data()
    assert kept is not None
    assert (list(range(100)), [1.0] * 100, second) == (
        kept[0].model_input.to_ints(),
        kept[0].loss_fn_inputs["weights"].tolist(),
        kept[1],
    )


def test_data_that_are_not_copied_are_repeated_only_unchanged(tmp_path: Path) -> None:
    """In memory and from the file; what was changed in place is told, and says what helps."""
    for memory_bytes in (1 << 20, 0):
        tokens, weights = np.arange(100, dtype=np.int32), np.ones(100, dtype=np.float32)
        batch = [Datum(ModelInput.from_ints(tokens), {"weights": weights}), datum(3)]
        with Journal(tmp_path, memory_bytes=1 << 20, copies=False) as journal:
            one = journal.record("forward_backward", data=batch)
            assert tuple(batch) == one.data()
            assert batch[0].nbytes + batch[1].nbytes == journal.statistics().memory_bytes
            weights[:] = 7
            with pytest.raises(InvalidInputError, match="in place") as caught:
                one.data()
        with Journal(tmp_path, memory_bytes=memory_bytes, copies=False) as journal:
            one = journal.record("forward_backward", data=batch)
            assert (memory_bytes == 0) == one.is_spilled
            assert tuple(batch) == one.data()
    assert "copy_data" in (caught.value.hint or "")


@ON_DISK
@given(batch=st.lists(datums | mixed_datums, min_size=1, max_size=4), data=st.data())
def test_data_of_every_kind_come_back_from_the_file_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, batch: list[Datum], data: st.DataObject
) -> None:
    """Text, images, audio, dense and CSR tensors, provenance; one after the other in one file."""
    with Journal(tmp_path_factory.mktemp("spill"), memory_bytes=0) as journal:
        made = [journal.record("forward_backward", data=batch) for _ in range(2)]
        has_bytes = Snapshot(batch).nbytes > 0
        assert [has_bytes] * 2 == [one.is_spilled for one in made]
        for one in data.draw(st.permutations(made)):
            found = one.data() or ()
            assert tuple(batch) == found
            assert [repr(d) for d in batch] == [repr(d) for d in found]


@quick
@given(batch=st.lists(datums | mixed_datums, min_size=1, max_size=4))
def test_a_snapshot_outlives_any_change(batch: list[Datum]) -> None:
    """Of every writable array in data of every kind."""
    snapshot = Snapshot(batch)
    copies = Snapshot(batch).data()
    before = repr(copies)
    for one in batch:
        for tensor in one.loss_fn_inputs.values():
            for array in (tensor.data, tensor.sparse_crow_indices, tensor.sparse_col_indices):
                if array is not None and array.size and array.flags.writeable:
                    array[...] = 0
    assert before == repr(snapshot.data()) or "array" not in before


def test_what_has_no_form_for_the_file_stays_in_memory(tmp_path: Path) -> None:
    """A pointer to an image, a bare number: they are rare, and never lost."""
    journal = Journal(tmp_path, memory_bytes=12)
    pointer = ModelInput((ImageAssetPointerChunk("png", "here"),))
    odd = [
        Datum(pointer),
        Datum(ModelInput.from_ints([1]), {"x": np.asarray(2.0, dtype=np.float32)}),
    ]
    made = [journal.record("forward", data=[one]) for one in odd]

    assert [False, False] == [one.is_spilled for one in made]
    assert [(one,) for one in odd] == [one.data() for one in made]
    journal.close()


def test_memory_is_bounded_and_the_file_goes_with_its_checkpoint(tmp_path: Path) -> None:
    """However long the run; and nothing that has a name is left in the folder."""
    limit = 100_000
    journal = Journal(tmp_path, memory_bytes=limit, fallback=1)
    for number in range(1, 6):
        for _ in range(5):
            steps(journal, 2)
            assert journal.statistics().memory_bytes <= limit
        assert journal.statistics().file_bytes > 0
        journal.mark(number)
        journal.confirm(number)
    assert journal.statistics().file_bytes < 400_000
    assert [] == list(tmp_path.iterdir())
    for one in journal.operations:
        found = one.data()
        assert not one.has_data or (found is not None and (datum(one.number - 1),) == found)
    journal.close()
    assert (0, 0, 0) == (
        *(journal.statistics().operations, journal.statistics().memory_bytes),
        journal.statistics().file_bytes,
    )


def test_a_journal_that_grows_too_long_wants_a_checkpoint(tmp_path: Path) -> None:
    """Too many operations, or too many bytes, since the newest; a checkpoint settles it."""
    journal = Journal(tmp_path, operations=4)
    steps(journal, 1)
    assert not journal.is_full
    steps(journal, 1)
    assert journal.is_full
    journal.mark(1)
    journal.confirm(1)
    assert not journal.is_full

    small = Journal(tmp_path, memory_bytes=0, file_bytes=45_000)
    steps(small, 1)
    assert not small.is_full
    steps(small, 1)
    assert small.is_full
    small.mark(1)
    small.confirm(1)
    assert not small.is_full
    small.close()


def test_older_fallbacks_go_before_the_newest_checkpoint_does(tmp_path: Path) -> None:
    """When the file has no room: what is needed first is kept longest."""
    journal = Journal(tmp_path, memory_bytes=20_000, file_bytes=40_000, fallback=3)
    for number in (1, 2, 3):
        steps(journal, 1)
        journal.mark(number)
        journal.confirm(number)
    assert journal.reaches(1)
    steps(journal, 3)

    assert (False, True) == (journal.reaches(None), journal.reaches(3))
    assert journal.statistics().memory_bytes <= 20_000
    journal.close()


def test_training_goes_on_where_nothing_can_be_written(tmp_path: Path) -> None:
    """The journal asks for a checkpoint, then gives up what is furthest back, and says so."""
    gone = tmp_path / "gone"
    journal = Journal(gone, memory_bytes=100_000)
    steps(journal, 5)
    assert (True, True) == (journal.is_full, journal.reaches(None))
    steps(journal, 5)

    assert not journal.reaches(None)
    assert journal.statistics().memory_bytes <= 200_000
    with pytest.raises(InvalidInputError, match="given up"):
        journal.operations[0].data()
    journal.mark(1)
    journal.confirm(1)
    assert journal.reaches(1)
    gone.mkdir()
    steps(journal, 5)
    assert not journal.is_full
    assert journal.reaches(1)
    journal.close()


class Repeating(RuleBasedStateMachine):
    """Calls, ends and checkpoints in every order, against a list that forgets nothing."""

    @initialize(fallback=st.integers(0, 2), memory=st.sampled_from([0, 500, 10**9]))
    def begin(self, fallback: int, memory: int) -> None:
        self.journal = Journal("/tmp", memory_bytes=memory, fallback=fallback)
        self.calls: list[Operation] = []
        self.given: dict[int, Datum] = {}
        self.marks: dict[int, int] = {}
        self.said: set[int] = set()

    @rule(kind=st.sampled_from(["forward", "forward_backward", "optim_step", "save_state"]))
    def call(self, kind: Any) -> None:
        data = [datum(len(self.calls), 20)] if "forward" in kind else None
        one = self.journal.record(kind, data=data, step=len(self.calls))
        self.calls.append(one)
        if data:
            self.given[one.number] = data[0]

    @rule(which=st.integers(0, 5), end=st.sampled_from(["done", "failed", "withdrawn"]))
    def end(self, which: int, end: str) -> None:
        pending = [one for one in self.calls if one.outcome == "pending"]
        if pending:
            one = pending[min(which, len(pending) - 1)]
            if end == "withdrawn":
                self.journal.withdraw(one)
            else:
                self.journal.settle(one, failed=end == "failed")

    @rule()
    def mark(self) -> None:
        number = len(self.marks) + 1
        self.marks[number] = len(self.calls)
        assert len(self.calls) == self.journal.mark(number)

    @rule(which=st.integers(0, 3), good=st.booleans())
    def answer(self, which: int, *, good: bool) -> None:
        if self.marks:
            number = max(len(self.marks) - which, 1)
            (self.journal.confirm if good else self.journal.drop)(number)
            (self.said.add if good else self.said.discard)(number)

    @invariant()
    def what_is_reached_is_repeated_whole(self) -> None:
        journal = getattr(self, "journal", None)
        if journal is None:
            return
        for checkpoint in (None, *self.marks):
            if not journal.reaches(checkpoint):
                continue
            since = self.marks.get(checkpoint, 0) if checkpoint else 0
            wanted = [one.number for one in self.calls[since:] if one.must_be_repeated]
            assert wanted == to_repeat(journal, checkpoint)
            assert all(one.outcome != "pending" for one in self.calls[:since])
            for one in self.calls[since:]:
                if one.must_be_repeated and one.has_data:
                    assert (self.given[one.number],) == one.data()

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            self.journal.close()


TestRepeating = Repeating.TestCase
TestRepeating.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize(
    ("first", "again", "tolerance", "same"),
    [
        ({"loss:sum": 1.0}, {"loss:sum": 1.0}, 0.0, True),
        ({"loss:sum": 1.0}, {"loss:sum": 1.0000001}, 0.0, False),
        ({"loss:sum": 1.0}, {"loss:sum": 1.0000001}, 1e-6, True),
        ({"loss:sum": float("nan")}, {"loss:sum": float("nan")}, 0.0, True),
        ({"loss:sum": float("nan")}, {"loss:sum": 1.0}, 0.0, False),
        (None, {"loss:sum": 1.0}, 0.0, True),
        ({"loss:sum": 1.0, "gone": 2.0}, {"loss:sum": 1.0, "new": 3.0}, 0.0, True),
    ],
)
def test_a_repetition_is_compared_by_its_metrics(
    first: Any, again: Any, tolerance: float, *, same: bool
) -> None:
    """Bit by bit where the machine is the same; what only one of them has says nothing."""
    assert same == same_metrics(first, again, tolerance=tolerance)
