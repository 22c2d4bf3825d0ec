"""One HTTP/2 connection: many requests on one stream of bytes.

`Connection.run` is its life. One task reads and one writes; requests only change state and
wake the writer, so a cancelled request can never leave half a frame on the wire. Rule:
every stream ends exactly once, in `_end`, and `run` ends those that are left.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, Protocol

import anyio
import h2.events
import h2.exceptions
import msgspec
from anyio.abc import TaskStatus
from h2.errors import ErrorCodes

from tinker_async.errors import ProtocolError, TransportError
from tinker_async.transport import Request, Response, TrafficClass
from tinker_async.transport.content import MAX_BODY_BYTES, decoded, too_large
from tinker_async.transport.failures import (
    HTTP2_FAILURES,
    broken_error,
    closed_error,
    silence_error,
    unsent_error,
)
from tinker_async.transport.frames import (
    CONNECTION_WINDOW_BYTES,
    LAST_STREAM_ID,
    STREAM_WINDOW_BYTES,
    HeaderTable,
    Http2State,
    Upload,
)
from tinker_async.transport.lanes import Shares

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio.abc import ByteStream

    from tinker_async.transport import Headers
    from tinker_async.transport.origin import Origin

_READ_BYTES = 256 << 10
_BATCH_BYTES = 256 << 10
"""Body bytes per write: after so many, the others get their turn."""
_SMALL_BODY_BYTES = 16 << 10
_MOST_STREAMS = 1000
"""On one connection, when the peer names no limit or a larger one."""
_GOODBYE_S = 1.0


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

    def changed(self, connection: Connection) -> None:
        """Its capacity changed, it takes no new requests any more, or it ended."""

    def is_spare(self, connection: Connection) -> bool:
        """Whether the others suffice without this connection."""


class _Stream:
    """One request and its answer so far."""

    __slots__ = (
        "chunks",
        "credit",
        "done",
        "ended",
        "error",
        "headers",
        "heard_at",
        "id",
        "path",
        "size",
        "traffic",
        "unread",
        "upload",
    )

    def __init__(self, stream_id: int, request: Request, upload: Upload, now: float) -> None:
        self.id = stream_id
        self.path = request.path
        self.traffic = request.traffic
        self.upload: Upload | None = upload
        self.heard_at = now
        self.headers: Headers | None = None
        self.chunks: list[bytes] = []
        self.size = 0
        self.credit = 0  # received bytes the peer may not replace yet
        self.error: Exception | None = None
        self.unread = False
        self.ended = False
        self.done = anyio.Event()


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
        self._h2 = Http2State()
        self._headers = HeaderTable(origin.scheme, origin.authority)
        self.shares = Shares(0)
        self.open = False
        """Whether new requests may start here."""
        self._started: Callable[[], None] | None = None
        self._scope = anyio.CancelScope()
        self._cause: BaseException | None = None
        self._streams: dict[int, _Stream] = {}
        self._next_id = 1
        self._uploads: deque[_Stream] = deque()
        self._blocked: dict[int, _Stream] = {}
        self._unsent: list[_Stream] = []
        self._wake = anyio.Event()
        self._writing = False
        self._credit = 0
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
        except HTTP2_FAILURES as error:
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

    def _failure_of(self, stream: _Stream) -> Exception:
        error: Exception
        if self._owner.closing:
            error = closed_error(self._where)
        elif stream in self._unsent:
            error = unsent_error(self._where, "the connection broke before the request was sent")
        else:
            error = broken_error(self._cause, self._where)
        error.__cause__ = self._cause
        return error

    async def _close(self) -> None:
        """Say goodbye if that is still possible, then close the socket. Bounded."""
        with anyio.move_on_after(_GOODBYE_S, shield=True):
            # After a write that was cut off, more bytes would be garbage to the peer.
            if not self._writing:
                with suppress(*HTTP2_FAILURES):
                    if self._cause is None:
                        self._h2.close_connection()
                    if goodbye := self._h2.data_to_send():
                        await self._wire.send(goodbye)
            with suppress(*HTTP2_FAILURES):
                await self._wire.aclose()
            return
        await anyio.aclose_forcefully(self._wire)

    # -- requests ----------------------------------------------------------------------

    async def exchange(self, request: Request, silence_s: float | None) -> Response | None:
        """Send a request and return its response; the caller has taken a place for it.

        None: the server is going away in good order and has not looked at the request.
        """
        stream = self._start(request)
        try:
            if silence_s is None:
                await stream.done.wait()
            else:
                await self._listen(stream, silence_s)
        finally:
            if not stream.ended:
                self._abandon(stream, ErrorCodes.CANCEL)
        if stream.error is not None:
            raise stream.error
        return None if stream.unread else self._response(stream)

    def _start(self, request: Request) -> _Stream:
        """Queue a request for the writer. The only place where headers are encoded."""
        stream_id = self._next_id
        try:
            upload = Upload(request.body)
            size = upload.left
            stream = _Stream(stream_id, request, upload, anyio.current_time())
            headers = self._headers.request_headers(
                request.method, request.path, request.headers, size
            )
            self._h2.open_stream(stream_id, headers, end_stream=not size)
        except BaseException as error:
            self._owner.vacated(self, request.traffic)
            if isinstance(error, h2.exceptions.H2Error):
                raise broken_error(error, self._where) from error
            raise
        self._next_id += 2
        self._streams[stream_id] = stream
        self._unsent.append(stream)
        self._used_at = stream.heard_at
        if not size:
            stream.upload = None
        elif size <= _SMALL_BODY_BYTES and not self._uploads and self._fits(stream_id, size):
            self._h2.send_data(stream_id, upload.take_all(), end_stream=True)
            stream.upload = None
        else:
            self._uploads.append(stream)
        if self._next_id > LAST_STREAM_ID:
            self._retire()
        self._wake.set()
        return stream

    def _fits(self, stream_id: int, size: int) -> bool:
        return size <= min(self._h2.window(stream_id), self._h2.max_outbound_frame_size)

    async def _listen(self, stream: _Stream, silence_s: float) -> None:
        """Wait for the answer while either side makes progress at least every `silence_s`."""
        while not stream.ended:
            until = stream.heard_at + silence_s
            if anyio.current_time() >= until:
                raise silence_error(self._where, silence_s)
            with anyio.CancelScope(deadline=until):
                await stream.done.wait()

    def _response(self, stream: _Stream) -> Response:
        headers = stream.headers
        if headers is None:
            raise ProtocolError(f"{self._where} ended the answer to {stream.path} without headers")
        body = stream.chunks[0] if len(stream.chunks) == 1 else b"".join(stream.chunks)
        name, status = headers[0]
        if name != b":status" or not status.isdigit():
            raise ProtocolError(f"{self._where} answered {stream.path} without a status")
        regular = headers[1:]
        return Response(int(status), regular, decoded(regular, body, endpoint=stream.path))

    def _abandon(self, stream: _Stream, code: ErrorCodes) -> None:
        """Give up a request and tell the peer; nothing else is touched."""
        # The stream may just have been closed by the peer: then there is nobody to tell.
        with suppress(h2.exceptions.H2Error):
            self._h2.reset_stream(stream.id, code)
        self._end(stream, None)
        self._wake.set()

    def _end(self, stream: _Stream, error: Exception | None) -> None:
        """Settle a stream: the one place where its place is freed and its waiter woken."""
        if stream.ended:
            return
        stream.ended = True
        stream.error = error
        stream.upload = None
        del self._streams[stream.id]
        self._blocked.pop(stream.id, None)
        stream.done.set()
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
            self._wake = anyio.Event()
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
        self._unsent.clear()
        head = self._h2.data_to_send()
        if not self._uploads:
            return head
        pieces: list[bytes | bytearray | memoryview] = [head]
        size = len(head)
        now = anyio.current_time()
        while self._uploads and size < _BATCH_BYTES:
            if self._h2.outbound_flow_control_window <= 0:
                break
            stream = self._uploads.popleft()
            upload = stream.upload
            if upload is None:
                continue
            room = min(self._h2.window(stream.id), self._h2.max_outbound_frame_size, upload.left)
            if room <= 0:
                self._blocked[stream.id] = stream
                continue
            pieces += self._h2.frame_data(stream.id, upload, room)
            size += room
            stream.heard_at = now
            if upload.left:
                self._uploads.append(stream)
            else:
                stream.upload = None
                self._h2.end_stream(stream.id)
                pieces.append(self._h2.data_to_send())
        return b"".join(pieces)

    # -- reading -----------------------------------------------------------------------

    async def _read(self) -> None:
        self._wake.set()  # the preface
        while True:
            data = await self._wire.receive(_READ_BYTES)
            self._alive_at = anyio.current_time()
            self._pinged_at = None
            hungry: list[_Stream] = []
            for event in self._h2.receive(data):
                handle = self._HANDLERS.get(type(event))
                if handle is not None:
                    handle(self, event, hungry)
            self._give_credit(hungry)
            if self._h2.has_output or self._uploads:
                self._wake.set()

    def _give_credit(self, hungry: list[_Stream]) -> None:
        """Let the peer send more. After the batch: a stream in it may have ended since."""
        for stream in hungry:
            if not stream.ended and stream.credit:
                self._h2.increment_flow_control_window(stream.credit, stream.id)
                stream.credit = 0
        if self._credit >= CONNECTION_WINDOW_BYTES // 4:
            self._h2.increment_flow_control_window(self._credit)
            self._credit = 0

    def _on_headers(self, event: h2.events.ResponseReceived, _: list[_Stream]) -> None:
        stream = self._streams.get(event.stream_id or 0)
        if stream is not None:
            stream.headers = tuple(event.headers or ())
            stream.heard_at = self._alive_at

    def _on_sign_of_life(
        self, event: h2.events.InformationalResponseReceived, _: list[_Stream]
    ) -> None:
        stream = self._streams.get(event.stream_id or 0)
        if stream is not None:
            stream.heard_at = self._alive_at

    def _on_data(self, event: h2.events.DataReceived, hungry: list[_Stream]) -> None:
        length = event.flow_controlled_length or 0
        self._credit += length
        stream = self._streams.get(event.stream_id or 0)
        if stream is None:
            return
        data = event.data or b""
        stream.heard_at = self._alive_at
        if data:
            stream.chunks.append(data)
            stream.size += len(data)
        stream.credit += length
        if stream.size > MAX_BODY_BYTES:
            self._end_early(stream, too_large(stream.path, MAX_BODY_BYTES))
        elif stream.credit >= STREAM_WINDOW_BYTES // 4:
            hungry.append(stream)

    def _on_end(self, event: h2.events.StreamEnded, _: list[_Stream]) -> None:
        stream = self._streams.get(event.stream_id or 0)
        if stream is None:
            return
        if stream.upload is not None:
            # Answered before the whole body was sent: the rest is not wanted.
            self._end_early(stream, None)
        else:
            self._end(stream, None)

    def _end_early(self, stream: _Stream, error: Exception | None) -> None:
        with suppress(h2.exceptions.H2Error):
            self._h2.reset_stream(
                stream.id, ErrorCodes.NO_ERROR if error is None else ErrorCodes.CANCEL
            )
        self._end(stream, error)

    def _on_reset(self, event: h2.events.StreamReset, _: list[_Stream]) -> None:
        stream = self._streams.get(event.stream_id or 0)
        if stream is None:
            return
        code = event.error_code
        if code == ErrorCodes.REFUSED_STREAM:
            self._end(stream, unsent_error(self._where, "the server refused the request unread"))
            return
        self._end(
            stream,
            ProtocolError(
                f"{self._where} broke off the answer to {stream.path} ({_name(code)})",
                hint="the request may or may not have been processed",
            ),
        )

    def _on_goaway(self, event: h2.events.ConnectionTerminated, _: list[_Stream]) -> None:
        last = event.last_stream_id or 0
        reason = f"the server is closing this connection ({_name(event.error_code)})"
        self.open = False  # before places are freed: nobody may take one here
        for stream in tuple(self._streams.values()):
            if stream.id > last:
                stream.unread = event.error_code == ErrorCodes.NO_ERROR
                self._end(stream, None if stream.unread else unsent_error(self._where, reason))
        self._retire()

    def _on_window(self, event: h2.events.WindowUpdated, _: list[_Stream]) -> None:
        stream = self._blocked.pop(event.stream_id or 0, None)
        if stream is not None:
            self._uploads.append(stream)

    def _on_settings(self, _: h2.events.RemoteSettingsChanged, __: list[_Stream]) -> None:
        self.shares.resize(min(self._h2.remote_settings.max_concurrent_streams, _MOST_STREAMS))
        self._uploads.extend(self._blocked.values())  # their windows may have grown
        self._blocked.clear()
        if self._started is not None:
            self.open = True
            self._started()
            self._started = None
        else:
            self._owner.changed(self)

    _HANDLERS: ClassVar[dict[type[h2.events.Event], Callable[..., None]]] = {
        h2.events.ResponseReceived: _on_headers,
        h2.events.InformationalResponseReceived: _on_sign_of_life,
        h2.events.DataReceived: _on_data,
        h2.events.StreamEnded: _on_end,
        h2.events.StreamReset: _on_reset,
        h2.events.ConnectionTerminated: _on_goaway,
        h2.events.WindowUpdated: _on_window,
        h2.events.RemoteSettingsChanged: _on_settings,
    }

    # -- watching ----------------------------------------------------------------------

    async def _watch(self) -> None:
        """Find out about a dead peer, and end a connection that nobody needs."""
        rules = self._keep_alive
        while True:
            await anyio.sleep(rules.answer_s / 3)
            now = anyio.current_time()
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
