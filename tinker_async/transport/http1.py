"""HTTP/1.1: `httpcore` connections under a line of our own.

`httpcore` parses and writes; which connection carries which request, and who waits, is
decided here in O(1), since its own pool is quadratic in its connections. Rule: a connection
is in `_idle` only when its last exchange ended cleanly; any other end closes it.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import httpcore
from anyio.abc import SocketAttribute

from tinker_async.transport import Request, Response, TrafficClass
from tinker_async.transport.content import MAX_BODY_BYTES, decoded, too_large
from tinker_async.transport.failures import (
    STREAM_FAILURES,
    broken_error,
    closed_error,
    rules_error,
    silence_error,
    unsent_error,
)
from tinker_async.transport.lanes import Line, Shares, Ticket, TransportStatistics
from tinker_async.transport.uploads import Upload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import ByteStream

    from tinker_async.transport.origin import Origin

_IDLE_S = 60.0
"""Connections unused for so long are closed when another request passes by."""
_WRITE_BYTES = 256 << 10
_NOT_SENT = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection"))
_CLOSE_S = 1.0
_FAILURES: tuple[type[Exception], ...] = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
)


class _Wire(httpcore.AsyncNetworkStream):
    """An anyio stream as `httpcore` wants it, with its exceptions and timeouts."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.unwanted = False
        """Whether to end the response that is being read."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        if self.unwanted:
            raise httpcore.ReadError
        try:
            if timeout is None:
                return await self.stream.receive(max_bytes)
            with anyio.move_on_after(timeout):
                return await self.stream.receive(max_bytes)
        except anyio.EndOfStream:
            return b""
        except STREAM_FAILURES as error:
            raise httpcore.ReadError(str(error)) from error
        raise httpcore.ReadTimeout

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        try:
            with anyio.move_on_after(timeout) as scope:
                await self.stream.send(buffer)
        except STREAM_FAILURES as error:
            raise httpcore.WriteError(str(error)) from error
        if scope.cancelled_caught:
            raise httpcore.WriteTimeout

    async def aclose(self) -> None:
        with anyio.move_on_after(_CLOSE_S, shield=True):
            with suppress(*STREAM_FAILURES):  # broken already: closed is what was wanted
                await self.stream.aclose()
            return
        await anyio.aclose_forcefully(self.stream)

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return _is_readable(self.stream)
        return None


def _is_readable(stream: ByteStream) -> bool:
    """Whether bytes or an end wait on the socket: on an idle connection, always a bad sign."""
    descriptor = stream.extra(SocketAttribute.raw_socket).fileno()  # noqa: S610 - not Django's
    if descriptor < 0:
        return True
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select([descriptor], [], [], 0)[0])
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


class _Body(AsyncIterator[bytes]):
    """A request body as `httpcore` reads it: small parts joined, large ones cut, none kept.

    Not an async generator: one that a cancelled request leaves half-read would be closed
    only by the garbage collector.
    """

    def __init__(self, request: Request) -> None:
        self._upload = Upload(request.body)

    def __aiter__(self) -> _Body:
        return self

    async def __anext__(self) -> bytes:
        if not self._upload.left:
            raise StopAsyncIteration
        pieces = self._upload.take(min(self._upload.left, _WRITE_BYTES))
        return b"".join(pieces)


async def _read_body(response: httpcore.Response, wire: _Wire) -> bytes:
    chunks: list[bytes] = []
    size = 0
    stream: Any = response.stream
    async for chunk in stream:
        size += len(chunk)
        if size <= MAX_BODY_BYTES:
            chunks.append(chunk)
        else:
            # Leaving the loop here would leave httpcore's generators half-read.
            wire.unwanted = True
            chunks.clear()
    await response.aclose()
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


class _Kept:
    """A connection and the moment of its last use."""

    __slots__ = ("http", "used_at", "wire")

    def __init__(self, http: httpcore.AsyncHTTP11Connection, wire: _Wire) -> None:
        self.http = http
        self.wire = wire
        self.used_at = anyio.current_time()


class Http1Line:
    """A `Transport` over HTTP/1.1: one request at a time on each of a few connections."""

    def __init__(
        self,
        origin: Origin,
        dial: Callable[[], Awaitable[ByteStream]],
        *,
        max_connections: int,
    ) -> None:
        self._origin = origin
        self._where = origin.address
        self._dial = dial
        self._core_origin = httpcore.Origin(
            origin.scheme.encode("ascii"), origin.host.encode("ascii"), origin.port
        )
        self._host = (b"host", origin.authority)
        self._closing = False
        self._shares = Shares(max_connections)
        self._line: Line[None] = Line()
        self._idle: deque[_Kept] = deque()
        """Least recently used first."""
        self._busy: set[_Kept] = set()
        self._dials: set[anyio.CancelScope] = set()
        self._opened = 0
        self._requests = 0

    def __repr__(self) -> str:
        return (
            f"<Http1Line {self._where} http/1.1: {len(self._busy)} busy, {len(self._idle)} idle,"
            f" {len(self._dials)} connecting, at most {self._shares.capacity};"
            f" {len(self._line)} waiting>"
        )

    def statistics(self) -> TransportStatistics:
        """Return what is going on now, and totals."""
        return TransportStatistics(
            protocol="http/1.1",
            connections=len(self._busy) + len(self._idle),
            connecting=len(self._dials),
            in_flight=dict(self._shares.taken_by),
            waiting={traffic: self._line.waiting(traffic) for traffic in TrafficClass},
            connections_opened=self._opened,
            requests_started=self._requests,
        )

    async def request(self, request: Request, *, silence_s: float | None = None) -> Response:
        """Send a request and return the whole response; see `Transport.request`."""
        traffic = request.traffic
        if self._closing:
            raise closed_error(self._where)
        if not self._line.waiting(traffic) and self._shares.admits(traffic):
            self._shares.take(traffic)
        else:
            await self._take_later(traffic)
        try:
            self._requests += 1
            kept = await self._connection()
            try:
                return await self._exchange(kept, request, silence_s)
            finally:
                self._busy.discard(kept)
                await self._put_back(kept)
        finally:
            self._shares.give_back(traffic)
            self._serve()

    # -- places ------------------------------------------------------------------------

    async def _take_later(self, traffic: TrafficClass) -> None:
        if len(self._line) >= self._line.longest:
            raise unsent_error(self._where, "too many requests wait to be sent")
        ticket = self._line.join(traffic)
        try:
            await ticket.called.wait()
        except BaseException:
            self._give_up(ticket)
            raise
        if ticket.error is not None:
            raise ticket.error

    def _give_up(self, ticket: Ticket[None]) -> None:
        if not self._line.leave(ticket) and ticket.error is None:
            self._shares.give_back(ticket.traffic)
            self._serve()

    def _serve(self) -> None:
        while self._line:
            ticket = self._line.first(self._shares.admits)
            if ticket is None:
                return
            self._shares.take(ticket.traffic)
            self._line.call(ticket, None)

    # -- connections -------------------------------------------------------------------

    async def _connection(self) -> _Kept:
        """Return a connection, busy from now on: the one used last, or a new one."""
        while self._idle:
            kept = self._idle.pop()
            if not kept.http.is_closed() and not kept.http.has_expired():
                self._busy.add(kept)
                return kept
            await kept.wire.aclose()
        kept = self._keep(await self._new_stream())
        self._busy.add(kept)
        return kept

    async def _new_stream(self) -> ByteStream:
        with anyio.CancelScope() as scope:
            self._dials.add(scope)
            try:
                return await self._dial()
            finally:
                self._dials.discard(scope)
        raise closed_error(self._where)

    def _keep(self, stream: ByteStream) -> _Kept:
        self._opened += 1
        wire = _Wire(stream)
        return _Kept(httpcore.AsyncHTTP11Connection(self._core_origin, wire), wire)

    def adopt(self, stream: ByteStream) -> None:
        """Use a stream that is connected already."""
        self._idle.append(self._keep(stream))

    async def _put_back(self, kept: _Kept) -> None:
        """Keep a connection for the next request if it is clean, and drop one long unused."""
        now = anyio.current_time()
        if kept.http.is_available() and not kept.wire.unwanted and not self._closing:
            kept.used_at = now
            self._idle.append(kept)
        else:
            await kept.wire.aclose()
        if self._idle and now - self._idle[0].used_at > _IDLE_S:
            await self._idle.popleft().wire.aclose()

    # -- one exchange ------------------------------------------------------------------

    async def _exchange(self, kept: _Kept, request: Request, silence_s: float | None) -> Response:
        try:
            response = await kept.http.handle_async_request(self._core_request(request, silence_s))
            body = await _read_body(response, kept.wire)
        except _FAILURES as error:
            if kept.wire.unwanted:
                raise too_large(request.path, MAX_BODY_BYTES) from error
            if self._closing:
                raise closed_error(self._where) from error
            if isinstance(error, (httpcore.ReadTimeout, httpcore.WriteTimeout)):
                raise silence_error(self._where, silence_s) from error
            if isinstance(error, httpcore.ProtocolError):
                ours = isinstance(error, httpcore.LocalProtocolError)
                raise rules_error(error, self._where, ours=ours) from error
            raise broken_error(error, self._where) from error
        if kept.wire.unwanted:
            raise too_large(request.path, MAX_BODY_BYTES)
        headers = tuple((name.lower(), value) for name, value in response.headers)
        return Response(response.status, headers, decoded(headers, body, endpoint=request.path))

    def _core_request(self, request: Request, silence_s: float | None) -> httpcore.Request:
        size = request.body_bytes
        headers = [self._host, *(pair for pair in request.headers if pair[0] not in _NOT_SENT)]
        if size or request.method not in ("GET", "HEAD", "DELETE"):
            headers.append((b"content-length", b"%d" % size))
        origin = self._core_origin
        return httpcore.Request(
            request.method,
            httpcore.URL(
                scheme=origin.scheme,
                host=origin.host,
                port=origin.port,
                target=request.path.encode("ascii"),
            ),
            headers=headers,
            content=_Body(request) if size else b"",
            extensions={"timeout": {"read": silence_s, "write": silence_s}},
        )

    async def close(self) -> None:
        """Refuse new requests, fail those in line and in flight, close every socket."""
        self._closing = True
        self._line.dismiss(lambda: closed_error(self._where))
        for scope in self._dials:
            scope.cancel()
        with anyio.CancelScope(shield=True):
            for kept in (*self._busy, *self._idle):
                await anyio.aclose_forcefully(kept.wire.stream)
        self._idle.clear()
