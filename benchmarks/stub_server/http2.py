"""One HTTP/2 connection of the stub: frames cut and made by hand, header blocks cached.

Flow control is kept exactly in the direction of the client. In the other one the windows are
so large that a request body never waits.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections import deque
from typing import cast

from benchmarks.stub_server.answers import Answer, Asked, Desk
from benchmarks.stub_server.hpack import Head, HeadReader

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 6, 8, 9
_END_STREAM, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x4, 0x8, 0x20
_STREAM_WINDOW_BYTES = 16 << 20
_CONNECTION_WINDOW_BYTES = (1 << 31) - 1
_CREDIT_BYTES = 64 << 20
_JSON, _PROTOBUF = b"application/json", b"application/x-protobuf"
_STATUS = {200: b"\x88", 404: b"\x8d"}


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """Return a frame."""
    head = struct.pack(">I", len(payload) << 8 | kind) + struct.pack(">BI", flags, stream_id)
    return head + payload


def greeting(max_streams: int) -> bytes:
    """Return the SETTINGS and the large connection window that every connection starts with."""
    settings = struct.pack(">HIHI", 3, max_streams, 4, _STREAM_WINDOW_BYTES)
    more = struct.pack(">I", _CONNECTION_WINDOW_BYTES - 65_535)
    return frame(_SETTINGS, 0, 0, settings) + frame(_WINDOW, 0, 0, more)


class _Stream:
    __slots__ = ("body", "head", "rest", "timer", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self.head: Head | None = None
        self.body: list[bytes] = []
        self.rest = memoryview(b"")
        self.timer: asyncio.TimerHandle | None = None


class Http2Connection(asyncio.Protocol):
    """Serves one connection whose preface was seen; call `data_received` with it."""

    def __init__(self, desk: Desk, transport: asyncio.Transport, max_streams: int) -> None:
        self._desk = desk
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._heads = HeadReader()
        self._buffer = b""
        self._out: list[bytes] = [greeting(max_streams)]
        self._preface = True
        self._streams: dict[int, _Stream] = {}
        self._blocked: deque[int] = deque()
        self._window = 65_535
        self._stream_window = 65_535
        self._frame_bytes = 16_384
        self._credit = 0
        self._types: list[bytes] = []
        self._indexes = True
        self._headers = b""

    def connection_lost(self, _error: Exception | None) -> None:
        for stream in self._streams.values():
            if stream.timer is not None:
                stream.timer.cancel()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        at, end = 0, len(buffer)
        if self._preface:
            if end < len(PREFACE):
                self._buffer = buffer
                return
            self._preface, at = False, len(PREFACE)
        while end - at >= 9:
            size = int.from_bytes(buffer[at : at + 3], "big")
            if end - at < 9 + size:
                break
            kind, flags = buffer[at + 3], buffer[at + 4]
            stream_id = int.from_bytes(buffer[at + 5 : at + 9], "big")
            self._take(kind, flags, stream_id, buffer[at + 9 : at + 9 + size])
            at += 9 + size
        self._buffer = buffer[at:]
        if self._credit >= _CREDIT_BYTES:
            self._out.append(frame(_WINDOW, 0, 0, struct.pack(">I", self._credit)))
            self._credit = 0
        self._flush()

    def _flush(self) -> None:
        if self._out:
            self._transport.write(b"".join(self._out))
            self._out.clear()

    def _take(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == _DATA:
            self._on_data(flags, stream_id, payload)
        elif kind in {_HEADERS, _CONTINUATION}:
            self._on_headers(kind, flags, stream_id, payload)
        elif kind == _WINDOW:
            self._on_window(stream_id, int.from_bytes(payload, "big"))
        elif kind == _SETTINGS and not flags & 1:
            self._on_settings(payload)
        elif kind == _PING and not flags & 1:
            self._out.append(frame(_PING, 1, 0, payload))
        elif kind == _RST:
            stream = self._streams.pop(stream_id, None)
            if stream is not None and stream.timer is not None:
                stream.timer.cancel()

    def _on_headers(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == _HEADERS:
            pad = payload[0] if flags & _PADDED else 0
            start = (1 if flags & _PADDED else 0) + (5 if flags & _PRIORITY else 0)
            self._headers = payload[start : len(payload) - pad]
            self._streams[stream_id] = _Stream(self._stream_window)
        else:
            self._headers += payload
        if flags & _END_HEADERS:
            self._streams[stream_id].head = self._heads.read(self._headers)
        if flags & _END_STREAM and kind == _HEADERS:
            self._asked(stream_id)

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._credit += len(payload)
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if flags & _PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        stream.body.append(payload)
        if flags & _END_STREAM:
            self._asked(stream_id)

    def _on_settings(self, payload: bytes) -> None:
        for at in range(0, len(payload), 6):
            name, value = struct.unpack_from(">HI", payload, at)
            if name == 1:
                self._indexes = value >= 200
            elif name == 4:
                for stream in self._streams.values():
                    stream.window += value - self._stream_window
                self._stream_window = value
            elif name == 5:
                self._frame_bytes = value
        self._out.append(frame(_SETTINGS, 1, 0, b""))

    def _on_window(self, stream_id: int, more: int) -> None:
        if stream_id == 0:
            self._window += more
        elif stream_id in self._streams:
            self._streams[stream_id].window += more
        waiting, self._blocked = self._blocked, deque()
        for blocked in waiting:
            if blocked in self._streams:
                self._send_data(blocked)

    # Answers

    def _asked(self, stream_id: int) -> None:
        stream = self._streams[stream_id]
        head = cast("Head", stream.head)
        body = stream.body[0] if len(stream.body) == 1 else b"".join(stream.body)
        stream.body = []
        answer = self._desk.answer(head.path, Asked(body, head.wants_protobuf, head.is_zstd))
        if answer.due_ns and (wait_ns := answer.due_ns - time.monotonic_ns()) > 0:
            stream.timer = self._loop.call_later(wait_ns / 1e9, self._send_late, stream_id, answer)
        else:
            self._send(stream_id, answer)

    def _send_late(self, stream_id: int, answer: Answer) -> None:
        self._send(stream_id, answer)
        self._flush()

    def _send(self, stream_id: int, answer: Answer) -> None:
        kind = _PROTOBUF if answer.is_protobuf else _JSON
        body = answer.content()
        block = _STATUS[answer.status] + self._content_type(kind) + _length(len(body))
        self._out.append(frame(_HEADERS, _END_HEADERS, stream_id, block))
        self._streams[stream_id].rest = memoryview(body)
        self._send_data(stream_id)

    def _content_type(self, kind: bytes) -> bytes:
        """Spell it the first time; later it is an entry of the peer's table."""
        if not self._indexes:
            return b"\x0f\x10" + bytes((len(kind),)) + kind
        if kind in self._types:
            return bytes((0x80 | 62 + len(self._types) - 1 - self._types.index(kind),))
        self._types.append(kind)
        return b"\x5f" + bytes((len(kind),)) + kind

    def _send_data(self, stream_id: int) -> None:
        stream = self._streams[stream_id]
        while True:
            size = min(len(stream.rest), self._frame_bytes, self._window, stream.window)
            if size <= 0 and stream.rest:
                self._blocked.append(stream_id)
                return
            piece, stream.rest = stream.rest[:size], stream.rest[size:]
            self._window -= size
            stream.window -= size
            last = not stream.rest
            self._out.append(frame(_DATA, _END_STREAM if last else 0, stream_id, bytes(piece)))
            if last:
                del self._streams[stream_id]
                return


def _length(size: int) -> bytes:
    digits = b"%d" % size
    return b"\x0f\x0d" + bytes((len(digits),)) + digits
