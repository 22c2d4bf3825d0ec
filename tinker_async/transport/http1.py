"""HTTP/1.1: one request at a time on each of a few connections, under a line of our own.

Which connection carries which request, and who waits, is decided here in O(1);
`http1_messages` says what the bytes mean. Rule: a connection is in `_idle` only when its
last exchange ended cleanly; any other end closes it.
"""

from __future__ import annotations

import math
import select
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
from anyio.abc import SocketAttribute

from tinker_async.errors import ProtocolError
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
from tinker_async.transport.http1_messages import (
    BadMessageError,
    RequestHeads,
    ResponseHeads,
    ResponseReader,
)
from tinker_async.transport.lanes import Line, Shares, Ticket, TransportStatistics
from tinker_async.transport.uploads import Upload, size_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import ByteStream

    from tinker_async.errors import TinkerError
    from tinker_async.transport import Buffer
    from tinker_async.transport.origin import Origin
    from tinker_async.transport.tasks import LastingTasks

_IDLE_S = 60.0
"""Connections unused for so long are closed when another request passes by."""
_CRASHED = 500
_READ_BYTES = 256 << 10
_WRITE_BYTES = 256 << 10
_SMALL_BODY_BYTES = 64 << 10
"""Up to this, head and body are joined to one write."""
_CLOSE_S = 1.0
_RESTED_S = 1.0
"""No server closes connections that were idle for less."""
_LOOK_S = 0.05
"""Shortest time between two looks for connections that are silent."""
_FAILURES: tuple[type[Exception], ...] = (*STREAM_FAILURES, BadMessageError)


class _Kept:
    """A connection, busy or idle."""

    __slots__ = (
        "_descriptor",
        "_poll",
        "_socket",
        "clean",
        "closed",
        "heard_at",
        "rested",
        "silence_s",
        "silent",
        "stream",
    )

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.clean = True
        """Whether the last exchange ended as it should."""
        self.closed = False
        self.rested = False
        """Whether it was idle for so long before that the server may be closing it."""
        self.heard_at = anyio.current_time()
        """When either side last made progress; of an idle connection: its last use."""
        self.silence_s: float | None = None
        self.silent = False
        """Whether it was closed because of silence."""
        self._socket = stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - not Django's
        self._descriptor = self._socket.fileno()
        self._poll: select.poll | None = None
        if hasattr(select, "poll"):  # not on Windows
            self._poll = select.poll()
            self._poll.register(self._descriptor, select.POLLIN)

    @property
    def is_stale(self) -> bool:
        """Whether bytes or an end wait on the socket: on an idle connection, always a bad sign."""
        if self.closed or self._socket.fileno() != self._descriptor:
            return True
        if self._poll is None:
            return bool(select.select([self._descriptor], [], [], 0)[0])
        return bool(self._poll.poll(0))

    async def send(self, head: bytes, request: Request, size: int) -> bool:
        """Write a request; return whether all of it went out.

        If it did not, the server may have answered nevertheless. A body that is not small
        goes out from where it lies.
        """
        if request.receipt is not None:
            request.receipt.on_wire = True
        try:
            if size <= _SMALL_BODY_BYTES:
                await self.stream.send(b"".join((head, *request.body)))
                return True
            upload = Upload(request.body)
            await self.stream.send(head)
            while upload.left:
                pieces = upload.take(min(upload.left, _WRITE_BYTES))
                piece = pieces[0] if len(pieces) == 1 else b"".join(pieces)
                await self.stream.send(piece)  # type: ignore[arg-type]  # any buffer will do
                self.heard_at = anyio.current_time()
        except STREAM_FAILURES:
            return False
        return True

    async def receive(self, reader: ResponseReader) -> None:
        """Read until a response is whole."""
        try:
            while not reader.feed(await self.stream.receive(_READ_BYTES)):
                self.heard_at = anyio.current_time()
        except anyio.EndOfStream:
            if not reader.finish():
                raise

    async def close(self) -> None:
        """Close the socket, whatever state it is in; its user is woken. Bounded."""
        self.closed = True
        with anyio.move_on_after(_CLOSE_S, shield=True):
            with suppress(*STREAM_FAILURES):  # broken already: closed is what was wanted
                await self.stream.aclose()
            return
        await anyio.aclose_forcefully(self.stream)


