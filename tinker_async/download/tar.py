"""Reads a tar archive as it comes, in constant memory. Pure: what it finds goes to a sink.

Only plain files and folders with safe names reach the sink; everything else (links, devices,
sparse files, names and sizes beyond the limits, bytes after the end) is an error at its
header, before a byte of it is passed on.
"""

from __future__ import annotations

from typing import Final, NoReturn, Protocol

import msgspec

from tinker_async.download.names import Names, refused
from tinker_async.errors import DownloadError, UnsafeDownloadError

BLOCK_BYTES: Final = 512
MAX_TRAILING_BYTES: Final = 1 << 20
"""Zeros that may follow the archive's end: writers fill up their last record."""
_MAX_LONG_NAME_BYTES = 4096
_MAX_PAX_BYTES = 1 << 16
_ZERO_BLOCK = bytes(BLOCK_BYTES)

_FILES = frozenset(b"0\x007")
_FOLDER, _PAX, _PAX_GLOBAL, _LONG_NAME = b"5xgL"
_KINDS = {
    ord("1"): "a hard link",
    ord("2"): "a symbolic link",
    ord("3"): "a device",
    ord("4"): "a device",
    ord("6"): "a named pipe",
    ord("K"): "a link",
    ord("S"): "a sparse file",
}


class Limits(msgspec.Struct, frozen=True):
    """How much a checkpoint may hold: all of its files, and the bytes of them together."""

    max_files: int = 10_000
    max_bytes: int = 1 << 40


class Sink(Protocol):
    """Takes what an archive holds, in its order: after `begin`, as many bytes as were said."""

    def folder(self, parts: tuple[str, ...]) -> None:
        """Take a folder."""

    def begin(self, parts: tuple[str, ...], size_bytes: int) -> None:
        """Take the next file's name and size."""

    def data(self, data: memoryview) -> None:
        """Take bytes of that file; they are gone after the call."""

    def end(self) -> None:
        """Know that file to be whole."""


