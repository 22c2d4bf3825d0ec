"""One HTTP/2 connection: many requests on one stream of bytes.

`Connection.run` is its life. One task reads and one writes; requests only change state and
wake the writer, so a cancelled request can never leave half a frame on the wire. Rule:
every stream ends exactly once, in `_end`, and `run` ends those that are left.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import anyio
import h2.exceptions
import msgspec
from anyio.abc import TaskStatus
from h2.errors import ErrorCodes

from tinker_async.errors import ProtocolError, TransportError
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
from tinker_async.transport.frames import (
    CONNECTION_WINDOW_BYTES,
    LAST_STREAM_ID,
    STREAM_WINDOW_BYTES,
    FramedStream,
    Framing,
)
from tinker_async.transport.lanes import Shares
from tinker_async.transport.uploads import Upload, size_of
from tinker_async.transport.waiting import Waiter, wake

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio.abc import ByteStream

    from tinker_async.transport import Buffer
    from tinker_async.transport.blocks import Head
    from tinker_async.transport.origin import Origin

_HTTP2_FAILURES: tuple[type[Exception], ...] = (*STREAM_FAILURES, h2.exceptions.H2Error)

_READ_BYTES = 256 << 10
_BATCH_BYTES = 256 << 10
"""Body bytes per write: after so many, the others get their turn."""
_SMALL_BODY_BYTES = 16 << 10
_MOST_STREAMS = 1000
"""On one connection, when the peer names no limit or a larger one."""
_GOODBYE_S = 1.0
_LOOK_S = 0.05
"""Shortest time between two looks for streams that are silent."""


class KeepAlive(msgspec.Struct, frozen=True):
    """When a silent peer is asked whether it lives, and when an unused connection ends."""

    quiet_s: float = 30.0
    """Silence after which a PING is sent while something is in flight."""
    answer_s: float = 15.0
    """Silence after the PING that means the peer is dead."""
    idle_s: float = 90.0
    """Spare connections without work are closed after this long."""


class Owner(Protocol):
    """What a connection tells the multiplexer it belongs to."""

    closing: bool

    def vacated(self, connection: Connection, traffic: TrafficClass) -> None:
        """A place on the connection is free."""

    def refill(self, connection: Connection) -> None:
        """What made places free while the connection was `reading` is all taken in."""

    def changed(self, connection: Connection) -> None:
        """Its capacity changed, it takes no new requests any more, or it ended."""

    def is_spare(self, connection: Connection) -> bool:
        """Whether the others suffice without this connection."""


class Stream(FramedStream):
    """One request, from its place in line to the end of its answer.

    Thousands of them wait at a time, so each is as few objects as can be.
    """

    __slots__ = (
        "body",
        "chunks",
        "connection",
        "credit",
        "ended",
        "error",
        "head",
        "heard_at",
        "number",
        "request",
        "silence_s",
        "size",
        "traffic",
        "unread",
        "upload",
        "waiter",
    )

    def __init__(self, request: Request, silence_s: float | None, waiter: Waiter) -> None:
        super().__init__()
        self.request = request
        self.traffic = request.traffic
        self.connection: Connection | None = None
        """None while it stands in line."""
        self.number = 0
        size = size_of(request.body)
        small = size <= _SMALL_BODY_BYTES
        self.body = b"".join(request.body) if small else b""
        self.upload: Upload | None = None if small else Upload(request.body)
        self.silence_s = silence_s
        self.heard_at: float | None = None
        """When either side last made progress; None until the request was written."""
        self.head: Head | None = None
        self.chunks: bytes | list[bytes] = b""
        """The body, once it has come in pieces a list of them."""
        self.size = 0
        self.credit = 0  # received bytes the peer may not replace yet
        self.error: Exception | None = None
        self.unread = False
        self.ended = False
        self.waiter = waiter
        """Woken when it has ended."""

    def settle(self, error: Exception | None) -> None:
        """End it and wake whoever waits for it."""
        self.ended = True
        self.error = error
        self.upload = None
        wake(self.waiter)

    def keep(self, data: bytes) -> None:
        """Add a piece of the response's body."""
        if not self.size:
            self.chunks = data
        elif isinstance(self.chunks, list):
            self.chunks.append(data)
        else:
            self.chunks = [self.chunks, data]
        self.size += len(data)


def _name(code: ErrorCodes | int | None) -> str:
    try:
        return ErrorCodes(code or 0).name
    except ValueError:
        return f"code {code}"