class Http1Line:
    """A `Transport` over HTTP/1.1: one request at a time on each of a few connections."""

    def __init__(
        self,
        origin: Origin,
        dial: Callable[[], Awaitable[ByteStream]],
        tasks: LastingTasks,
        *,
        max_connections: int,
    ) -> None:
        self._where = origin.address
        self._dial = dial
        self._tasks = tasks
        self._request_heads = RequestHeads(origin.authority)
        self._response_heads = ResponseHeads()
        self._closing = False
        self._shares = Shares(max_connections)
        self._line: Line[None] = Line()
        self._idle: deque[_Kept] = deque()
        """Least recently used first."""
        self._busy: set[_Kept] = set()
        self._dials: set[anyio.CancelScope] = set()
        self._opened = 0
        self._requests = 0
        self._watching = False
        self._hurry = anyio.Event()
        self._next_look = math.inf
        """When the watcher next looks for silent connections."""

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
        size = size_of(request.body)
        try:
            head = self._request_heads.head(request.method, request.path, request.headers, size)
        except BadMessageError as error:
            raise rules_error(error, self._where, ours=True) from error
        if not self._line.waiting(traffic) and self._shares.admits(traffic):
            self._shares.take(traffic)
        else:
            await self._take_later(traffic)
        try:
            self._requests += 1
            kept = await self._connection()
            try:
                return await self._exchange(kept, request, head, size, silence_s)
            finally:
                await self._put_back(kept)
        finally:
            self._shares.give_back(traffic)
            if self._line:
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
            if not kept.is_stale:
                self._busy.add(kept)
                return kept
            await kept.close()
        kept = self._keep(await self._new_stream())
        self._busy.add(kept)
        if self._closing:
            await self._put_back(kept)
            raise closed_error(self._where)
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
        return _Kept(stream)

    def adopt(self, stream: ByteStream) -> None:
        """Use a stream that is connected already."""
        self._idle.append(self._keep(stream))

    async def _put_back(self, kept: _Kept) -> None:
        """Keep a connection for the next request if it is clean, and drop one long unused."""
        self._busy.discard(kept)
        kept.heard_at = anyio.current_time()
        if kept.clean and not self._closing:
            self._idle.append(kept)
        else:
            await kept.close()
        if self._idle and kept.heard_at - self._idle[0].heard_at > _IDLE_S:
            await self._idle.popleft().close()

    # -- one exchange ------------------------------------------------------------------

    async def _exchange(
        self, kept: _Kept, request: Request, head: bytes, size: int, silence_s: float | None
    ) -> Response:
        kept.clean = False
        kept.silence_s = silence_s
        now = anyio.current_time()
        kept.rested, kept.heard_at = now - kept.heard_at > _RESTED_S, now
        if silence_s is not None and kept.heard_at + silence_s < self._next_look:
            self._look_at(kept.heard_at + silence_s)
        reader = ResponseReader(
            self._response_heads, bodiless=request.method == "HEAD", most=MAX_BODY_BYTES
        )
        try:
            sent = await kept.send(head, request, size)
            await kept.receive(reader)
        except _FAILURES as error:
            failure = self._failure(kept, error)
            if kept.rested and not reader.began and isinstance(failure, ProtocolError):
                failure.kept = True
            raise failure from error
        except OverflowError as error:
            raise too_large(request.path, MAX_BODY_BYTES) from error
        # After a crash many servers close the connection and do not say so.
        usable = reader.reusable and reader.head.status != _CRASHED
        kept.clean = sent and usable and not kept.closed
        return _response(reader, request.path)

    def _failure(self, kept: _Kept, error: Exception) -> TinkerError:
        if self._closing:
            return closed_error(self._where)
        if kept.silent:
            return silence_error(self._where, kept.silence_s)
        if isinstance(error, BadMessageError):
            return rules_error(error, self._where)
        return broken_error(error, self._where)

    # -- silence -----------------------------------------------------------------------

    def _look_at(self, due: float) -> None:
        """Let the watcher look no later than this; there is one once somebody needs it."""
        if not self._watching:
            self._watching = True
            self._tasks.start_soon(self._watch)
        self._next_look = due
        self._hurry.set()

    async def _watch(self) -> None:
        """Close the connections on which nothing happens for as long as a request allows.

        One task for all, instead of a deadline around each read and write.
        """
        while True:
            with anyio.CancelScope(deadline=self._next_look):
                await self._hurry.wait()
                self._hurry = anyio.Event()
            now = anyio.current_time()
            if now >= self._next_look:
                for kept in self._silent_ones(now):
                    await kept.close()

    def _silent_ones(self, now: float) -> list[_Kept]:
        """Return those that have been silent for too long; look again when another may be."""
        silent = []
        next_look = math.inf
        for kept in self._busy:
            if kept.silence_s is None or kept.closed:
                continue
            due = kept.heard_at + kept.silence_s
            if due <= now:
                kept.silent = kept.closed = True
                silent.append(kept)
            else:
                next_look = min(next_look, due)
        self._next_look = max(next_look, now + _LOOK_S)
        return silent

    async def close(self) -> None:
        """Refuse new requests, fail those in line and in flight, close every socket."""
        self._closing = True
        self._line.dismiss(lambda: closed_error(self._where))
        for scope in self._dials:
            scope.cancel()
        for kept in (*self._busy, *self._idle):
            await kept.close()
        self._idle.clear()


def _response(reader: ResponseReader, endpoint: str) -> Response:
    head = reader.head
    body: Buffer = reader.body
    if head.is_encoded:
        body = decoded(head.headers, body, endpoint=endpoint)
    return Response(head.status, head.headers, body)
