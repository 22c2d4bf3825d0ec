"""Checkpoint folders on disk: complete or absent.

A checkpoint is written into a folder aside, flushed to the disk and then renamed to
its place; it exists from the moment its row is stored. Overwriting makes a second
folder, so that the old one stays whole until the row points to the new one.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

from tinker_async.local.server.refusal import Refusal

T = TypeVar("T")

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
        """Make the directories and sweep what an earlier server left aside. Blocks."""
        self.root = data_dir
        for name in ("aside", "snapshots"):
            shutil.rmtree(data_dir / name, ignore_errors=True)
            (data_dir / name).mkdir(parents=True)
        self._limiter: anyio.CapacityLimiter | None = None

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run file work in the thread for it."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(1)
        return await anyio.to_thread.run_sync(work, limiter=self._limiter)

    async def write_checkpoint(
        self, run_id: str, kind: str, name: str, fill: Callable[[Path], Awaitable[int]]
    ) -> tuple[str, int]:
        """Let `fill` write a new folder, then move it to its place.

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
        for file in aside.iterdir():
            _flush(file)
        _flush(aside)
        final, version = parent / name, 1
        while final.exists():
            version += 1
            final = parent / f"{name}~{version}"  # "~" is not in the alphabet of names
        aside.rename(final)
        _flush(parent)
        return final

    def snapshot_folder(self, snapshot_id: str) -> Path:
        """Return a new empty folder for an ephemeral snapshot."""
        folder = self.root / "snapshots" / _safe(snapshot_id)
        folder.mkdir()
        return folder

    async def remove(self, folder: str | Path) -> None:
        """Remove a folder, as far as it exists."""
        await self.in_thread(partial(shutil.rmtree, self.root / folder, ignore_errors=True))


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
