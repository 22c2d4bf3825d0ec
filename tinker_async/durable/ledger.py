"""The ledger of a run: one line of JSON for each thing that happened, never changed afterwards.

What a method has returned from is on the disk. The rule: a kill at any byte loses at most the
line that was being written, and the next writer mends that; two writers there cannot be.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import msgspec

from tinker_async.durable.records import (
    FORMAT,
    Account,
    CheckpointEntry,
    Record,
    RecoveryRecord,
    RunRecord,
    StatusRecord,
    account_of,
    check_json,
    finite,
    lineage,
)
from tinker_async.errors import InvalidInputError, LedgerError

FILE = "ledger.jsonl"
_LOCK = "ledger.lock"
_SHOWN_PID_BYTES = 20

_decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)
_encoder = msgspec.json.Encoder()
_KINDS = {"run", "checkpoint", "status", "recovery"}


class Ledger:
    """The record of a run, for its one writer; closing it lets another be.

    Methods block: they write and wait for the disk. Call them in a worker thread, one at a time;
    `account` may be read by anybody at any moment.

    Args:
        run_dir: The run's folder; made if need be.
        clock: Tells the seconds since 1970.
        on_record: Called with each record after it is on the disk; must not raise.

    Raises:
        LedgerError: Another process has it (`in_use`), the folder cannot be written
            (`unwritable`), or the file is no ledger or is broken before its end (`damaged`).
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        *,
        clock: Callable[[], float] = time.time,
        on_record: Callable[[Record], None] | None = None,
    ) -> None:
        self.run_dir = Path(run_dir)
        self._path = self.run_dir / FILE
        self._clock = clock
        self._on_record = on_record
        self._lock = _Lock(self.run_dir)
        self._fd = -1
        try:
            records, self._size = self._opened()
            self.account: Account = _account(records, self._path)
            """What is on record."""
        except BaseException:
            self.close()
            raise

    def _opened(self) -> tuple[list[Record], int]:
        """Read what is there, and cut off a line that a crash left unfinished."""
        try:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
            self._fd = os.open(self._path, flags, 0o600)
            data = self._path.read_bytes()
            records, size = parse(data, self._path)
            if size < len(data):
                os.ftruncate(self._fd, size)
                os.fsync(self._fd)
            os.lseek(self._fd, size, os.SEEK_SET)
            _flush_folder(self.run_dir)
        except OSError as error:
            raise _unwritable(self._path, error) from error
        return records, size

    @classmethod
    def read(cls, run_dir: str | os.PathLike[str]) -> Account:
        """Return what is on record, without a lock: for those who only look, at any time.

        Raises:
            LedgerError: There is no ledger, it cannot be read (`unwritable`), or is `damaged`.
        """
        path = Path(run_dir) / FILE
        try:
            data = path.read_bytes()
        except OSError as error:
            raise LedgerError(
                f"there is no ledger to read at {path}: {error.strerror}",
                path=str(path),
                reason="unwritable",
                hint="give the run_dir of a durable training",
            ) from error
        return _account(parse(data, path)[0], path)

    # What happened

    def describe(
        self, base_model: str, rank: int, seed: int, options: Mapping[str, Any] | None = None
    ) -> RunRecord:
        """Say what the run is, at its first start; later starts must say the same.

        The seed of the first start counts: the record that is returned has it, whatever seed is
        given now.

        Raises:
            LedgerError: The folder belongs to another run (`other_run`).
            InvalidInputError: `options` are no JSON.
        """
        found = RunRecord(
            base_model=base_model,
            rank=rank,
            seed=seed,
            options=check_json(dict(options or {}), "options"),
            began_at=self._clock(),
        )
        known = self.account.run
        if known is None:
            self._append(found)
            return found
        for name in ("base_model", "rank", "options"):
            was, now = getattr(known, name), getattr(found, name)
            if was != now:
                raise LedgerError(
                    f"{self.run_dir} belongs to a run with {name} {was!r}, not {now!r}",
                    path=str(self._path),
                    reason="other_run",
                    hint="give another run_dir, or the arguments that the run began with",
                )
        return known

    def begin(
        self,
        *,
        run_id: str,
        name: str,
        step: int,
        epoch: int = 0,
        generation: int = 1,
        reason: str = "asked",
        metrics: Mapping[str, float] | None = None,
        position: Any = None,
        random_state: Mapping[str, Any] | None = None,
        operation: int = 0,
        parent: int | None = None,
        ttl_s: float | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> CheckpointEntry:
        """Put down that a checkpoint is about to be saved, before the save is sent.

        Metrics that are not finite are left out.

        Raises:
            InvalidInputError: Something is no JSON, or there is no such parent.
            LedgerError: It cannot be written; nothing has changed.
        """
        if parent is not None:
            self.account.entry(parent)
        now_s = self._clock()
        entry = CheckpointEntry(
            number=len(self.account.entries) + 1,
            run_id=run_id,
            name=name,
            step=step,
            epoch=epoch,
            generation=generation,
            reason=reason,
            metrics=finite(metrics),
            position=check_json(position, "position"),
            random_state=check_json(dict(random_state or {}), "random_state"),
            operation=operation,
            parent=parent,
            began_at=now_s,
            expires_at=None if ttl_s is None else now_s + ttl_s,
            extra=check_json(dict(extra or {}), "extra"),
        )
        self._append(entry)
        return entry

    def confirm(
        self,
        number: int,
        path: str,
        *,
        sampler_path: str | None = None,
        fingerprint: tuple[float, ...] | None = None,
    ) -> CheckpointEntry:
        """Put down that the server has a checkpoint. May be said again to add to it.

        Raises:
            InvalidInputError: There is none of this number, or it was deleted.
            LedgerError: It cannot be written; nothing has changed.
        """
        return self._settle(
            StatusRecord(
                number=number,
                status="confirmed",
                at=self._clock(),
                path=path,
                sampler_path=sampler_path,
                fingerprint=fingerprint,
            )
        )

    def fail(self, number: int, error: str) -> CheckpointEntry:
        """Put down that a checkpoint is not there, or is no good. Errors: as `confirm`."""
        record = StatusRecord(number=number, status="failed", at=self._clock(), error=error)
        return self._settle(record)

    def deleted(self, number: int) -> CheckpointEntry:
        """Put down that a checkpoint was deleted, after it was. Errors: as `confirm`.

        A crash between the two leaves it `confirmed`: deleting it again finds nothing there, and
        that counts as deleted.
        """
        return self._settle(StatusRecord(number=number, status="deleted", at=self._clock()))

    def recovered(self, record: RecoveryRecord) -> None:
        """Put down an attempt to bring the run back, or a resumption; `at` 0 becomes now.

        Raises:
            LedgerError: It cannot be written; nothing has changed.
        """
        self._append(record if record.at else msgspec.structs.replace(record, at=self._clock()))

    def lineage(self) -> dict[str, Any]:
        """Return where each checkpoint came from; as `records.lineage`."""
        return lineage(self.account)

    # The file

    def _settle(self, record: StatusRecord) -> CheckpointEntry:
        self._append(record)
        return self.account.entry(record.number)

    def _append(self, record: Record) -> None:
        account = self.account.followed_by(record)
        line = _encoder.encode(record) + b"\n"
        if self._fd < 0:
            raise LedgerError(
                f"the ledger {self._path} is closed", path=str(self._path), reason="unwritable"
            )
        try:
            _write_all(self._fd, line)
            os.fsync(self._fd)
        except OSError as error:
            self._take_back()
            raise _unwritable(self._path, error) from error
        self._size += len(line)
        self.account = account
        if self._on_record is not None:
            self._on_record(record)

    def _take_back(self) -> None:
        """Remove what was written of a line; where that fails too, nothing more is written."""
        try:
            os.ftruncate(self._fd, self._size)
            os.lseek(self._fd, self._size, os.SEEK_SET)
        except OSError:
            self.close()

    def close(self) -> None:
        """Let go of the file; may be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._fd < 0 else f"{len(self.account.entries)} checkpoints"
        return f"<Ledger {self._path}: {state}>"


def parse(data: bytes, path: Path) -> tuple[list[Record], int]:
    """Return the records in a file's bytes, and how many bytes of them are sound.

    An unfinished or unreadable last line is what a crash leaves, and is left out. Records of a
    kind that this version does not know are skipped.

    Raises:
        LedgerError: A line before the last cannot be read, or a newer version wrote the file.
    """
    records: list[Record] = []
    size = 0
    lines = data.split(b"\n")
    for index, line in enumerate(lines[:-1]):
        found = _record(line)
        if found is None and any(lines[index + 1 :]):
            raise LedgerError(
                f"line {index + 1} of {path} cannot be read", path=str(path), reason="damaged"
            )
        if found is None:
            break
        if isinstance(found, RunRecord) and found.format > FORMAT:
            raise LedgerError(
                f"{path} was written by a newer version (format {found.format})",
                path=str(path),
                reason="damaged",
                hint="update tinker-async",
            )
        if not isinstance(found, _Skipped):
            records.append(found)
        size += len(line) + 1
    return records, size


class _Skipped:
    """Stands for a record of a kind that a newer version added."""


def _record(line: bytes) -> Record | _Skipped | None:
    try:
        return _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass
    try:
        raw = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    is_newer = isinstance(raw, dict) and isinstance(raw.get("type"), str)
    return _Skipped() if is_newer and raw["type"] not in _KINDS else None


def _account(records: list[Record], path: Path) -> Account:
    try:
        return account_of(records)
    except InvalidInputError as error:
        raise LedgerError(
            f"{path} contradicts itself: {error.message}", path=str(path), reason="damaged"
        ) from error


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _unwritable(path: Path, error: OSError) -> LedgerError:
    return LedgerError(
        f"{path} cannot be written: {error.strerror or error}",
        path=str(path),
        reason="unwritable",
        hint="make room or give another run_dir",
    )


def _flush_folder(folder: Path) -> None:
    """Make the file's name last too; a system that cannot do that has no need of it."""
    if sys.platform == "win32":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class _Lock:
    """The right to write: a lock that the system takes back when its owner dies."""

    def __init__(self, folder: Path) -> None:
        path = folder / _LOCK
        self._fd = -1
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            _lock(self._fd)
        except OSError as error:
            owner = os.read(self._fd, _SHOWN_PID_BYTES).decode("ascii", "replace").strip()
            self.release()
            raise LedgerError(
                f"another program{f' (process {owner})' if owner else ''} trains in {folder}",
                path=str(path),
                reason="in_use",
                hint="end it, or give another run_dir",
            ) from error
        os.ftruncate(self._fd, 0)
        os.write(self._fd, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Let another have it; may be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def is_in_use(run_dir: str | os.PathLike[str]) -> bool:
    """Return whether a program trains in a folder: its lock is taken for a moment, and let go."""
    try:
        fd = os.open(Path(run_dir) / _LOCK, os.O_RDWR)
    except OSError:  # nobody ever wrote here, or we may not: nothing to be found out
        return False
    try:
        _lock(fd)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


if sys.platform == "win32":
    import msvcrt

    _FAR = 1 << 30

    def _lock(fd: int) -> None:
        os.lseek(fd, _FAR, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        os.lseek(fd, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
