"""What was asked of a run since its checkpoints, in order, so that it can be asked again.

A journal lives as long as its program: a new program does again what comes after a checkpoint,
from its own data. The rule: memory is bounded, training never fails because of the journal, and
what can no longer be repeated says so before anybody relies on it.

Operations are numbered from 1 without gaps. A checkpoint marks the place between two of them;
`reaches` says whether all that came after a mark is still here. Data over `memory_bytes` go to a
file in the run's folder that has no name, so that nothing is left behind whatever happens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self

import msgspec

from tinker_async.api.progress import Default
from tinker_async.data.datum import Datum
from tinker_async.durable import settings
from tinker_async.durable.operations import Operation, OperationKind
from tinker_async.durable.snapshots import Reference, Snapshot, SpillFile
from tinker_async.errors import InvalidInputError
from tinker_async.futures import APIFuture
from tinker_async.logs import log

_LOW = 0.75
"""Spilling goes on until this share of the limit is left, so that it is seldom."""
_HIGH = 2.0
"""Where data cannot be written, this many limits are held before repeating is given up."""


class JournalStatistics(msgspec.Struct, frozen=True):
    """Figures of a journal."""

    operations: int
    pending: int
    memory_bytes: int
    file_bytes: int


_PLAIN = frozenset({type(None), bool, int, float, str, Default})
"""Most arguments: nobody can change them."""


def _own(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


class Journal:
    """The operations of one run.

    Args:
        run_dir: Where data go that are too many for memory.
        memory_bytes: How many are held in memory.
        file_bytes: How many are held in files.
        operations: From how many operations since the newest checkpoint on it counts as full.
        fallback: How many confirmed checkpoints before the newest one are still reached.
        copies: Keep copies of the data, so that the caller may use its arrays again.

    Raises:
        InvalidInputError: A limit is none.
    """

    def __init__(
        self,
        run_dir: str | PathLike[str],
        *,
        memory_bytes: int = 512 << 20,
        file_bytes: int = 8 << 30,
        operations: int = 100_000,
        fallback: int = 1,
        copies: bool = True,
    ) -> None:
        settings.whole(memory_bytes, 0, "memory_bytes")
        settings.whole(file_bytes, 0, "file_bytes")
        settings.whole(operations, 1, "operations")
        settings.whole(fallback, 0, "fallback")
        self._folder = Path(run_dir)
        self._most_memory_bytes = memory_bytes
        self._most_file_bytes = file_bytes
        self._most_operations = operations
        self._fallback = fallback
        self._kind: type[Snapshot | Reference] = Snapshot if copies else Reference
        self._operations: list[Operation] = []
        self._first = 1
        """The number of the first one that is here."""
        self._settled = 0
        """Up to this number, every call is settled."""
        self._tried = 0
        """Up to this number, data were spilled, or cannot be."""
        self._marks: dict[int | None, int] = {None: 0}
        """By checkpoint (None is the beginning): the last operation before it."""
        self._said: set[int] = set()
        """Checkpoints that are there, but with calls before them whose callers still wait."""
        self._usable: list[int | None] = [None]
        """Those that can be gone back to, in order."""
        self._segment = 0
        self._files: list[SpillFile] = []
        self._file_fails = False
        self._sizes: dict[int, int] = {}
        """Bytes in memory, by operation."""
        self._memory_bytes = 0

    # Writing

    def record(
        self,
        kind: OperationKind,
        *,
        data: Sequence[Datum] | None = None,
        arguments: Mapping[str, Any] | None = None,
        future: APIFuture[Any] | None = None,
        step: int = 0,
    ) -> Operation:
        """Put down a call, before it is sent; may write to the file.

        Args:
            kind: The method.
            data: Its data. What their arrays hold now is what a repetition will send: those that
                were changed in place, and were not copied, cannot be repeated.
            arguments: All others, by the method's names; by reference, mappings as copies.
            future: The one that the caller was given.
            step: Steps that are complete.
        """
        kept = {
            name: value if type(value) in _PLAIN else _own(value)
            for name, value in (arguments or {}).items()
        }
        snapshot = None if data is None else self._kind(data)
        number = self.last + 1
        operation = Operation(number, kind, step, kept, snapshot, future, self._segment)
        self._operations.append(operation)
        if snapshot is not None:
            self._sizes[number] = snapshot.nbytes
            self._memory_bytes += self._sizes[number]
            if self._memory_bytes > self._most_memory_bytes:
                self._make_room()
        return operation

    def settle(
        self,
        operation: Operation,
        *,
        metrics: Mapping[str, float] | None = None,
        failed: bool = False,
    ) -> bool:
        """Put down that a call has its result, or failed by itself; its future is let go.

        One that failed is repeated like any other: a part of it may have had its effect.

        Returns:
            Whether it was pending, so that work has gone on.
        """
        if operation.outcome != "pending":
            return False
        operation.outcome = "failed" if failed else "done"
        operation.metrics = None if metrics is None else dict(metrics)
        operation.future = None
        self._note_settled()
        return True

    def withdraw(self, operation: Operation) -> None:
        """Put down that a call was taken back before it was sent: it is never repeated."""
        operation.outcome = "withdrawn"
        operation.future = None
        self._forget_data(operation)
        self._note_settled()

    # Checkpoints

    def mark(self, checkpoint: int) -> int:
        """Put down that a checkpoint is being saved after all calls so far.

        Returns:
            The number of the last call that is in it, for `Ledger.begin(operation=...)`.
        """
        self._marks[checkpoint] = self.last
        self._segment += 1
        return self.last

    def mark_loaded(self, checkpoint: int | None) -> None:
        """Put down that the run begins here with a checkpoint of an earlier program.

        All that was before is out of reach; None says that it begins with a model as it is made.

        Raises:
            InvalidInputError: There are calls already.
        """
        settings.check(not self._operations, "checkpoint", "there are operations before it")
        self._marks = {checkpoint: self.last}
        self._usable = [checkpoint]

    def confirm(self, checkpoint: int) -> None:
        """Put down that a checkpoint is there: what no fallback needs is forgotten.

        It can be gone back to as soon as every call before it is settled: until then a caller
        waits for a result that a repetition from here would not give.
        """
        if checkpoint in self._marks and checkpoint not in self._usable:
            self._said.add(checkpoint)
            self._use_said()

    def drop(self, checkpoint: int) -> None:
        """Put down that a checkpoint is not there, or is no good: the calls stay."""
        self._marks.pop(checkpoint, None)
        self._said.discard(checkpoint)
        if checkpoint in self._usable:
            self._usable.remove(checkpoint)

    def reaches(self, checkpoint: int | None) -> bool:
        """Whether a repetition from a checkpoint (None: the beginning) gives all that is owed."""
        return checkpoint in self._usable

    # Reading

    @property
    def last(self) -> int:
        """The number of the newest call; 0 before the first."""
        return self._first + len(self._operations) - 1

    @property
    def operations(self) -> tuple[Operation, ...]:
        """All calls that are here, in order."""
        return tuple(self._operations)

    @property
    def is_full(self) -> bool:
        """Whether a checkpoint should be taken soon: `CheckpointPolicy.due(journal_full=...)`."""
        begins = self._marks[self._usable[-1]] if self._usable else self._first - 1
        segment_bytes = sum(file.nbytes for file in self._files if file.segment == self._segment)
        return (
            self.last - begins >= self._most_operations
            or segment_bytes > self._most_file_bytes // 2
            or self._file_fails
        )

    @property
    def pending(self) -> list[Operation]:
        """The calls whose callers wait, in order."""
        return [one for one in self._operations if one.outcome == "pending"]

    def since(self, checkpoint: int | None) -> Replay:
        """Return what is to be repeated by a run that goes on from a checkpoint.

        Raises:
            InvalidInputError: It is out of reach.
        """
        if not self.reaches(checkpoint):
            raise InvalidInputError(
                f"checkpoint: the operations after {checkpoint} are not all here any more",
                field="checkpoint",
            )
        return Replay(self, self._marks[checkpoint])

    def statistics(self) -> JournalStatistics:
        """Return the present figures."""
        return JournalStatistics(
            operations=len(self._operations),
            pending=len(self.pending),
            memory_bytes=self._memory_bytes,
            file_bytes=sum(file.nbytes for file in self._files),
        )

    def close(self) -> None:
        """Let go of everything; pending calls are the owner's to settle, before."""
        for operation in self._operations:
            self._forget_data(operation)
        for file in self._files:  # what could not be written to has nobody who would close it
            file.close()
        self._files = []
        self._first = self.last + 1
        self._operations.clear()
        self._marks, self._usable, self._said = {}, [], set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def after(self, number: int) -> Operation | None:
        """Return the first call after a number that is to be repeated; None where there is none."""
        index = max(number + 1 - self._first, 0)
        for operation in self._operations[index:]:
            if operation.must_be_repeated:
                return operation
        return None

    # Room

    def _note_settled(self) -> None:
        """Find how far all is settled, and use the checkpoints that waited for it."""
        before = self._settled
        while self._settled < self.last:
            index = self._settled + 1 - self._first
            if self._operations[index].outcome == "pending":
                break
            self._settled += 1
        if self._said and self._settled > before:
            self._use_said()

    def _use_said(self) -> None:
        ready = {one for one in self._said if self._marks[one] <= self._settled}
        if ready:
            self._said -= ready
            self._usable = sorted({*self._usable, *ready}, key=lambda one: self._marks[one])
            self._forget_beyond(self._fallback)

    def _forget_beyond(self, fallback: int) -> None:
        self._usable = self._usable[-(fallback + 1) :]
        number = self._marks[self._usable[0]]
        count = number + 1 - self._first
        for operation in self._operations[:count]:
            self._forget_data(operation)
        del self._operations[:count]
        self._first += count
        self._forget_marks(number)

    def _forget_marks(self, number: int) -> None:
        """Forget the marks before a number, and whoever waits to use one."""
        self._marks = {one: at for one, at in self._marks.items() if at >= number}
        self._usable = [one for one in self._usable if one in self._marks]
        self._said &= self._marks.keys()

    def _forget_data(self, operation: Operation) -> None:
        self._forget_memory(operation)
        place, operation.place = operation.place, None
        if place is not None:
            place.file.leave()
            if place.file.users == 0:
                self._files.remove(place.file)

    def _forget_memory(self, operation: Operation) -> None:
        self._memory_bytes -= self._sizes.pop(operation.number, 0)
        operation.snapshot = None

    def _make_room(self) -> None:
        """Bring memory under its limit: to the file, else by giving up what is furthest back."""
        self._spill()
        while self._memory_bytes > self._most_memory_bytes and len(self._usable) > 1:
            self._forget_beyond(len(self._usable) - 2)
            self._spill()
        if self._memory_bytes > _HIGH * self._most_memory_bytes:
            self._give_up()

    def _spill(self) -> None:
        """Write the oldest data to the file until memory has room again, or the file has not."""
        limit = _LOW * self._most_memory_bytes
        self._tried = max(self._tried, self._first - 1)
        while self._memory_bytes > limit and self._tried < self.last:
            operation = self._operations[self._tried + 1 - self._first]
            if operation.snapshot is not None and not self._spilled(operation):
                return
            self._tried += 1

    def _spilled(self, operation: Operation) -> bool:
        """Write one call's data; return whether the next may be tried."""
        if sum(file.nbytes for file in self._files) >= self._most_file_bytes:
            return False
        try:
            data = operation.data() or ()
        except InvalidInputError:
            return True  # changed in place: whoever wants to repeat them is told
        try:
            place = self._file_of(operation).add(data)
        except OSError as error:
            if not self._file_fails:
                log.warning("journal_not_written", message=str(error), folder=str(self._folder))
            self._file_fails = True
            return False
        self._file_fails = False
        if place is not None:
            operation.place = place
            self._forget_memory(operation)
        return True

    def _file_of(self, operation: Operation) -> SpillFile:
        newest = self._files[-1] if self._files else None
        if newest is None or newest.segment != operation.segment:
            newest = SpillFile(self._folder, operation.segment)
            self._files.append(newest)
        return newest

    def _give_up(self) -> None:
        """Forget the data of the oldest calls: what went before them is out of reach now."""
        limit = _LOW * self._most_memory_bytes
        lost = 0
        for operation in self._operations[:-1]:
            if self._memory_bytes <= limit:
                break
            if operation.snapshot is not None:
                self._forget_data(operation)
                lost = operation.number
        self._forget_marks(lost)
        log.warning("journal_cut", operation=lost, folder=str(self._folder))


class Replay:
    """Goes through the calls to repeat, those included that are recorded meanwhile."""

    def __init__(self, journal: Journal, number: int) -> None:
        self._journal = journal
        self.at = number
        """The number of the last call that was handed out, or went before."""
        self.repeated = 0
        """Calls that were handed out."""

    @property
    def remaining(self) -> int:
        """Calls that are to be repeated, as of now."""
        return sum(one.must_be_repeated for one in self._journal.operations if one.number > self.at)

    def next(self) -> Operation | None:
        """Return the next call to repeat; None when all are, at this moment.

        Whoever gets None and, without waiting, lets new calls out again, misses none.
        """
        found = self._journal.after(self.at)
        if found is not None:
            self.at = found.number
            self.repeated += 1
        return found