class TarReader:
    """An archive, fed block by block.

    Args:
        sink: Where files and folders go.
        limits: What is too much.
    """

    def __init__(self, sink: Sink, limits: Limits) -> None:
        self._sink = sink
        self._limits = limits
        self._names = Names(max_files=limits.max_files)
        self._bytes = 0
        self._header = bytearray()
        """The beginning of a header, until it is whole."""
        self._left = 0
        """Bytes of the present member's content that are still to come."""
        self._padding = 0
        """Bytes after it, up to the next block."""
        self._extension: bytearray | None = None
        """The content of an extended header, where that is the present member."""
        self._extension_type = 0
        self._path: str | None = None
        """The next member's name, said by extended headers."""
        self._size: int | None = None
        self._ended = False
        self._trailing = 0
        self._in_file = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the archive.

        Raises:
            UnsafeDownloadError: Something in it must not reach the disk.
            DownloadError: It is not a tar archive, or damaged.
        """
        view = memoryview(data)
        while view:
            if self._ended:
                return self._after_end(view)
            if self._left:
                view = self._content(view)
            elif self._padding:
                skipped = min(self._padding, len(view))
                self._padding -= skipped
                view = view[skipped:]
            else:
                view = self._headers(view)
        return None

    def close(self) -> None:
        """Know the archive to be over.

        Raises:
            DownloadError: Its end is missing.
        """
        if not self._ended:
            raise _damaged("it ends too early")

    def _after_end(self, view: memoryview) -> None:
        self._trailing += len(view)
        if view != memoryview(bytes(len(view))) or self._trailing > MAX_TRAILING_BYTES:
            # What one program takes for the end, another reads on from.
            raise UnsafeDownloadError("the archive goes on after its end", member="")

    def _content(self, view: memoryview) -> memoryview:
        part = view[: self._left]
        self._left -= len(part)
        if self._extension is not None:
            self._extension += part
        else:
            self._sink.data(part)
        if not self._left:
            self._finish_content()
        return view[len(part) :]

    def _finish_content(self) -> None:
        if self._in_file:
            self._in_file = False
            self._sink.end()
        elif self._extension is not None:
            content, self._extension = bytes(self._extension), None
            self._extend(content)

    def _headers(self, view: memoryview) -> memoryview:
        part = view[: BLOCK_BYTES - len(self._header)]
        self._header += part
        if len(self._header) == BLOCK_BYTES:
            block = bytes(self._header)
            self._header.clear()
            if block == _ZERO_BLOCK:
                if self._path is not None or self._size is not None:
                    raise _damaged("an extended header has no member")
                self._ended = True
            else:
                self._member(block)
        return view[len(part) :]

    def _member(self, block: bytes) -> None:
        _check_sum(block)
        size = _number(block[124:136])
        kind = block[156]
        if kind in (_PAX, _PAX_GLOBAL, _LONG_NAME):
            return self._begin_extension(kind, size)
        name = self._path if self._path is not None else _name(block)
        size = size if self._size is None else self._size
        self._path = self._size = None
        if kind == _FOLDER or (kind == 0 and name.endswith("/")):
            if size:
                raise refused(name, "it is a folder with content")
            parts = self._names.add_folder(name)
            return self._sink.folder(parts) if parts else None
        if kind not in _FILES:
            raise refused(name, f"it is {_KINDS.get(kind, 'of an unknown type')}")
        parts = self._names.add_file(name)
        self._bytes += size
        if self._bytes > self._limits.max_bytes:
            raise refused(name, f"the files have more than {self._limits.max_bytes} bytes together")
        self._sink.begin(parts, size)
        self._in_file = True
        self._begin_content(size)
        return None

    def _begin_content(self, size: int) -> None:
        self._left = size
        self._padding = -size % BLOCK_BYTES
        if not size:
            self._finish_content()

    def _begin_extension(self, kind: int, size: int) -> None:
        limit = _MAX_LONG_NAME_BYTES if kind == _LONG_NAME else _MAX_PAX_BYTES
        if size > limit:
            raise UnsafeDownloadError(
                f"the archive has an extended header of {size} bytes", member=""
            )
        if self._path is not None and kind == _LONG_NAME:
            raise _damaged("a name follows a name")
        self._extension, self._extension_type = bytearray(), kind
        self._begin_content(size)

    def _extend(self, content: bytes) -> None:
        if self._extension_type == _LONG_NAME:
            self._path = _text(content.rstrip(b"\0"))
            return
        for key, value in _pax_records(content):
            if key.startswith(b"GNU.sparse."):
                raise UnsafeDownloadError("the archive has a sparse file", member="")
            if key not in (b"path", b"size"):
                continue
            if self._extension_type == _PAX_GLOBAL:
                raise UnsafeDownloadError("the archive gives all its files one name", member="")
            if key == b"path":
                self._path = _text(value)
            else:
                self._size = _decimal(value)


def _damaged(reason: str) -> DownloadError:
    return DownloadError(f"the archive is damaged: {reason}")


def _check_sum(block: bytes) -> None:
    stored = _number(block[148:156])
    counted = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if stored != counted:
        raise _damaged("a header's checksum is wrong")


def _number(field: bytes) -> int:
    """Octal digits, or after a byte with the highest bit set the number itself."""
    if field[0] & 0x80:
        if field[0] & 0x40:
            raise _damaged("a number is negative")
        return int.from_bytes(bytes([field[0] & 0x3F]) + field[1:], "big")
    digits = field.strip(b" \0")
    if not digits:
        return 0
    if digits.strip(b"01234567"):
        raise _damaged("a number is malformed")
    return int(digits, 8)


def _decimal(value: bytes) -> int:
    if not value.isdigit() or len(value) > 20:
        raise _damaged("a number is malformed")
    return int(value)


def _name(block: bytes) -> str:
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0":  # the older format has other things there
        prefix = block[345:500].partition(b"\0")[0]
        name = prefix + b"/" + name if prefix else name
    return _text(name)


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise refused(name.decode("latin-1"), "it is not UTF-8") from None


def _pax_records(content: bytes) -> list[tuple[bytes, bytes]]:
    """Split records of the form `<length> <key>=<value>`, each with its line end in its length."""
    records: list[tuple[bytes, bytes]] = []
    content = content.rstrip(b"\0")
    while content:
        length, space, _ = content.partition(b" ")
        end = _decimal(length) if space else _malformed_record()
        record = content[len(length) + 1 : end]
        key, equals, value = record[:-1].partition(b"=")
        if not len(length) + 1 < end <= len(content) or not record.endswith(b"\n") or not equals:
            _malformed_record()
        records.append((key, value))
        content = content[end:]
    return records


def _malformed_record() -> NoReturn:
    raise _damaged("an extended header is malformed")
