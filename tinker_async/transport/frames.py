"""HTTP/2 frames of a client, cut and joined by hand; SETTINGS and PING are left to `h2`.

`Framing` keeps what the protocol makes both sides keep (windows, ids, header tables) and
tells a `Listener` what arrived. Rule: a peer that breaks the protocol ends the connection
with an `H2Error` and a GOAWAY, whatever else was in the same bytes. No I/O.

The same on `h2` alone costs five times the CPU: its events, state machines and header
tables are made anew for each frame.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from h2.errors import ErrorCodes

from tinker_async.transport.blocks import Head, RequestBlocks, ResponseBlocks

if TYPE_CHECKING:
    from tinker_async.transport import Buffer, Headers
    from tinker_async.transport.uploads import Upload

STREAM_WINDOW_BYTES = 16 << 20
CONNECTION_WINDOW_BYTES = 64 << 20
MAX_FRAME_BYTES = 128 << 10
"""Larger than the default 16 KiB (fewer events), small enough not to hold up a neighbour."""
MAX_HEADER_LIST_BYTES = 1 << 20
LAST_STREAM_ID = 2**31 - 1
_MOST_CONTINUATIONS = 64
_MOST_WINDOW = 2**31 - 1
_DEFAULT_WINDOW = 65_535

_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS = 0, 1, 2, 3, 4
_PUSH_PROMISE, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 5, 6, 7, 8, 9
_END_STREAM, _END_HEADERS, _PADDED, _HAS_PRIORITY = 0x1, 0x4, 0x8, 0x20

_FRAME = struct.Struct(">HBBBL")
"""Length (in two parts), type, flags, stream."""
_FRAME_BYTES = 9
_FOUR = struct.Struct(">L")
_EIGHT = struct.Struct(">LL")


class FramedStream:
    """What framing keeps of a stream between its first frame and its end."""

    __slots__ = ("answered", "id", "inbound", "window")

    def __init__(self) -> None:
        self.id = 0
        self.window = 0
        """Bytes that we may send."""
        self.inbound = STREAM_WINDOW_BYTES
        """Bytes that the peer may send."""
        self.answered = False
        """Whether the final response's headers came."""


S = TypeVar("S", bound=FramedStream)
S_contra = TypeVar("S_contra", bound=FramedStream, contravariant=True)


class Listener(Protocol[S_contra]):
    """Whom `Framing.receive` tells. Only streams in `live` are named."""

    def heard_head(self, stream: S_contra, head: Head, *, ended: bool) -> None:
        """The final response's headers."""

    def heard_interim(self, stream: S_contra) -> None:
        """An informational response: nothing but a sign of life."""

    def heard_data(self, stream: S_contra | None, data: bytes, length: int, *, ended: bool) -> None:
        """A piece of a body that used up `length` of the windows; None: of no live stream."""

    def heard_end(self, stream: S_contra) -> None:
        """The response is over (by trailers, which are dropped)."""

    def heard_reset(self, stream: S_contra, code: int) -> None:
        """RST_STREAM."""

    def heard_goaway(self, last_stream_id: int, code: int) -> None:
        """GOAWAY: streams up to the last one go on."""

    def heard_window(self, stream: S_contra | None) -> None:
        """More may be sent on a stream; None: on the connection."""

    def heard_settings(self) -> None:
        """The peer's settings, at first or again. All windows may have changed."""


