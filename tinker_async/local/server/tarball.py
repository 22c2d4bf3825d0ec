"""A folder as a `.tar.gz` that is nowhere: any part of it is made when it is asked for.

Weights do not compress, so the gzip stream has stored blocks only. That makes its size known
beforehand and every byte a plain function of the files: a download can start anywhere.
"""

from __future__ import annotations

import os
import tarfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path

_BLOCK = 65_535
"""The most that a stored block of deflate holds."""
_FRAMED = _BLOCK + 5
_HEAD = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_TAIL_BYTES = 8
_RECORD = 512
_PASS_BYTES = 1 << 20


class Descriptor:
    """An open file of fixed size: it can be read to its end, also when it is deleted meanwhile."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self.size = os.fstat(self._fd).st_size

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes from an offset. Blocks.

        Raises:
            EOFError: The file is shorter than it was.
        """
        os.lseek(self._fd, offset, os.SEEK_SET)
        parts: list[bytes] = []
        while size > 0:
            part = os.read(self._fd, size)
            if not part:
                raise EOFError("the file was cut short")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class TarGz:
    """An archive of files: its `size` in bytes, and any part of it."""

    def __init__(self, root: Path, names: Sequence[str], *, mtime: int) -> None:
        """Open the files. Blocks.

        Args:
            root: Their folder.
            names: Their paths below it, which the archive has too.
            mtime: The time that all members have: equal folders give equal archives.
        """
        self._files: list[Descriptor] = []
        self._starts: list[int] = []
        self._pieces: list[tuple[int, Callable[[int, int], bytes]]] = []
        self._tar_bytes = 0
        try:
            for name in names:
                self._add(root / name, name, mtime)
        except BaseException:
            self.close()
            raise
        self._append(bytes(2 * _RECORD))
        blocks = -(-self._tar_bytes // _BLOCK)
        self._tail_at = len(_HEAD) + self._tar_bytes + 5 * blocks
        self.size = self._tail_at + _TAIL_BYTES

    def _add(self, path: Path, name: str, mtime: int) -> None:
        file = Descriptor(path)
        self._files.append(file)
        member = tarfile.TarInfo(name)
        member.size, member.mtime, member.mode = file.size, mtime, 0o644
        self._append(member.tobuf(tarfile.PAX_FORMAT))
        self._piece(file.size, file.read)
        self._append(bytes(-file.size % _RECORD))

    def _append(self, data: bytes) -> None:
        self._piece(len(data), lambda offset, size: data[offset : offset + size])

    def _piece(self, size: int, read: Callable[[int, int], bytes]) -> None:
        if size:
            self._starts.append(self._tar_bytes)
            self._pieces.append((size, read))
            self._tar_bytes += size

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes of the archive from an offset. Blocks.

        Raises:
            EOFError: A file is shorter than it was.
        """
        end = min(offset + size, self.size)
        parts: list[bytes] = []
        while offset < end:
            part = self._from(offset, end - offset)
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def _from(self, offset: int, size: int) -> bytes:
        """Return the bytes from an offset, to the end of its block at most."""
        if offset < len(_HEAD):
            return _HEAD[offset : offset + size]
        if offset >= self._tail_at:
            tail = self._checksum().to_bytes(4, "little") + _low_word(self._tar_bytes)
            start = offset - self._tail_at
            return tail[start : start + size]
        block, inside = divmod(offset - len(_HEAD), _FRAMED)
        length = min(_BLOCK, self._tar_bytes - block * _BLOCK)
        if inside < 5:
            final = (block + 1) * _BLOCK >= self._tar_bytes
            frame = bytes([final]) + length.to_bytes(2, "little")
            frame += (length ^ 0xFFFF).to_bytes(2, "little")
            return frame[inside : inside + size]
        inside -= 5
        return self._tar(block * _BLOCK + inside, min(size, length - inside))

    def _tar(self, offset: int, size: int) -> bytes:
        parts: list[bytes] = []
        while size > 0:
            number = bisect_right(self._starts, offset) - 1
            length, read = self._pieces[number]
            inside = offset - self._starts[number]
            part = read(inside, min(size, length - inside))
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return b"".join(parts)

    def _checksum(self) -> int:
        checksum = 0
        for offset in range(0, self._tar_bytes, _PASS_BYTES):
            part = self._tar(offset, min(_PASS_BYTES, self._tar_bytes - offset))
            checksum = zlib.crc32(part, checksum)
        return checksum

    def close(self) -> None:
        """Close the files."""
        while self._files:
            self._files.pop().close()


def _low_word(number: int) -> bytes:
    return (number & 0xFFFF_FFFF).to_bytes(4, "little")
