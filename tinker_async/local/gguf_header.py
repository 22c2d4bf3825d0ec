"""Walks the header of a GGUF file before anything is believed of it.

The rule: every count and every length is held against what is left of the file, so that a
header which declares more than there is costs nothing.
"""

from __future__ import annotations

import mmap
import struct
from typing import TYPE_CHECKING

from tinker_async.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MOST_DIMENSIONS = 4
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value, by its type's number; strings and arrays are none of them."""
_STRING, _ARRAY = 8, 9

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


def check_gguf(file: Path) -> None:
    """Check that a file has the whole header that its first bytes announce (little-endian).

    Raises:
        ConfigError: It has not.
    """
    with file.open("rb") as opened:
        if file.stat().st_size < len(_MAGIC):
            raise _broken("it is empty")
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _Walk(data).header()


class _Walk:
    """A place in the file that only goes forward, and never past the end."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0
        self._end = len(data)

    def header(self) -> None:
        """Walk over everything before the tensors' data."""
        if self._data[: len(_MAGIC)] != _MAGIC:
            raise _broken("it does not begin as one")
        self._at = len(_MAGIC)
        version = self._u32()
        if version not in _VERSIONS:
            raise _broken(f"its version is {version}")
        tensors, fields = self._u64(), self._u64()
        for _ in range(fields):
            self._string()
            self._value(self._u32())
        for _ in range(tensors):
            self._tensor()

    def _value(self, kind: int) -> None:
        if kind == _STRING:
            self._string()
        elif kind != _ARRAY:
            self._skip(_size(kind))
        else:
            kind, count = self._u32(), self._u64()
            if kind == _STRING:
                for _ in range(count):
                    self._string()
            else:
                self._skip(count * _size(kind))

    def _tensor(self) -> None:
        self._string()
        dimensions = self._u32()
        if dimensions > _MOST_DIMENSIONS:
            raise _broken(f"a tensor has {dimensions} dimensions")
        self._skip(dimensions * _U64.size)
        self._u32()  # its type
        if self._u64() > self._end:
            raise _broken("a tensor lies behind the end")

    def _string(self) -> None:
        self._skip(self._u64())

    def _u32(self) -> int:
        at = self._at
        self._skip(_U32.size)
        return int(_U32.unpack_from(self._data, at)[0])

    def _u64(self) -> int:
        at = self._at
        self._skip(_U64.size)
        return int(_U64.unpack_from(self._data, at)[0])

    def _skip(self, size: int) -> None:
        if size > self._end - self._at:
            raise _broken(f"{size} bytes are announced at {self._at}, {self._end - self._at} left")
        self._at += size


def _size(kind: int) -> int:
    size = _SIZES.get(kind)
    if size is None:
        raise _broken(f"values of type {kind} are unknown")
    return size


def _broken(reason: str) -> ConfigError:
    return ConfigError(f"this is not a whole GGUF file: {reason}")