class Framing(Generic[S]):
    """The client side of a connection; its preface is in the first `take_output`."""

    def __init__(self, scheme: str, authority: bytes, listener: Listener[S]) -> None:
        self._listener = listener
        self.live: dict[int, S] = {}
        """Streams that are open, by id. Whoever ends one takes it out."""
        self._h2 = _library_state()
        self._requests = RequestBlocks(scheme, authority)
        self._responses = ResponseBlocks(self._h2.decoder, self._decode)
        self._out: list[Buffer] = []
        self._begun = False
        self._rest = b""
        self._block: list[bytes] = []
        self._block_of = (0, 0)
        """Stream and flags of the header block that CONTINUATION frames add to."""
        self._highest_id = 0
        self._stream_window = _DEFAULT_WINDOW
        self.window = _DEFAULT_WINDOW
        """Bytes that we may send on the connection."""
        self._inbound = _DEFAULT_WINDOW
        self._take_library_output()
        self.give_credit(CONNECTION_WINDOW_BYTES - _DEFAULT_WINDOW)

    # -- sending -----------------------------------------------------------------------

    @property
    def has_output(self) -> bool:
        """Whether `take_output` would return anything."""
        return bool(self._out)

    @property
    def max_streams(self) -> int:
        """The most streams that the peer allows."""
        return self._h2.remote_settings.max_concurrent_streams

    @property
    def max_frame_bytes(self) -> int:
        """The largest frame that the peer takes."""
        return self._h2.max_outbound_frame_size

    def take_output(self) -> list[Buffer]:
        """Return what is to be sent now, and forget it."""
        out, self._out = self._out, []
        self._begun = True
        return out

    def _put(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        self._out += (_FRAME.pack(size >> 8, size & 0xFF, kind, flags, stream_id), payload)

    def open_stream(
        self, stream: S, stream_id: int, method: str, path: str, headers: Headers, size: int
    ) -> None:
        """Queue the HEADERS of a new request with a body of `size` bytes."""
        block = self._requests.block(method, path, headers, size)
        stream.id = self._highest_id = stream_id
        stream.window = self._stream_window
        self.live[stream_id] = stream
        flags = 0 if size else _END_STREAM
        most = self.max_frame_bytes
        if len(block) <= most:
            self._put(_HEADERS, flags | _END_HEADERS, stream_id, block)
            return
        self._put(_HEADERS, flags, stream_id, block[:most])
        for start in range(most, len(block), most):
            last = start + most >= len(block)
            flags = _END_HEADERS if last else 0
            self._put(_CONTINUATION, flags, stream_id, block[start : start + most])

    def room(self, stream: S) -> int:
        """Bytes that the next DATA frame of a stream may have; 0 or less: none."""
        return min(self.window, stream.window, self.max_frame_bytes)

    def put_body(self, stream: S, body: bytes) -> None:
        """Queue a whole body that there is room for."""
        self.window -= len(body)
        stream.window -= len(body)
        self._put(_DATA, _END_STREAM, stream.id, body)

    def put_piece(self, stream: S, upload: Upload, size: int) -> None:
        """Queue the next `size` bytes of a body, for which there is room."""
        self.window -= size
        stream.window -= size
        flags = _END_STREAM if upload.left == size else 0
        self._out.append(_FRAME.pack(size >> 8, size & 0xFF, _DATA, flags, stream.id))
        self._out += upload.take(size)

    def reset(self, stream: S, code: int) -> None:
        """Queue RST_STREAM."""
        self._put(_RST_STREAM, 0, stream.id, _FOUR.pack(code))

    def give_credit(self, size: int, stream: S | None = None) -> None:
        """Let the peer send more on a stream, or on the connection."""
        if stream is None:
            self._inbound += size
        else:
            stream.inbound += size
        stream_id = 0 if stream is None else stream.id
        self._put(_WINDOW_UPDATE, 0, stream_id, _FOUR.pack(size))

    def ping(self, data: bytes) -> None:
        """Queue PING."""
        self._h2.ping(data)
        self._take_library_output()

    def say_goodbye(self, code: int = ErrorCodes.NO_ERROR) -> None:
        """Queue GOAWAY instead of what was not sent yet: nobody may process that any more.

        Nothing is queued when nothing was sent at all.
        """
        self._out.clear()
        if self._begun:  # without the preface before it, it is no HTTP/2
            self._put(_GOAWAY, 0, 0, _EIGHT.pack(0, code))

    # -- receiving ---------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take in bytes and tell the listener what they say.

        Raises:
            H2Error: The peer broke the protocol. Nothing more may be received.
        """
        try:
            self._cut(self._rest + data if self._rest else data)
        except h2.exceptions.ProtocolError as error:
            self.say_goodbye(error.error_code)
            raise

    def _cut(self, data: bytes) -> None:
        at, end = 0, len(data)
        while end - at >= _FRAME_BYTES:
            high, low, kind, flags, stream_id = _FRAME.unpack_from(data, at)
            length = high << 8 | low
            if length > MAX_FRAME_BYTES:  # refused before it has come
                raise h2.exceptions.FrameTooLargeError("a frame is longer than what we allow")
            start = at + _FRAME_BYTES
            if start + length > end:
                break
            at = start + length
            stream_id &= LAST_STREAM_ID
            if self._block and kind != _CONTINUATION:
                raise _violation("a header block is broken off")
            if kind == _DATA:
                self._on_data(stream_id, flags, data[start:at], length)
            elif kind == _HEADERS:
                self._on_headers(stream_id, flags, data[start:at])
            elif kind in (_SETTINGS, _PING):
                self._leave_to_library(data[start - _FRAME_BYTES : at])
            else:
                self._on_rare(kind, stream_id, flags, data[start:at])
        self._rest = data[at:]

    def _on_rare(self, kind: int, stream_id: int, flags: int, payload: bytes) -> None:
        if kind == _WINDOW_UPDATE:
            self._on_window(stream_id, payload)
        elif kind == _RST_STREAM:
            self._on_reset(stream_id, payload)
        elif kind == _GOAWAY:
            if stream_id or len(payload) < _EIGHT.size:
                raise _violation("a GOAWAY is malformed")
            last, code = _EIGHT.unpack_from(payload)
            self._listener.heard_goaway(last & LAST_STREAM_ID, code)
        elif kind == _CONTINUATION:
            self._on_continuation(stream_id, flags, payload)
        elif kind == _PUSH_PROMISE:
            raise _violation("a push that we do not allow")
        # PRIORITY says nothing to a client, and unknown kinds are to be ignored.

    def _stream(self, stream_id: int) -> S | None:
        """Return a live stream, or None for one that was."""
        stream = self.live.get(stream_id)
        if stream is None and (not stream_id & 1 or stream_id > self._highest_id):
            raise _violation(f"a frame is for stream {stream_id}, which was never opened")
        return stream

    def _on_data(self, stream_id: int, flags: int, data: bytes, length: int) -> None:
        if flags & _PADDED:
            data = _unpadded(data)
        stream = self._stream(stream_id)
        self._inbound -= length
        if self._inbound < 0:
            raise h2.exceptions.FlowControlError("more data than our window allows")
        if stream is not None:
            if not stream.answered:
                raise _violation("data comes before headers")
            stream.inbound -= length
            if stream.inbound < 0:
                raise h2.exceptions.FlowControlError("more data than a stream's window allows")
        self._listener.heard_data(stream, data, length, ended=bool(flags & _END_STREAM))

    def _on_headers(self, stream_id: int, flags: int, block: bytes) -> None:
        if flags & _PADDED:
            block = _unpadded(block)
        if flags & _HAS_PRIORITY:
            if len(block) < 5:
                raise _violation("a HEADERS frame is too short")
            block = block[5:]
        if flags & _END_HEADERS:
            self._on_block(stream_id, flags, block)
        else:
            self._block = [block]
            self._block_of = (stream_id, flags)

    def _on_continuation(self, stream_id: int, flags: int, block: bytes) -> None:
        first_id, first_flags = self._block_of
        if not self._block or stream_id != first_id:
            raise _violation("a CONTINUATION continues nothing")
        self._block.append(block)
        if len(self._block) > _MOST_CONTINUATIONS:
            raise _violation("a header block has too many frames")
        if flags & _END_HEADERS:
            whole = b"".join(self._block)
            self._block = []
            self._on_block(stream_id, first_flags, whole)

    def _on_block(self, stream_id: int, flags: int, block: bytes) -> None:
        # Decoded also when nobody wants it: the table depends on it.
        head = self._responses.read(block)
        stream = self._stream(stream_id)
        if stream is None:
            return
        ended = bool(flags & _END_STREAM)
        if stream.answered:
            if not ended:
                raise _violation("trailers do not end their stream")
            self._listener.heard_end(stream)
        elif 100 <= head.status < 200:
            if ended:
                raise _violation("an informational response ends its stream")
            self._listener.heard_interim(stream)
        else:
            stream.answered = True
            self._listener.heard_head(stream, head, ended=ended)

    def _decode(self, block: bytes) -> list[tuple[bytes, bytes]]:
        return list(h2.connection._decode_headers(self._h2.decoder, block))  # noqa: SLF001 - it makes H2Errors of hpack's

    def _on_window(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != _FOUR.size:
            raise h2.exceptions.FrameDataMissingError("a WINDOW_UPDATE is malformed")
        (size,) = _FOUR.unpack(payload)
        size &= _MOST_WINDOW
        if not size:
            raise _violation("a window is opened by nothing")
        if stream_id:
            stream = self._stream(stream_id)
            if stream is not None:
                stream.window = _widened(stream.window, size)
                self._listener.heard_window(stream)
        else:
            self.window = _widened(self.window, size)
            self._listener.heard_window(None)

    def _on_reset(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != _FOUR.size:
            raise h2.exceptions.FrameDataMissingError("a RST_STREAM is malformed")
        stream = self._stream(stream_id)
        if stream is not None:
            self._listener.heard_reset(stream, _FOUR.unpack(payload)[0])

    def _leave_to_library(self, frame: bytes) -> None:
        events = self._h2.receive_data(frame)
        self._take_library_output()
        for event in events:
            if isinstance(event, h2.events.RemoteSettingsChanged):
                self._on_settings(event)

    def _on_settings(self, event: h2.events.RemoteSettingsChanged) -> None:
        window = self._h2.remote_settings.initial_window_size
        difference = window - self._stream_window
        self._stream_window = window
        if difference:
            for stream in self.live.values():
                stream.window = _widened(stream.window, difference)
        table = event.changed_settings.get(h2.settings.SettingCodes.HEADER_TABLE_SIZE)
        if table is not None:
            self._requests.limit_table(table.new_value)
        self._listener.heard_settings()

    def _take_library_output(self) -> None:
        if data := self._h2.data_to_send():
            self._out.append(data)


def _library_state() -> h2.connection.H2Connection:
    """Return `h2`'s side of a connection, with our settings queued behind the preface."""
    state = h2.connection.H2Connection(
        h2.config.H2Configuration(client_side=True, header_encoding=None)
    )
    codes = h2.settings.SettingCodes
    state.local_settings = h2.settings.Settings(
        client=True,
        initial_values={
            codes.ENABLE_PUSH: 0,
            codes.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
            codes.MAX_FRAME_SIZE: MAX_FRAME_BYTES,
            codes.MAX_HEADER_LIST_SIZE: MAX_HEADER_LIST_BYTES,
        },
    )
    state.max_inbound_frame_size = MAX_FRAME_BYTES
    state.decoder.max_header_list_size = MAX_HEADER_LIST_BYTES
    state.initiate_connection()
    return state


def _violation(text: str) -> h2.exceptions.ProtocolError:
    return h2.exceptions.ProtocolError(text)


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise _violation("a frame has more padding than bytes")
    return payload[1 : len(payload) - payload[0]]


def _widened(window: int, size: int) -> int:
    if window + size > _MOST_WINDOW:
        raise h2.exceptions.FlowControlError("a window is opened too far")
    return window + size
