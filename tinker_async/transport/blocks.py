"""Header blocks, encoded once and decoded once wherever HPACK allows it.

`RequestBlocks` is an encoder of its own that never evicts from the peer's table, so that a
block stays right until an entry is added. `ResponseBlocks` remembers what `hpack` read, for
as long as its table is unchanged. One of each per connection; no I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from hpack import Decoder

    from tinker_async.transport import Headers

_TABLE_BYTES = 4096
"""HPACK's default. A peer that allows more gains nothing here; one that wants less gets less."""
_ENTRY_BYTES = 32
_FIRST_DYNAMIC = 62
_MOST_KNOWN = 256
_MOST_DIGITS = 18

_INDEXED, _ADDED, _RESIZED, _LITERAL = 0x80, 0x40, 0x20, 0x00
_STATIC_PAIRS = {
    (b":method", b"GET"): 2,
    (b":method", b"POST"): 3,
    (b":path", b"/"): 4,
    (b":scheme", b"http"): 6,
    (b":scheme", b"https"): 7,
}
_STATIC_NAMES = {
    b":authority": 1,
    b":method": 2,
    b":path": 4,
    b"accept": 19,
    b"authorization": 23,
    b"content-encoding": 26,
    b"content-type": 31,
    b"user-agent": 58,
}
_CONTENT_LENGTH = b"\x0f\x0d"
"""A literal that no table keeps, its name the static entry 28."""

_NOT_SENT = frozenset(
    (
        b"connection",
        b"content-length",  # ours to say
        b"host",
        b"keep-alive",
        b"proxy-connection",
        b"transfer-encoding",
        b"upgrade",
    )
)


class RequestBlocks:
    """Encodes the header blocks of one connection's requests, which go out in that order."""

    def __init__(self, scheme: str, authority: bytes) -> None:
        self._scheme = (b":scheme", scheme.encode("ascii"))
        self._authority = (b":authority", authority)
        self._known: dict[tuple[str, str, Headers], bytes] = {}
        self._added: dict[tuple[bytes, bytes], int] = {}
        """Pairs in the peer's table, numbered in the order in which they were added."""
        self._most = _TABLE_BYTES
        self._size = 0
        self._notice = b""

    def limit_table(self, size: int) -> None:
        """Follow the peer's SETTINGS_HEADER_TABLE_SIZE: start anew in a smaller table."""
        if size >= self._most:
            return
        self._most = size
        self._size = 0
        self._added.clear()
        self._known.clear()
        # Down to nothing first: the peer then forgets all entries, as we just did.
        self._notice = _integer(0, 5, _RESIZED) + _integer(size, 5, _RESIZED)

    def block(self, method: str, path: str, headers: Headers, size: int) -> bytes:
        """Return the block of a request with a body of `size` bytes.

        Pseudo-headers come first, then the caller's without those HTTP/2 forbids. The
        block must be sent, before any later one.
        """
        key = (method, path, headers)
        block = self._known.get(key)
        if block is None:
            block = self._encode(method, path, headers)
        if size:
            digits = b"%d" % size
            return b"%b%b%c%b" % (block, _CONTENT_LENGTH, len(digits), digits)
        return block

    def _encode(self, method: str, path: str, headers: Headers) -> bytes:
        pairs = (
            (b":method", method.encode("ascii")),
            self._scheme,
            self._authority,
            (b":path", path.encode("ascii")),
            *(pair for pair in headers if pair[0] not in _NOT_SENT),
        )
        before = len(self._added)
        block = self._notice + b"".join([self._field(pair) for pair in pairs])
        if len(self._added) > before:
            self._known.clear()  # every index has moved
        elif not self._notice:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()  # headers that vary with each request gain nothing here
            self._known[method, path, headers] = block
        self._notice = b""
        return block

    def _field(self, pair: tuple[bytes, bytes]) -> bytes:
        index = _STATIC_PAIRS.get(pair)
        if index is None and pair in self._added:
            index = _FIRST_DYNAMIC + len(self._added) - 1 - self._added[pair]
        if index is not None:
            return _integer(index, 7, _INDEXED)
        name, value = pair
        size = len(name) + len(value) + _ENTRY_BYTES
        if self._size + size > self._most:
            return _literal(name, value, 4, _LITERAL)
        self._size += size
        self._added[pair] = len(self._added)
        return _literal(name, value, 6, _ADDED)


def _literal(name: bytes, value: bytes, bits: int, mark: int) -> bytes:
    index = _STATIC_NAMES.get(name, 0)
    start = _integer(index, bits, mark)
    if not index:
        start += _integer(len(name), 7, 0) + name
    return start + _integer(len(value), 7, 0) + value


def _integer(number: int, bits: int, mark: int) -> bytes:
    """HPACK's integers: the low bits of a byte, then seven at a time."""
    most = (1 << bits) - 1
    if number < most:
        return bytes((mark | number,))
    out = bytearray((mark | most,))
    number -= most
    while number >= 0x80:
        out.append(0x80 | number & 0x7F)
        number >>= 7
    out.append(number)
    return bytes(out)


class Head(msgspec.Struct, frozen=True):
    """What a response's (or a trailer's) header block says."""

    status: int
    """0 where there is none."""
    headers: Headers
    """Without pseudo-headers."""
    is_encoded: bool
    """Whether there is a content-encoding to undo."""
    body_bytes: int | None = None
    """What content-length promises; None where it says nothing that can be read."""


class ResponseBlocks:
    """Decodes the header blocks that one connection receives, in that order."""

    def __init__(
        self, decoder: Decoder, decode: Callable[[bytes], Iterable[tuple[bytes, bytes]]]
    ) -> None:
        self._table = decoder.header_table
        self._decode = decode
        self._known: dict[bytes, Head] = {}

    def read(self, block: bytes) -> Head:
        """Return what a block says; whatever `decode` raises goes through."""
        head = self._known.get(block)
        if head is not None:
            return head
        entries = self._table.dynamic_entries
        before = (len(entries), entries[0] if entries else None)
        head = _head(self._decode(block))
        after = (len(entries), entries[0] if entries else None)
        resized = block[:1] and block[0] & 0xE0 == _RESIZED
        # An entry that was added is a new object, equal to an old one or not.
        if resized or before[0] != after[0] or before[1] is not after[1]:
            self._known.clear()
        else:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[block] = head
        return head


def _head(pairs: Iterable[tuple[bytes, bytes]]) -> Head:
    headers = tuple((name, value) for name, value in pairs)
    status = 0
    if headers and headers[0][0] == b":status":
        text = headers[0][1]
        status = int(text) if len(text) == 3 and text.isdigit() else 0
        headers = headers[1:]
    encoded, body_bytes = False, None
    for name, value in headers:
        if name == b"content-encoding":
            encoded = True
        elif name == b"content-length" and value.isdigit() and len(value) <= _MOST_DIGITS:
            body_bytes = int(value)
    return Head(status, headers, encoded, body_bytes)
