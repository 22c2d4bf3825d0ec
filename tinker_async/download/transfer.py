"""Brings one file to the disk, through as many broken connections as it takes.

The rule: the policy counts failures without progress; an attempt that has brought the file
further begins the count anew. Which version of a file bytes belong to is written down before
they are appended.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import anyio
import msgspec

from tinker_async.api.progress import Progress
from tinker_async.api.retry import RetryPolicy
from tinker_async.download.disk import BLOCK_BYTES, Aside, Disk, Notes, PartFile
from tinker_async.download.fetch import Answer, Fetcher, refusal_of
from tinker_async.download.records import Tally
from tinker_async.download.resume import (
    Append,
    Ask,
    FromStart,
    Version,
    Void,
    Whole,
    meaning_of,
)
from tinker_async.download.sources import Source
from tinker_async.errors import (
    APIStatusError,
    ProtocolError,
    TinkerError,
    TransportError,
    UnsafeDownloadError,
)
from tinker_async.logs import log

_PERHAPS_EXPIRED = {400, 401, 403, 404, 410}
"""What storage services answer to a URL that has run out, as well as to one that is wrong."""


class Work(msgspec.Struct, eq=False):
    """What the transfers of one checkpoint have in common."""

    fetcher: Fetcher
    source: Source
    disk: Disk
    aside: Aside
    notes: Notes
    policy: RetryPolicy
    progress: Progress
    tally: Tally
    max_bytes: int
    resumed_from_bytes: int = 0
    writing_notes: anyio.Lock = msgspec.field(default_factory=anyio.Lock)

    async def note_version(self, file: str, version: Version | None) -> None:
        """Write down which version of a file is on disk."""
        if self.notes.versions.get(file) == version:
            return
        if version is None:
            self.notes.versions.pop(file, None)
        else:
            self.notes.versions[file] = version
        async with self.writing_notes:
            await self.disk.run(partial(self.aside.write_notes, self.notes))


class Transfer:
    """One file on its way.

    Args:
        work: The checkpoint's.
        file: Its name in the source.
        path: Where it is to be.
    """

    def __init__(self, work: Work, file: str, path: Path) -> None:
        self._work = work
        self._file = file
        self._path = path
        self._counted = False
        """Whether it is known what an earlier download has left."""
        self._received_bytes = 0
        """In the present attempt."""

    async def run(self) -> None:
        """Bring all of the file to the disk. Cancelling leaves what there is for a later call.

        Raises:
            TransportError: The host could not be reached any more.
            APIStatusError: The host, or the server, refused.
            DiskError: The file cannot be written.
            UnsafeDownloadError: It has more bytes than is allowed.
        """
        self._part = await self._work.disk.run(partial(PartFile, self._path))
        try:
            await self._until_whole()
        finally:
            self._part.close()

    async def _until_whole(self) -> None:
        best_bytes, failures, failing_s = self._part.size_bytes, 0, 0.0
        refused: str | None = None
        while True:
            url = await self._work.source.url(self._file, refused=refused)
            began, self._received_bytes = anyio.current_time(), 0
            try:
                if await self._attempt(url):
                    return
                error: TinkerError = ProtocolError(f"{self._file} came only in part")
            except (TransportError, APIStatusError) as failure:
                error = failure
            if self._part.size_bytes > best_bytes:
                best_bytes, failures, failing_s, refused = self._part.size_bytes, 0, 0.0, None
            if isinstance(error, APIStatusError) and error.status in _PERHAPS_EXPIRED:
                if refused is not None:
                    raise error  # a fresh URL, and that was refused as well
                refused = url
                continue
            failures += 1
            if not self._received_bytes:
                failing_s += anyio.current_time() - began
            failing_s += await self._pause(error, failures, failing_s)

    async def _pause(self, error: TinkerError, failures: int, failing_s: float) -> float:
        """Wait for the next attempt, or give up; return the seconds."""
        delay_s = self._work.policy.next_delay(error, attempt=failures, failing_for_s=failing_s)
        if delay_s is None:
            if self._part.size_bytes:
                error.hint = (
                    f"{self._part.size_bytes} bytes of {self._file} are kept: "
                    "the same call goes on from there"
                )
            raise error
        log.info(
            "download_repeated",
            file=self._file,
            attempt=failures,
            delay_s=round(delay_s, 3),
            error=type(error).__name__,
            have_bytes=self._part.size_bytes,
        )
        await anyio.sleep(delay_s)
        return delay_s

    async def _attempt(self, url: str) -> bool:
        """Ask once for what is missing; return whether the file is whole then."""
        self._work.progress.attempts += 1
        ask = Ask(self._part.size_bytes, self._version or Version())
        async with self._work.fetcher.get(url, ask.headers()) as answer:
            meaning = meaning_of(ask, answer.status, answer.headers)
            if meaning is None:
                raise await refusal_of(answer, self._file)
            if isinstance(meaning, Void):
                raise await self._void(meaning.reason)
            self._count(0 if isinstance(meaning, FromStart) else ask.have_bytes)
            if isinstance(meaning, Whole):
                return True
            self._check_size(meaning.version)
            known = await self._prepare(meaning, ask.offset)
            await self._receive(answer, known)
        return await self._is_whole()

    @property
    def _version(self) -> Version | None:
        return self._work.notes.versions.get(self._file)

    def _count(self, resumed_bytes: int) -> None:
        if not self._counted:
            self._counted = True
            self._work.resumed_from_bytes += resumed_bytes

    async def _prepare(self, meaning: Append | FromStart, offset: int) -> bytes:
        """Make the disk ready for an answer's content; return what it has to begin with."""
        if isinstance(meaning, FromStart):
            await self._work.disk.run(self._part.truncate)
        await self._work.note_version(self._file, meaning.version)
        left_bytes = (meaning.version.total_bytes or 0) - self._part.size_bytes
        await self._work.disk.run(partial(self._work.aside.check_room, self._file, left_bytes))
        self._tell()
        if isinstance(meaning, FromStart):
            return b""
        return await self._work.disk.run(partial(self._part.tail, offset))

    async def _void(self, reason: str) -> ProtocolError:
        """Remove what is on disk; return the error of the attempt."""
        await self._work.disk.run(self._part.truncate)
        await self._work.note_version(self._file, None)
        self._tell()
        return ProtocolError(f"{self._file} begins anew: {reason}")

    async def _receive(self, answer: Answer, known: bytes) -> None:
        """Write an answer's content, but for its beginning, which is `known`."""
        blocks: list[bytes] = []
        held_bytes = 0
        try:
            while block := await answer.next_block():
                if known:
                    same = min(len(known), len(block))
                    if block[:same] != known[:same]:
                        raise await self._void("its bytes have changed on the server")
                    known, block = known[same:], block[same:]
                blocks.append(block)
                held_bytes += len(block)
                self._received_bytes += len(block)
                if held_bytes >= BLOCK_BYTES:
                    await self._write(blocks)
                    blocks, held_bytes = [], 0
        except TransportError:
            await self._write(blocks)  # so that the next attempt goes on from here
            raise
        await self._write(blocks)

    async def _write(self, blocks: list[bytes]) -> None:
        self._check_size(Version(total_bytes=self._part.size_bytes + sum(map(len, blocks))))
        await self._work.disk.run(partial(self._part.append, blocks))
        self._tell()

    def _check_size(self, version: Version) -> None:
        others = self._work.tally.done_bytes - self._work.tally.done_bytes_of(self._file)
        if others + (version.total_bytes or 0) > self._work.max_bytes:
            raise UnsafeDownloadError(
                f"the checkpoint has more than {self._work.max_bytes} bytes",
                member=ascii(self._file),
                hint="if that is right, pass a greater max_bytes",
            )

    async def _is_whole(self) -> bool:
        total = (self._version or Version()).total_bytes
        if total is not None and self._part.size_bytes > total:
            raise await self._void("it is longer than it was said to be")
        return total in (None, self._part.size_bytes)

    def _tell(self) -> None:
        total = (self._version or Version()).total_bytes
        self._work.tally.note(self._file, self._part.size_bytes, total)
