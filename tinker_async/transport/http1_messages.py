"""HTTP/1.1 messages: request heads written once, responses read strictly.

`RequestHeads` and `ResponseHeads` keep what one origin's heads have in common;
`ResponseReader` takes in the bytes of one response, cut anywhere. Rule: what two readers
could understand differently is refused, never guessed. No I/O.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tinker_async.transport import Headers

MAX_HEAD_BYTES = 64 << 10
"""Of a response's status line and headers, or of its trailers."""
MAX_FIELDS = 256
"""In a response's head, or in its trailers."""
_MOST_KNOWN = 256
_LONGEST_KNOWN_BYTES = 2048
_LONGEST_LINE_BYTES = 4096
"""Of a chunk's size and extension."""

_NOT_SENT = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection"))
_WITHOUT_LENGTH = frozenset(("GET", "HEAD", "DELETE"))
"""Methods of which an empty body needs no length."""

_TOKEN = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+"
_TEXT = rb"[\t\x20-\x7e\x80-\xff]*"
_NAME = re.compile(_TOKEN)
_VALUE = re.compile(_TEXT)
_TARGET = re.compile(rb"[\x21-\x7e]+")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: " + _TEXT + rb")?")
_FIELD = re.compile(rb"(" + _TOKEN + rb"):(" + _TEXT + rb")")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;" + _TEXT + rb")?")


class BadMessageError(Exception):
    """Bytes that are not HTTP/1.1, or that may be read in more than one way."""


class RequestHeads:
    """Writes the heads of the requests to one origin."""

    def __init__(self, authority: bytes) -> None:
        self._authority = authority
        self._known: dict[tuple[str, str, Headers], bytes] = {}

    def head(self, method: str, path: str, headers: Headers, size: int) -> bytes:
        """Return the head of a request with a body of `size` bytes.

        Host and length are ours to say; the caller's headers follow in their order.

        Raises:
            BadMessageError: A part of the request has no place in HTTP.
        """
        key = (method, path, headers)
        start = self._known.get(key)
        if start is None:
            start = self._start(method, path, headers)
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()  # headers that vary with each request gain nothing here
            self._known[key] = start
        if size or method not in _WITHOUT_LENGTH:
            return b"%bcontent-length: %d\r\n\r\n" % (start, size)
        return start + b"\r\n"

    def _start(self, method: str, path: str, headers: Headers) -> bytes:
        try:
            verb, target = method.encode("ascii"), path.encode("ascii")
        except UnicodeEncodeError as error:
            raise BadMessageError(f"{error.object!r} is not ASCII") from error
        if not _NAME.fullmatch(verb):
            raise BadMessageError(f"{method!r} is no method")
        if not _TARGET.fullmatch(target):
            raise BadMessageError(f"{path!r} is no path")
        lines = [b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (verb, target, self._authority)]
        for name, value in headers:
            if name.lower() in _NOT_SENT:
                continue
            # The value is not repeated: it may be a key.
            if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
                raise BadMessageError(f"the header {name!r} is malformed")
            lines.append(b"%b: %b\r\n" % (name, value))
        return b"".join(lines)


class ResponseHead(msgspec.Struct, frozen=True):
    """What the head of a response says."""

    status: int
    headers: Headers
    """Lower-case names."""
    length: int | None
    """Of the body; None: it goes on until the connection is closed, or is in chunks."""
    chunked: bool
    stays_open: bool
    """Whether the connection may be used again."""
    is_encoded: bool
    """Whether there is a content-encoding to undo."""


_NO_HEAD = ResponseHead(0, (), 0, chunked=False, stays_open=False, is_encoded=False)


class ResponseHeads:
    """Reads the heads of responses, those that repeat only once."""

    def __init__(self) -> None:
        self._known: dict[bytes, ResponseHead] = {}

    def read(self, block: bytes) -> ResponseHead:
        """Return what a head says; `block` ends before its empty line.

        Raises:
            BadMessageError: It is malformed, too large or ambiguous.
        """
        head = self._known.get(block)
        if head is None:
            head = _read_head(block)
            if len(block) <= _LONGEST_KNOWN_BYTES:
                if len(self._known) >= _MOST_KNOWN:
                    self._known.clear()
                self._known[block] = head
        return head


