"""The files of a download: aside until they are whole, then in place at once.

Aside is a folder beside the target, `.<name>.partial`, that only its owner can enter. It
outlives a broken or killed download and is gone after a good one. The rule: until the last
rename nothing at the target is touched. All functions here block: they run in the threads of
`Disk`, which also makes its errors of the system's.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

import anyio
import anyio.to_thread
import msgspec

from tinker_async.download.records import Route
from tinker_async.download.resume import Version
from tinker_async.errors import DiskError, DownloadError, TargetExistsError

T = TypeVar("T")

BLOCK_BYTES = 1 << 20
"""What is read or written at a time."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


class Notes(msgspec.Struct, omit_defaults=True):
    """What a download writes down for the one that may have to go on."""

    tinker_path: str
    route: Route
    versions: dict[str, Version] = {}
    """By file, of what is on disk."""
    format: int = 1


class Disk:
    """Runs file work in threads of its own, a few at a time.

    Args:
        threads: How many.
    """

    def __init__(self, threads: int) -> None:
        self.threads = anyio.CapacityLimiter(threads)

    async def run(self, work: Callable[[], T]) -> T:
        """Do blocking work in a thread; a cancelled caller leaves only when it is done.

        Raises:
            DiskError: The system refused.
        """
        with disk_errors():
            return await anyio.to_thread.run_sync(work, limiter=self.threads)


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turn the system's errors into `DiskError`.

    Raises:
        DiskError: The disk is full, or may not be written, or whatever else is the matter.
    """
    try:
        yield
    except DownloadError:
        raise
    except OSError as error:
        raise _disk_error(error) from error


def _disk_error(error: OSError) -> DiskError:
    path = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
    where = f" {path}" if path else ""
    if error.errno in _FULL:
        return DiskError(f"the disk is full: cannot write{where}", path=path, reason="full")
    if error.errno in _FORBIDDEN:
        return DiskError(
            f"not allowed to write{where}: {error.strerror}",
            path=path,
            reason="forbidden",
            hint="give another folder, or change the rights of this one",
        )
    return DiskError(f"cannot write{where}: {error.strerror or error}", path=path, reason="other")


def check_target(target: Path, *, overwrite: bool) -> None:
    """Raise if there is something at the target that is to stay; an empty folder may go.

    Raises:
        TargetExistsError: There is.
    """
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        raise TargetExistsError(
            f"{target} exists and is no folder", hint="give the name of a new folder"
        )
    if not overwrite and any(target.iterdir()):
        raise TargetExistsError(f"{target} exists already")


class Aside:
    """The folder beside the target, owned until `close`.

    Args:
        target: Where the download will be, absolute.
        tinker_path: What is downloaded.
        overwrite: Whether a folder at the target is replaced.

    Raises:
        DiskError: The folder cannot be made, or is not ours.
        DownloadError: Another download to the same target is under way.
    """

    def __init__(self, target: Path, tinker_path: str, *, overwrite: bool) -> None:
        self.target = target
        self.tinker_path = tinker_path
        self.overwrite = overwrite
        self.folder = target.parent / f".{target.name}.partial"
        target.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _own_folder(self.folder)

    @property
    def files(self) -> Path:
        """The folder that becomes the target."""
        return self.folder / "files"

    @property
    def archive(self) -> Path:
        """The archive, on that route."""
        return self.folder / "archive"

    def open_notes(self, route: Route) -> Notes:
        """Return what an earlier download noted; if it was another one, begin anew."""
        try:
            notes = msgspec.json.decode((self.folder / "notes").read_bytes(), type=Notes)
            fitting = notes == Notes(self.tinker_path, route, notes.versions)
        except (OSError, msgspec.DecodeError):
            fitting = False
        if not fitting:
            self.clear()
            notes = Notes(self.tinker_path, route)
            self.write_notes(notes)
        self.files.mkdir(exist_ok=True)
        return notes

    def write_notes(self, notes: Notes) -> None:
        """Replace the notes as a whole."""
        new = self.folder / "notes.new"
        new.write_bytes(msgspec.json.encode(notes))
        new.replace(self.folder / "notes")

    def clear(self) -> None:
        """Remove all that was received."""
        for entry in self.folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != "lock":
                entry.unlink()

    def prune(self, names: set[str]) -> None:
        """Remove received files that are not of these names (relative, with `/`)."""
        for file in [file for file in self.files.rglob("*") if not file.is_dir()]:
            if file.relative_to(self.files).as_posix() not in names:
                file.unlink()

    def put_in_place(self) -> None:
        """Make the files the target, and remove all else.

        Raises:
            TargetExistsError: Something came to the target meanwhile.
        """
        for path in [*self.files.rglob("*"), self.files]:
            _flush(path)
        check_target(self.target, overwrite=self.overwrite)
        old = self.target.parent / f".{self.target.name}.{secrets.token_hex(4)}.old"
        replaced = self.target.is_dir()
        if replaced:
            self.target.rename(old)
        try:
            self.files.rename(self.target)
        except OSError as error:
            if replaced:
                old.rename(self.target)
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                raise TargetExistsError(f"{self.target} exists already") from error
            raise
        _flush(self.target.parent)
        # From here on the download is good, whatever cannot be tidied up.
        shutil.rmtree(old, ignore_errors=True)
        self.remove()

    def check_room(self, file: str, size_bytes: int) -> None:
        """Raise if there is no room for so many bytes more.

        Raises:
            DiskError: There is not.
        """
        free_bytes = shutil.disk_usage(self.folder).free
        if size_bytes > free_bytes:
            raise DiskError(
                f"the disk is too full: {file} needs {size_bytes} bytes more, "
                f"and {free_bytes} are free",
                path=str(self.folder),
                reason="full",
            )

    def remove(self) -> None:
        """Remove the folder with all that was received."""
        if os.name == "nt":
            self._lock.close()  # there it would keep the folder
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Let another download have the folder, which is removed if nothing was received."""
        with contextlib.suppress(OSError):
            received = [*self.folder.glob("files/**/*"), self.archive]
            if not any(path.is_file() and path.stat().st_size for path in received):
                self.remove()
        self._lock.close()