class Connection:
    """An HTTP/2 connection over a byte stream that it owns and closes."""

    def __init__(
        self, wire: ByteStream, origin: Origin, owner: Owner, *, keep_alive: KeepAlive
    ) -> None:
        self._wire = wire
        self._origin = origin
        self._where = origin.address
        self._owner = owner
        self._keep_alive = keep_alive
        self._h2: Framing[Stream] = Framing(origin.scheme, origin.authority, self)
        self.shares = Shares(0)
        self.open = False
        """Whether new requests may start here."""
        self.reading = False
        """Whether bytes are being taken in: what comes later in them may end the connection."""
        self.has_vacated = False
        """Whether they freed places, for `Owner.refill`."""
        self._started: Callable[[], None] | None = None
        self._scope = anyio.CancelScope()
        self._cause: BaseException | None = None
        self._streams = self._h2.live
        self._next_id = 1
        self._uploads: deque[Stream] = deque()
        self._blocked: dict[int, Stream] = {}
        self._unsent: list[Stream] = []
        self._wake = anyio.Event()
        self._new_event = type(self._wake)
        """The event loop's own class: `anyio.Event` would look for it each time."""
        self._hurry = anyio.Event()
        self._next_look = math.inf
        """When the watcher next looks for silent streams."""
        self._writing = False
        self._credit = 0
        self._hungry: list[Stream] = []
        self._alive_at = anyio.current_time()
        self._used_at = self._alive_at
        self._pinged_at: float | None = None

    def __repr__(self) -> str:
        state = "open" if self.open else "ending"
        return (
            f"<http2.Connection {self._where} {state}:"
            f" {len(self._streams)} of {self.shares.capacity} streams>"
        )

    # -- the life of a connection ------------------------------------------------------

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Read and write until the connection ends; started when the peer's SETTINGS came.

        Never raises for a connection that broke after it was started: its requests fail.

        Raises:
            ConnectError: The peer does not speak HTTP/2, or went away first.
        """
        was_started = False

        def started() -> None:
            nonlocal was_started
            was_started = True
            task_status.started()

        self._started = started
        try:
            async with anyio.create_task_group() as tasks:
                self._scope = tasks.cancel_scope
                tasks.start_soon(self._guarded, self._write)
                tasks.start_soon(self._guarded, self._watch)
                await self._guarded(self._read)
        finally:
            self.open = False
            for stream in tuple(self._streams.values()):
                self._end(stream, self._failure_of(stream))
            self._owner.changed(self)
            await self._close()
        if not was_started:
            raise unsent_error(
                self._where, "the server does not speak HTTP/2, or closed the connection at once"
            ) from self._cause

    async def _guarded(self, part: Callable[[], object]) -> None:
        try:
            await part()  # type: ignore[misc]
        except _HTTP2_FAILURES as error:
            self._lose(error)
        except TransportError as error:
            self._lose(error)

    def _lose(self, cause: BaseException | None) -> None:
        """End the connection; the first cause is the one that is told."""
        if self._cause is None:
            self._cause = cause
        self.open = False
        self._owner.changed(self)
        self._scope.cancel()

    def _failure_of(self, stream: Stream) -> Exception:
        error: Exception
        if self._owner.closing:
            error = closed_error(self._where)
        elif stream in self._unsent:
            error = unsent_error(self._where, "the connection broke before the request was sent")
        elif isinstance(self._cause, h2.exceptions.H2Error):
            error = rules_error(self._cause, self._where)
        else:
            error = broken_error(self._cause, self._where)
        error.__cause__ = self._cause
        return error

    async def _close(self) -> None:
        """Say goodbye if that is still possible, then close the socket. Bounded."""
        with anyio.move_on_after(_GOODBYE_S, shield=True):
            # After a write that was cut off, more bytes would be garbage to the peer.
            if not self._writing:
                with suppress(*_HTTP2_FAILURES):
                    if not isinstance(self._cause, h2.exceptions.H2Error):  # said already
                        self._h2.say_goodbye()
                    await self._wire.send(b"".join(self._h2.take_output()))
            with suppress(*_HTTP2_FAILURES):
                await self._wire.aclose()
            return
        await anyio.aclose_forcefully(self._wire)

    # -- requests ----------------------------------------------------------------------

    def start(self, stream: Stream) -> None:
        """Queue a request for the writer; a place has been taken for it, and goes if this fails."""
        request, body, upload = stream.request, stream.body, stream.upload
        size = len(body) if upload is None else upload.left
        stream.connection = self
        self._h2.open_stream(
            stream, self._next_id, request.method, request.path, request.headers, size
        )
        self._next_id += 2
        if request.receipt is not None:
            request.receipt.on_wire = True
        self._unsent.append(stream)
        if upload is None and not self._uploads and size <= self._h2.room(stream):
            if size:
                self._h2.put_body(stream, body)
        elif size:
            stream.upload = upload or Upload((body,))
            self._uploads.append(stream)
        stream.body = b""
        if self._next_id > LAST_STREAM_ID:
            self._retire()
        self._wake.set()

    def response(self, stream: Stream) -> Response:
        """Return the response of a stream that has ended well.

        Raises:
            ProtocolError: It is none.
        """
        head, path = stream.head, stream.request.path
        if head is None:
            raise ProtocolError(f"{self._where} ended the answer to {path} without headers")
        if not head.status:
            raise ProtocolError(f"{self._where} answered {path} without a status")
        if head.body_bytes is not None and head.body_bytes != stream.size:
            raise ProtocolError(
                f"{self._where} promised {head.body_bytes} bytes in answer to {path} and "
                f"sent {stream.size}",
                hint="the request may have been processed",
            )
        chunks = stream.chunks
        body: Buffer = b"".join(chunks) if isinstance(chunks, list) else chunks
        if head.is_encoded:
            body = decoded(head.headers, body, endpoint=path)
        return Response(head.status, head.headers, body)

    def abandon(self, stream: Stream, error: Exception | None) -> None:
        """Give up a request and tell the peer; nothing else is touched."""
        self._h2.reset(stream, ErrorCodes.CANCEL)
        self._end(stream, error)
        self._wake.set()

    def _end(self, stream: Stream, error: Exception | None) -> None:
        """Settle a stream: the one place where its place is freed and its waiter woken."""
        if stream.ended:
            return
        del self._streams[stream.id]
        if self._blocked:
            self._blocked.pop(stream.id, None)
        stream.settle(error)
        self._owner.vacated(self, stream.traffic)
        if not self._streams and not self.open:
            self._scope.cancel()

    def _retire(self) -> None:
        """Take no new requests; what is in flight finishes, then the connection ends."""
        self.open = False
        self._owner.changed(self)
        if not self._streams:
            self._scope.cancel()

    # -- writing -----------------------------------------------------------------------

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = self._new_event()
            while batch := self._next_batch():
                uploading = bool(self._uploads)
                self._writing = True
                await self._wire.send(batch)
                self._writing = False
                if uploading:
                    # A slow uplink is not a dead peer.
                    self._alive_at = anyio.current_time()

    def _next_batch(self) -> bytes:
        """Return everything there is to send now, bodies up to a bound and in turns."""
        if self._unsent or self._uploads:
            now = anyio.current_time()
            self._note_sent(now)
            self._put_uploads(now)
        return b"".join(self._h2.take_output())

    def _note_sent(self, now: float) -> None:
        """Start the clocks of the requests that go out now."""
        for stream in self._unsent:
            stream.heard_at = now
            if stream.silence_s is not None and now + stream.silence_s < self._next_look:
                self._next_look = now + stream.silence_s
                self._hurry.set()
        if self._unsent:
            self._used_at = now
            self._unsent.clear()

    def _put_uploads(self, now: float) -> None:
        size = 0
        while self._uploads and size < _BATCH_BYTES and self._h2.window > 0:
            stream = self._uploads.popleft()
            upload = stream.upload
            if upload is None:
                continue
            room = min(self._h2.room(stream), upload.left)
            if room <= 0:
                self._blocked[stream.id] = stream
                continue
            self._h2.put_piece(stream, upload, room)
            size += room
            stream.heard_at = now
            if upload.left:
                self._uploads.append(stream)
            else:
                stream.upload = None

    # -- reading -----------------------------------------------------------------------

    async def _read(self) -> None:
        self._wake.set()  # the preface
        while True:
            data = await self._wire.receive(_READ_BYTES)
            self._alive_at = anyio.current_time()
            self._pinged_at = None
            self.reading = True
            try:
                self._h2.receive(data)
            finally:
                self.reading = False
            if self.has_vacated:
                self.has_vacated = False
                self._owner.refill(self)
            self._give_credit()
            if self._h2.has_output or self._uploads:
                self._wake.set()

    def _give_credit(self) -> None:
        """Let the peer send more. After the batch: a stream in it may have ended since."""
        if self._hungry:
            for stream in self._hungry:
                if not stream.ended and stream.credit:
                    self._h2.give_credit(stream.credit, stream)
                    stream.credit = 0
            self._hungry.clear()
        if self._credit >= CONNECTION_WINDOW_BYTES // 4:
            self._h2.give_credit(self._credit)
            self._credit = 0

    def heard_head(self, stream: Stream, head: Head, *, ended: bool) -> None:
        """Keep the response's headers."""
        stream.head = head
        stream.heard_at = self._alive_at
        if ended:
            self.heard_end(stream)

    def heard_interim(self, stream: Stream) -> None:
        """Note that the server lives."""
        stream.heard_at = self._alive_at

    def heard_data(self, stream: Stream | None, data: bytes, length: int, *, ended: bool) -> None:
        """Keep a piece of a body, and count what is to be credited for it."""
        self._credit += length
        if stream is None:
            return
        stream.heard_at = self._alive_at
        if data:
            stream.keep(data)
        stream.credit += length
        if stream.size > MAX_BODY_BYTES:
            self.abandon(stream, too_large(stream.request.path, MAX_BODY_BYTES))
        elif ended:
            self.heard_end(stream)
        elif stream.credit >= STREAM_WINDOW_BYTES // 4:
            self._hungry.append(stream)

    def heard_end(self, stream: Stream) -> None:
        """Settle a response that is whole."""
        if stream.upload is not None:
            # Answered before the whole body was sent: the rest is not wanted.
            self._h2.reset(stream, ErrorCodes.NO_ERROR)
        self._end(stream, None)

    def heard_reset(self, stream: Stream, code: int) -> None:
        """Fail a request that the server broke off."""
        if code == ErrorCodes.REFUSED_STREAM:
            self._end(stream, unsent_error(self._where, "the server refused the request unread"))
            return
        self._end(
            stream,
            ProtocolError(
                f"{self._where} broke off the answer to {stream.request.path} ({_name(code)})",
                hint="the request may or may not have been processed",
            ),
        )

    def heard_goaway(self, last_stream_id: int, code: int) -> None:
        """Give up what the server will not look at; let the rest finish."""
        reason = f"the server is closing this connection ({_name(code)})"
        self.open = False  # before places are freed: nobody may take one here
        for stream in tuple(self._streams.values()):
            if stream.id > last_stream_id:
                stream.unread = code == ErrorCodes.NO_ERROR
                self._end(stream, None if stream.unread else unsent_error(self._where, reason))
        self._retire()

    def heard_window(self, stream: Stream | None) -> None:
        """Go on with an upload that waited for room."""
        if stream is not None and self._blocked.pop(stream.id, None) is not None:
            self._uploads.append(stream)

    def heard_settings(self) -> None:
        """Follow the limit of streams, and the windows."""
        self.shares.resize(min(self._h2.max_streams, _MOST_STREAMS))
        self._uploads.extend(self._blocked.values())  # their windows may have grown
        self._blocked.clear()
        if self._started is not None:
            self.open = True
            self._started()
            self._started = None
        else:
            self._owner.changed(self)

    # -- watching ----------------------------------------------------------------------

    async def _watch(self) -> None:
        """Find out about a dead peer, and end a connection that nobody needs."""
        rules = self._keep_alive
        while True:
            await self._doze(rules.answer_s / 3)
            now = anyio.current_time()
            if now >= self._next_look or self._unsent:  # the writer may be held up
                self._end_silent(now)
            if not self._streams:
                if now - self._used_at >= rules.idle_s and self._owner.is_spare(self):
                    self._retire()
            elif self._pinged_at is not None:
                if now - max(self._pinged_at, self._alive_at) >= rules.answer_s:
                    raise ProtocolError(
                        f"{self._where} has not answered for {now - self._alive_at:.0f} s",
                        hint="the request may or may not have been processed",
                    )
            elif now - self._alive_at >= rules.quiet_s:
                self._h2.ping(b"tinker-a")
                self._pinged_at = now
                self._wake.set()

    async def _doze(self, most_s: float) -> None:
        """Sleep until there may be something to see."""
        until = anyio.current_time() + most_s
        with anyio.CancelScope() as scope:
            while True:
                scope.deadline = min(self._next_look, until)
                await self._hurry.wait()
                self._hurry = self._new_event()

    def _end_silent(self, now: float) -> None:
        """Fail each request on which neither side made progress for as long as it allows."""
        next_look = math.inf
        for stream in tuple(self._streams.values()):
            if stream.silence_s is None:
                continue
            if stream.heard_at is None:
                stream.heard_at = now
            due = stream.heard_at + stream.silence_s
            if due <= now:
                self.abandon(stream, silence_error(self._where, stream.silence_s))
            else:
                next_look = min(next_look, due)
        self._next_look = max(next_look, now + _LOOK_S)
