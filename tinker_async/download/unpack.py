"""Unpacks a downloaded archive, a step at a time, within limits. Blocks: it runs in a thread.

The archive is a tar, with gzip around it or without. The rule: nothing that is unpacked is
held, and what an archive claims or expands to is bounded before it is written.
"""

from __future__ import annotations

import os
import shutil
import zlib
from pathlib import Path
from typing import IO

from tinker_async.download.tar import MAX_TRAILING_BYTES, Limits, TarReader
from tinker_async.errors import DiskError, DownloadError, UnsafeDownloadError

_GZIP = b"\x1f\x8b"
_READ_BYTES = 1 << 18
_BLOCK_BYTES = 1 << 20
_STEP_BYTES = 16 << 20
_READ_COST_BYTES = 4096
"""What expanding nothing counts for: an archive may be made of a million empty members."""


class Folder:
    """Takes an archive's files into a folder, which is to be empty.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._file: IO[bytes] | None = None
        self.files: list[str] = []
        """Those that are whole."""
        self.name = ""
        """Of the present file, relative to the folder."""
        self.file_done_bytes = 0
        self.file_total_bytes = 0

    def folder(self, parts: tuple[str, ...]) -> None:
        """Make a folder."""
        self._root.joinpath(*parts).mkdir(parents=True, exist_ok=True)

    def begin(self, parts: tuple[str, ...], size_bytes: int) -> None:
        """Begin a file.

        Raises:
            DiskError: There is no room for it.
        """
        path = self._root.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(self._root).free
        if size_bytes > free_bytes:
            raise DiskError(
                f"the disk is too full: {'/'.join(parts)} has {size_bytes} bytes, "
                f"and {free_bytes} are free",
                path=str(path),
                reason="full",
            )
        # It must not exist: what is in the way here was not unpacked by us.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        self.name, self.file_done_bytes, self.file_total_bytes = "/".join(parts), 0, size_bytes

    def data(self, data: memoryview) -> None:
        """Write to the present file."""
        while data and self._file is not None:
            written = self._file.write(data)
            self.file_done_bytes += written
            data = data[written:]

    def end(self) -> None:
        """End the present file."""
        self.close()
        self.files.append(self.name)

    def close(self) -> None:
        """Close what is open."""
        if self._file is not None:
            self._file.close()
            self._file = None


class Unpacking:
    """An archive on its way into a folder.

    Args:
        archive: The file.
        into: An empty folder.
        limits: What is too much.
    """

    def __init__(self, archive: Path, into: Path, limits: Limits) -> None:
        self.folder = Folder(into)
        self._tar = TarReader(self.folder, limits)
        self._file = archive.open("rb", buffering=0)
        self._gzip: zlib._Decompress | None = None
        self._compressed: bool | None = None
        self._tail = b""
        """Compressed bytes that were read and not yet expanded."""
        self._padding = 0

    def step(self) -> bool:
        """Unpack the next part; return whether there is more.

        Raises:
            UnsafeDownloadError: Something in it must not reach the disk.
            DownloadError: It is damaged, or no archive at all.
        """
        done = 0
        while done < _STEP_BYTES:
            data = self._next()
            if data is None:
                self._tar.close()
                return False
            self._tar.feed(data)
            done += len(data) + _READ_COST_BYTES
        return True

    def _next(self) -> bytes | None:
        """Return the next bytes of the tar (there may be none in a step), None at its end."""
        if not self._tail:
            self._tail = self._file.read(_READ_BYTES) or b""
            if self._compressed is None:
                self._compressed = self._tail.startswith(_GZIP)
            if not self._tail:
                if self._gzip is not None:
                    raise DownloadError("the archive is damaged: it ends too early")
                return None
        if not self._compressed:
            data, self._tail = self._tail, b""
            return data
        return self._expand()

    def _expand(self) -> bytes:
        member = self._gzip or self._begin_member()
        if member is None:
            return b""
        try:
            data = member.decompress(self._tail, _BLOCK_BYTES)
        except zlib.error as error:
            raise DownloadError(f"the archive is damaged: {error}") from error
        self._gzip = None if member.eof else member
        self._tail = member.unused_data if member.eof else member.unconsumed_tail
        return data

    def _begin_member(self) -> zlib._Decompress | None:
        """Begin a member of the gzip file; or skip the zeros that some writers put at its end."""
        if len(self._tail) == 1:
            self._tail += self._file.read(1) or b""
        if self._tail.startswith(_GZIP) and not self._padding:
            self._gzip = zlib.decompressobj(wbits=31)
            return self._gzip
        self._padding += len(self._tail)
        if self._tail.strip(b"\0") or self._padding > MAX_TRAILING_BYTES:
            raise UnsafeDownloadError("the archive goes on after its end", member="")
        self._tail = b""
        return None

    def close(self) -> None:
        """Close what is open."""
        self.folder.close()
        self._file.close()