def _own_folder(folder: Path) -> IO[bytes]:
    """Make a folder for us alone, if it is not there, and lock it."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    ours = not hasattr(os, "geteuid") or found.st_uid == os.geteuid()
    if not stat.S_ISDIR(found.st_mode) or not ours:
        raise DiskError(
            f"{folder} is in the way: it is not a folder of yours",
            path=str(folder),
            reason="forbidden",
            hint="remove it, or give another target",
        )
    if stat.S_IMODE(found.st_mode) & 0o077 and os.name != "nt":
        folder.chmod(0o700)
    lock = (folder / "lock").open("ab")
    if _try_lock(lock) and _is_at(lock, folder / "lock"):
        return lock
    lock.close()
    raise DownloadError(
        f"another download to {folder.name.removeprefix('.').removesuffix('.partial')} is under way",
        hint="wait for it, or give another target",
    )


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is still the one at its path: its owner may just have removed it."""
    return path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a directory to flush it
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class PartFile:
    """A file that grows.

    Args:
        path: Where; its folder is made.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        self.size_bytes = self._file.seek(0, os.SEEK_END)

    def tail(self, offset: int) -> bytes:
        """Return what there is from an offset on."""
        self._file.seek(offset)
        found = b""
        while block := self._file.read(self.size_bytes - offset - len(found)):
            found += block
        return found

    def truncate(self) -> None:
        """Remove the content."""
        self._file.truncate(0)
        self.size_bytes = 0

    def append(self, blocks: list[bytes]) -> None:
        """Write at the end."""
        self._file.seek(self.size_bytes)
        for block in blocks:
            left = memoryview(block)
            while left:
                written = self._file.write(left) or 0
                self.size_bytes += written
                left = left[written:]

    def close(self) -> None:
        """Close it."""
        self._file.close()


class Hashing:
    """The SHA-256 of a file, computed step by step, so that a caller can leave between them."""

    _STEP_BYTES = 16 << 20

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._digest = hashlib.sha256()
        self.done_bytes = 0

    def step(self) -> bool:
        """Hash the next part; return whether there is more."""
        for _ in range(self._STEP_BYTES // BLOCK_BYTES):
            block = self._file.read(BLOCK_BYTES)
            if not block:
                return False
            self._digest.update(block)
            self.done_bytes += len(block)
        return True

    def result(self) -> str:
        """Return the hash in hex."""
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