def _read_head(block: bytes) -> ResponseHead:
    lines = block.split(b"\r\n")
    matched = _STATUS_LINE.fullmatch(lines[0])
    if matched is None:
        raise BadMessageError(f"{lines[0][:80]!r} is no status line")
    is_newest, status = matched[1] == b"1", int(matched[2])
    headers = _fields(lines[1:])
    chunked, length = _framing(headers)
    if chunked and not is_newest:
        raise BadMessageError("an HTTP/1.0 response has a transfer-encoding")
    tokens = {
        token.strip().lower()
        for name, value in headers
        if name == b"connection"
        for token in value.split(b",")
    }
    bodiless = status < 200 or status in (204, 304)
    return ResponseHead(
        status,
        headers,
        0 if bodiless else length,
        chunked and not bodiless,
        is_newest and b"close" not in tokens and (bodiless or chunked or length is not None),
        any(name == b"content-encoding" for name, _ in headers),
    )


def _fields(lines: Iterable[bytes]) -> Headers:
    fields = []
    for line in lines:
        matched = _FIELD.fullmatch(line)
        if matched is None:  # a folded line among them
            raise BadMessageError(f"the header line {line[:80]!r} is malformed")
        fields.append((matched[1].lower(), matched[2].strip(b" \t")))
    if len(fields) > MAX_FIELDS:
        raise BadMessageError(f"there are more than {MAX_FIELDS} headers")
    return tuple(fields)


def _framing(headers: Headers) -> tuple[bool, int | None]:
    """Return whether the body is in chunks, and its length if that is given."""
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    lengths = [value for name, value in headers if name == b"content-length"]
    if len(codings) + len(lengths) > 1:
        raise BadMessageError("the length of the body is given twice")
    if codings:
        if codings[0].lower() != b"chunked":
            raise BadMessageError(f"the transfer-encoding is {codings[0][:80]!r}")
        return True, None
    if not lengths:
        return False, None
    if not _LENGTH.fullmatch(lengths[0]):
        raise BadMessageError(f"the content-length is {lengths[0][:80]!r}")
    return False, int(lengths[0])


class ResponseReader:
    """Takes in one response.

    Args:
        heads: What this origin's heads said so far.
        bodiless: Whether the request was a HEAD.
        most: Largest allowed body, in bytes.
    """

    __slots__ = (
        "_bodiless",
        "_chunks",
        "_heads",
        "_left",
        "_most",
        "_parts",
        "_rest",
        "head",
        "reusable",
    )

    def __init__(self, heads: ResponseHeads, *, bodiless: bool, most: int) -> None:
        self._heads = heads
        self._bodiless = bodiless
        self._most = most
        self._rest = b""
        self._parts: list[bytes] = []
        self._left: int | None = 0
        self._chunks: _Chunks | None = None
        self.head = _NO_HEAD
        """The final response's, once it is there; its status is 0 before."""
        self.reusable = False
        """Whether the connection may carry another exchange; valid when the response is whole."""

    @property
    def began(self) -> bool:
        """Whether anything of a response has come."""
        return bool(self.head is not _NO_HEAD or self._rest)

    @property
    def body(self) -> bytes:
        """The body so far."""
        if self._chunks is not None:
            return bytes(self._chunks.body)
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def feed(self, data: bytes) -> bool:
        """Take in bytes; return whether the response is whole.

        Raises:
            BadMessageError: The peer broke the rules of HTTP. Nothing more may be fed.
            OverflowError: The body is too large.
        """
        if self.head is _NO_HEAD:
            data = self._feed_heads(data)
            if self.head is _NO_HEAD:
                return False
        if self._chunks is not None:
            rest = self._chunks.feed(data)
            if rest is None:
                return False
            self.reusable = self.head.stays_open and not rest
            return True
        return self._feed_body(data)

    def finish(self) -> bool:
        """Take in the end of the connection; return whether the response is whole."""
        return self.head is not _NO_HEAD and self._left is None

    def _feed_heads(self, data: bytes) -> bytes:
        """Read heads up to the final one, and return what follows it."""
        searched = max(len(self._rest) - 3, 0)
        data = self._rest + data if self._rest else data
        while True:
            end = data.find(b"\r\n\r\n", searched)
            if end > MAX_HEAD_BYTES or (end < 0 and len(data) > MAX_HEAD_BYTES + 3):
                raise BadMessageError(f"the head is larger than {MAX_HEAD_BYTES} bytes")
            if end < 0:
                self._rest = data
                self._look_at_beginning(data)
                return b""
            head = self._heads.read(data[:end])
            data = data[end + 4 :]
            if head.status >= 200:
                self._begin(head)
                return data
            if head.status == 101:
                raise BadMessageError("the protocol is switched, which nobody asked for")
            searched = 0

    def _look_at_beginning(self, data: bytes) -> None:
        """Refuse early what can become no head, instead of waiting for its end."""
        if not data.startswith(b"HTTP/1."[: len(data)]):
            raise BadMessageError(f"{data[:80]!r} is no status line")
        if data.count(b"\n") != data.count(b"\r\n"):
            raise BadMessageError("a line ends without CR")

    def _begin(self, head: ResponseHead) -> None:
        self.head = head
        self._rest = b""
        if self._bodiless:
            self._left = 0
        elif head.chunked:
            self._chunks = _Chunks(self._most)
        else:
            self._left = head.length
            if head.length is not None and head.length > self._most:
                raise OverflowError

    def _feed_body(self, data: bytes) -> bool:
        size = len(data)
        left = self._left
        if left is None:
            self._most -= size
            if self._most < 0:
                raise OverflowError
            self._parts.append(data)
            return False
        if size < left:
            self._left = left - size
            if size:
                self._parts.append(data)
            return False
        self._left = 0
        self.reusable = self.head.stays_open and size == left
        self._parts.append(data if size == left else data[:left])
        return True


