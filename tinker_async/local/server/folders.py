"""Checkpoint folders on disk: complete or absent.

A checkpoint is written into a folder aside, flushed to the disk and then renamed to
its place; it exists from the moment its row is stored. Overwriting makes a second
folder, so that the old one stays whole until the row points to the new one. A folder
that may have no row is marked: only such a one is removed at the next start.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
import structlog

from tinker_async.errors import ConfigError
from tinker_async.local.server.refusal import Refusal

T = TypeVar("T")

log = structlog.get_logger("tinker_async")

_UNSAVED = ".unsaved"
"""An empty file in a folder whose row is not stored yet, or about to go."""

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,254}")


def check_name(name: str) -> str:
    """Return a checkpoint name that is safe as a file name.

    Raises:
        Refusal: 400, it is not.
    """
    if not _NAME.fullmatch(name):
        raise Refusal(
            400,
            f"{name!r} is not a checkpoint name: use up to 255 letters, digits, '_', '-' and '.', "
            "not starting with '.'",
            field="path",
        )
    return name


class Folders:
    """The data directory. File work runs in one worker thread at a time."""

    def __init__(self, data_dir: Path) -> None:
        """Make the directories and sweep what an earlier server left aside. Blocks.

        Raises:
            ConfigError: The data directory cannot be written.
        """
        self.root = data_dir.resolve()
        try:
            for name in ("aside", "snapshots"):
                shutil.rmtree(self.root / name, ignore_errors=True)
                (self.root / name).mkdir(parents=True)
        except OSError as error:
            raise ConfigError(
                f"the data directory {data_dir} cannot be used: {error.strerror or error}",
                hint="give another with --data-dir",
            ) from error
        self._limiter: anyio.CapacityLimiter | None = None

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run file work in the thread for it."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(1)
        return await anyio.to_thread.run_sync(work, limiter=self._limiter)

    async def write_checkpoint(
        self, run_id: str, kind: str, name: str, fill: Callable[[Path], Awaitable[int]]
    ) -> tuple[str, int]:
        """Let `fill` write a new folder, then move it to its place; `keep` it when its row is stored.

        Returns:
            The folder, relative to the data directory, and its size in bytes.
        """
        aside = self.root / "aside" / secrets.token_hex(8)
        aside.mkdir()
        try:
            size_bytes = await fill(aside)
            place = partial(
                self._place, aside, self.root / "checkpoints" / _safe(run_id) / kind, name
            )
            final = await self.in_thread(place)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        return final.relative_to(self.root).as_posix(), size_bytes

    @staticmethod
    def _place(aside: Path, parent: Path, name: str) -> Path:
        parent.mkdir(parents=True, exist_ok=True)
        (aside / _UNSAVED).touch()
        for file in aside.iterdir():
            _flush(file)
        _flush(aside)
        final, version = parent / name, 1
        while final.exists():
            version += 1
            # "~" is not in the alphabet of names, and systems stop at 255 characters.
            final = parent / f"{name[:200]}~{version}"
        aside.rename(final)
        for folder in (parent, *parent.parents[:2]):  # they may be new as well
            _flush(folder)
        return final

    def snapshot_folder(self, snapshot_id: str) -> Path:
        """Return a new empty folder for an ephemeral snapshot."""
        folder = self.root / "snapshots" / _safe(snapshot_id)
        folder.mkdir()
        return folder

    def inside(self, folder: str) -> Path:
        """Return where a checkpoint's folder is.

        Raises:
            Refusal: 410, it is gone, or not a plain folder in the data directory (such as one
                behind a symbolic link).
        """
        path = self.root / folder
        if path != path.resolve() or not path.is_relative_to(self.root) or not path.is_dir():
            raise Refusal(410, "the checkpoint's files are gone", field="path")
        return path

    def sweep(self, known: Collection[str]) -> None:
        """Remove what saves and deletions left that were cut short. Blocks.

        Args:
            known: The folders that stored checkpoints have.
        """
        for mark in (self.root / "checkpoints").glob(f"*/*/*/{_UNSAVED}"):
            if mark.parent.relative_to(self.root).as_posix() in known:
                mark.unlink(missing_ok=True)
            else:
                log.warning("unfinished_checkpoint_removed", folder=mark.parent.name)
                self._remove(mark.parent)

    async def keep(self, folder: str) -> None:
        """Note that the row of a new folder is stored."""
        await self._mark(folder, Path.unlink)

    async def doom(self, folder: str) -> None:
        """Note that the row of a folder is about to go, and the folder after it."""
        await self._mark(folder, Path.touch)

    async def _mark(self, folder: str, how: Callable[[Path], None]) -> None:
        def work() -> None:
            # On a full disk there is no mark: then at worst a folder is left that is not listed.
            with contextlib.suppress(OSError, Refusal):
                how(self.inside(folder) / _UNSAVED)

        await self.in_thread(work)

    async def remove(self, folder: str | Path) -> None:
        """Remove a folder, as far as it exists. What is not in the data directory stays."""
        await self.in_thread(partial(self._remove, self.root / folder))

    def _remove(self, folder: Path) -> None:
        place = folder.resolve()
        if place == self.root or not place.is_relative_to(self.root):
            return
        aside = self.root / "aside" / secrets.token_hex(8)
        # At once for whoever looks, and whatever of it a kill leaves is swept at the next start.
        with contextlib.suppress(OSError):
            folder = folder.rename(aside)
        shutil.rmtree(folder, ignore_errors=True)


def files_in(folder: Path) -> list[str]:
    """Return the files of a checkpoint, as sorted paths below its folder. Blocks."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != _UNSAVED
    )


def link_files(source: Path, target: Path) -> None:
    """Give the files of a checkpoint a second place; they are never changed. Blocks."""
    for name in files_in(source):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / name, target / name)
        except OSError:  # not every file system can
            shutil.copy2(source / name, target / name)


def _safe(identifier: str) -> str:
    return identifier.replace(":", ".")  # a colon is not allowed in names on every system


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a directory to flush it
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
