"""The little of HPACK that the stub needs, faster than a general decoder.

Only the request's path, `accept` and `content-encoding` are of interest; other headers are
walked over. A block that leaves the dynamic table as it is means the same the next time, so
it is remembered: most requests of a connection cost one look-up.
"""

from __future__ import annotations

import functools
from collections import deque
from dataclasses import dataclass

from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

_STATIC: list[tuple[bytes, bytes]] = list(HeaderTable.STATIC_TABLE)
_DEFAULT_SIZE = 4096


@dataclass(frozen=True)
class Head:
    """What matters of a request's headers."""

    path: str
    wants_protobuf: bool
    is_zstd: bool


class HeadReader:
    """Decodes the header blocks of one connection, in order."""

    def __init__(self) -> None:
        self._table: deque[tuple[bytes, bytes]] = deque()
        self._size = 0
        self._most = _DEFAULT_SIZE
        self._known: dict[bytes, Head] = {}

    def read(self, block: bytes) -> Head:
        """Return the head in a block."""
        head = self._known.get(block)
        if head is not None:
            return head
        before = self._table[0] if self._table else None
        size = self._most
        head = self._decode(block)
        if before is not (self._table[0] if self._table else None) or size != self._most:
            self._known.clear()
        else:
            self._known[block] = head
        return head

    def _decode(self, block: bytes) -> Head:
        path, accept, encoding = b"/", b"", b""
        at = 0
        while at < len(block):
            byte = block[at]
            if byte & 0x80:
                index, at = _integer(block, at, 7)
                name, value = self._entry(index)
            elif byte & 0x20 and not byte & 0x40:
                self._most, at = _integer(block, at, 5)
                self._evict(0)
                continue
            else:
                name, value, at = self._literal(block, at, 6 if byte & 0x40 else 4)
                if byte & 0x40:
                    self._add(name, value)
            if name == b":path":
                path = value
            elif name == b"accept":
                accept = value
            elif name == b"content-encoding":
                encoding = value
        return Head(path.decode(), b"protobuf" in accept, encoding == b"zstd")

    def _literal(self, block: bytes, at: int, bits: int) -> tuple[bytes, bytes, int]:
        index, at = _integer(block, at, bits)
        if index:
            name = self._entry(index)[0]
        else:
            name, at = _string(block, at)
        value, at = _string(block, at)
        return name, value, at

    def _entry(self, index: int) -> tuple[bytes, bytes]:
        return _STATIC[index - 1] if index <= len(_STATIC) else self._table[index - 62]

    def _add(self, name: bytes, value: bytes) -> None:
        size = len(name) + len(value) + 32
        self._evict(size)
        if size <= self._most:
            self._table.appendleft((name, value))
            self._size += size

    def _evict(self, room: int) -> None:
        while self._table and self._size + room > self._most:
            name, value = self._table.pop()
            self._size -= len(name) + len(value) + 32


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    most = (1 << bits) - 1
    value = block[at] & most
    at += 1
    if value < most:
        return value, at
    shift = 0
    while True:
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, at


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    huffman = block[at] & 0x80
    length, at = _integer(block, at, 7)
    raw = block[at : at + length]
    return (_plain(raw) if huffman else raw), at + length


@functools.lru_cache(maxsize=4096)
def _plain(raw: bytes) -> bytes:
    return bytes(decode_huffman(raw))
