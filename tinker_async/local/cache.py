"""Folders that are made once and kept: where they are, and how they come to be whole.

A cached folder exists only when it is complete: it is built beside its place, synced to
disk and renamed. One process builds, others wait; a killed process leaves a `.partial`
folder that the next one removes.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeAlias

from tinker_async.errors import ConfigError

Progress: TypeAlias = Callable[[str, int, int | None], None]
"""Called with (stage, done, total); total is None where it cannot be known."""

CACHE_VARIABLE = "TINKER_ASYNC_CACHE"

_WINDOWS_POLL_S = 0.2


def default_cache_dir() -> Path:
    """Return `$TINKER_ASYNC_CACHE`, or this platform's folder for caches of the user."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        base = Path(local) if local else Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        xdg = os.environ.get("XDG_CACHE_HOME")
        base = Path(xdg) if xdg else Path.home() / ".cache"
    return base / "tinker-async"


def cached_folder(folder: Path, build: Callable[[Path], None], *, progress: Progress) -> Path:
    """Return `folder`, made by `build` first if it is absent.

    `build` fills an empty folder beside it, which becomes `folder` when `build` returns;
    if it raises (`KeyboardInterrupt` too) nothing is left behind. Another process that
    wants the same folder waits here.

    Raises:
        ConfigError: The cache cannot be written.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.parent / f"{folder.name}.lock", progress):
            if not folder.is_dir():
                _build(folder, build)
    except OSError as error:
        raise ConfigError(
            f"cannot write the model cache {folder.parent}: {error}",
            hint=f"free the disk, or set {CACHE_VARIABLE} to a folder that can be written",
        ) from error
    return folder


def check_free_space(folder: Path, need_bytes: int) -> None:
    """Refuse to start what cannot end well.

    Raises:
        ConfigError: The disk of `folder` has less than `need_bytes` free.
    """
    have_bytes = shutil.disk_usage(folder).free
    if have_bytes < need_bytes:
        raise ConfigError(
            f"not enough disk space in {folder}: "
            f"need {need_bytes / 1e9:.1f} GB, have {have_bytes / 1e9:.1f} GB",
            hint=f"free the disk, or set {CACHE_VARIABLE} to a folder on another one",
        )


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    partial = folder.parent / f"{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    partial.mkdir()
    try:
        build(partial)
        _sync(partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Put the files on the disk before the rename can get there: a power cut must not reorder them."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())


@contextmanager
def _lock(path: Path, progress: Progress) -> Iterator[None]:
    """Hold the file's lock, which the system frees if this process dies."""
    with path.open("a+b") as file:
        if not _try_lock(file):
            progress("waiting for another process", 0, None)
            _wait_lock(file)
        yield


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _wait_lock(file: IO[bytes]) -> None:
        while not _try_lock(file):
            time.sleep(_WINDOWS_POLL_S)  # a blocking lock would give up after 10 s

else:
    import fcntl

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _wait_lock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX)