class _Chunks:
    """Takes in a body in chunks, and the trailers, which are dropped."""

    __slots__ = ("_fields", "_left", "_most", "_rest", "_trailers_bytes", "body")

    def __init__(self, most: int) -> None:
        self.body = bytearray()
        """In one piece: a peer may send a million chunks of a byte."""
        self._most = most
        self._left = 0
        """Of a chunk: its bytes, and the two that end it."""
        self._rest = b""
        self._fields: list[bytes] | None = None
        """Trailers, after the last chunk."""
        self._trailers_bytes = 0

    def feed(self, data: bytes) -> bytes | None:
        """Take in bytes; return None, or those behind the end of the body."""
        data = self._rest + data if self._rest else data
        at = 0
        while True:
            if self._left:
                after = self._take_chunk(data, at)
                if self._left:
                    self._rest = data[after:]
                    return None
            else:
                end = _line_end(data, at)
                if end is None:
                    self._rest = data[at:]
                    return None
                after = end + 2
                if self._fields is None:
                    self._on_size(data[at:end])
                elif end == at:
                    _fields(self._fields)
                    return data[after:]
                else:
                    self._on_trailer(data[at:end])
            at = after

    def _take_chunk(self, data: bytes, at: int) -> int:
        """Take what there is of a chunk and its end; return where that ends."""
        size = min(self._left - 2, len(data) - at)
        if size > 0:
            self.body += memoryview(data)[at : at + size]
            self._left -= size
            at += size
        if self._left == 2 and len(data) - at >= 2:
            if data[at : at + 2] != b"\r\n":
                raise BadMessageError("a chunk is longer than its size")
            self._left = 0
            at += 2
        return at

    def _on_size(self, line: bytes) -> None:
        matched = _CHUNK_LINE.fullmatch(line)
        if matched is None:
            raise BadMessageError(f"{line[:80]!r} is no size of a chunk")
        size = int(matched[1], 16)
        if not size:
            self._fields = []
            return
        if len(self.body) + size > self._most:
            raise OverflowError
        self._left = size + 2

    def _on_trailer(self, line: bytes) -> None:
        self._trailers_bytes += len(line)
        if self._fields is None or self._trailers_bytes > MAX_HEAD_BYTES:
            raise BadMessageError(f"the trailers are larger than {MAX_HEAD_BYTES} bytes")
        self._fields.append(line)


def _line_end(data: bytes, at: int) -> int | None:
    """Return where the line that begins at `at` ends, or None if that has not come."""
    end = data.find(b"\r\n", at)
    if (len(data) - 1 if end < 0 else end) - at > _LONGEST_LINE_BYTES:
        raise BadMessageError("a line in the body is too long")
    if end >= 0:
        return end
    if b"\n" in data[at:]:
        raise BadMessageError("a line ends without CR")
    return None
