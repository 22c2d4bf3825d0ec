"""How bytes reach a server: one small protocol, and its HTTP/1.1 and HTTP/2 forms.

A transport knows nothing of Tinker: no endpoints, no retries, no JSON. It sends one
request and returns one response, and translates every foreign exception into a
`TransportError` of `tinker_async.errors`.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Protocol

import msgspec

Buffer = bytes | bytearray | memoryview
Headers = tuple[tuple[bytes, bytes], ...]
"""Lower-case names and values, in order."""


class TrafficClass(enum.Enum):
    """What a request is for. Each class has limits of its own, so none starves another."""

    SESSION = "session"
    TRAINING = "training"
    SAMPLING = "sampling"
    POLLING = "polling"

    # Members are singletons; `Enum` would hash the name by Python code, many times a request.
    __hash__ = object.__hash__


class Receipt(Protocol):
    """Whoever wants to know whether a request went out, also when it is cancelled."""

    on_wire: bool
    """Set when the first byte is about to be written: from then on the peer may have it."""


class Request(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One HTTP request. `path` is absolute and includes the base path and the query."""

    method: str
    path: str
    headers: Headers
    body: Sequence[Buffer] = ()
    traffic: TrafficClass = TrafficClass.SESSION
    receipt: Receipt | None = None

    @property
    def body_bytes(self) -> int:
        """Total size of the body in bytes."""
        return sum(memoryview(part).nbytes for part in self.body)


class Response(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One HTTP response, body read to its end (content-encoding already undone)."""

    status: int
    headers: Headers
    body: Buffer

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of a header (lower-case name), or None."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


class Transport(Protocol):
    """Sends requests to one origin. Made by `open_transport`, valid inside its block."""

    async def request(self, request: Request, *, silence_s: float | None = None) -> Response:
        """Send a request and return the whole response.

        Args:
            request: What to send.
            silence_s: Raise `RequestTimeoutError` when the server sends nothing for
                this long after the request was written. None waits for ever: the
                caller's cancel scope is the deadline.

        Cancelling abandons this request only (HTTP/2: RST_STREAM; HTTP/1.1: that
        connection is closed); others go on.

        Raises:
            ConnectError: No connection; the request was certainly not sent.
            RequestTimeoutError: Silence for longer than `silence_s`.
            ProtocolError: The connection broke or the bytes were not HTTP. When the
                peer promised not to have processed the request (GOAWAY below our
                stream, REFUSED_STREAM) this is a `ConnectError` instead.
        """
        ...
