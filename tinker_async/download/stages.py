"""The stages of a download after its URLs are known: receive, unpack, check.

The rule: a stage that is cancelled or fails leaves what the stages before it have made.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import msgspec

from tinker_async.download.content import fault_of
from tinker_async.download.disk import Hashing
from tinker_async.download.names import Names
from tinker_async.download.records import Route
from tinker_async.download.resume import Version
from tinker_async.download.sources import ARCHIVE
from tinker_async.download.tar import Limits
from tinker_async.download.transfer import Transfer, Work
from tinker_async.download.unpack import Unpacking
from tinker_async.errors import DiskError, DownloadError, TinkerError
from tinker_async.lone_errors import lone_errors

MAX_FILES: Final = 10_000
_ANEW = "call again: that file is asked for anew"


class File(msgspec.Struct, frozen=True):
    """A file of the checkpoint that is on the disk."""

    name: str
    """Relative to the checkpoint."""
    path: Path
    source_name: str = ""
    """What the source calls it; empty for what was unpacked."""


async def receive(work: Work, route: Route, *, parallel: int) -> list[File]:
    """Bring all files to the disk, several at a time.

    Raises:
        TinkerError: The first failure; the other files stop where they are.
    """
    if route == "archive":
        files = [File(ARCHIVE, work.aside.archive, ARCHIVE)]
    else:
        names = Names(max_files=MAX_FILES)
        files = [_place(work, name, names.add_file(name)) for name in work.source.files]
        await work.disk.run(partial(work.aside.prune, {file.name for file in files}))
    if not files:
        raise DownloadError("the checkpoint has no files", hint="was it saved completely?")
    versions = work.notes.versions
    work.tally.begin(
        "downloading",
        {file.source_name: versions.get(file.source_name, Version()).total_bytes for file in files},
    )
    await _all(work, files, parallel=parallel)
    return files


def _place(work: Work, name: str, parts: tuple[str, ...]) -> File:
    return File("/".join(parts), work.aside.files.joinpath(*parts), name)


async def _all(work: Work, files: list[File], *, parallel: int) -> None:
    left = iter(files)
    failures: list[TinkerError] = []

    async def one_after_the_other() -> None:
        try:
            for file in left:
                await Transfer(work, file.source_name, file.path).run()
        except TinkerError as error:
            failures.append(error)  # the first one is told: it may be why others failed
            tasks.cancel_scope.cancel()

    with lone_errors():
        async with anyio.create_task_group() as tasks:
            for _ in range(min(parallel, len(files))):
                tasks.start_soon(one_after_the_other)
    if failures:
        try:
            raise failures[0]
        finally:
            failures.clear()


async def unpack(work: Work) -> list[File]:
    """Check the archive against what the server said of it, if it did, and unpack it.

    Raises:
        UnsafeDownloadError: Something in it must not reach the disk.
        DownloadError: It is damaged; it was removed.
        DiskError: There is no room for its files; it stays.
    """
    archive = File(ARCHIVE, work.aside.archive, ARCHIVE)
    if work.notes.versions.get(ARCHIVE, Version()).sha256 is not None:
        await check(work, [archive])
    root = work.aside.files
    await work.disk.run(partial(_empty, root))
    limits = Limits(max_files=MAX_FILES, max_bytes=work.max_bytes)
    unpacking = await work.disk.run(partial(Unpacking, archive.path, root, limits))
    folder = unpacking.folder
    work.tally.begin("unpacking", None)
    try:
        more = True
        while more:
            more = await work.disk.run(unpacking.step)
            work.tally.note(folder.name, folder.file_done_bytes, folder.file_total_bytes)
    except DownloadError as error:
        await work.disk.run(partial(_empty, root))
        if not isinstance(error, DiskError):
            await _forget(work, archive)
        raise
    finally:
        unpacking.close()
    if not folder.files:
        raise DownloadError("the archive has no files", hint="was the checkpoint saved completely?")
    return [File(name, root / name) for name in folder.files]


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


async def check(work: Work, files: list[File]) -> dict[str, str]:
    """Read all files as they are on the disk now.

    Returns:
        The SHA-256 by file, in hex.

    Raises:
        DownloadError: One is not what the server said, or not what its own header says; it was
            removed.
    """
    sizes: dict[str, int | None] = {file.name: file.path.stat().st_size for file in files}
    work.tally.begin("checking", sizes)
    return {file.name: await _checked(work, file, sizes[file.name]) for file in files}


async def _checked(work: Work, file: File, size_bytes: int | None) -> str:
    hashing = await work.disk.run(partial(Hashing, file.path))
    try:
        more = True
        while more:
            more = await work.disk.run(hashing.step)
            work.tally.note(file.name, hashing.done_bytes, size_bytes)
    finally:
        hashing.close()
    found = hashing.result()
    expected = work.notes.versions.get(file.source_name, Version()).sha256
    fault = await work.disk.run(partial(fault_of, file.path))
    if expected not in (None, found):
        fault = f"its SHA-256 should be {expected} and is {found}"
    if fault is not None:
        await _forget(work, file)
        raise DownloadError(f"{file.name} is damaged: {fault}", hint=_ANEW)
    return found


async def _forget(work: Work, file: File) -> None:
    """Remove a file that is no good, so that the next call asks for all of it."""
    await work.disk.run(file.path.unlink)
    await work.note_version(file.source_name, None)
