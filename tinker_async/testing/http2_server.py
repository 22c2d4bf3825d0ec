"""One HTTP/2 connection of the fake server, on the `h2` library, and its faults.

One task reads, one task answers each stream. The rule: whatever `h2` wants to send is
written before anything is waited for, by one writer at a time.
"""

from __future__ import annotations

import struct
from contextlib import suppress

import anyio
import anyio.abc
import h2.config
import h2.connection
import h2.events
import h2.exceptions
from anyio.abc import ByteStream
from h2.settings import SettingCodes

from tinker_async.testing import faults
from tinker_async.testing.answers import Answer
from tinker_async.testing.exchange import Desk, Exchange
from tinker_async.testing.sockets import reset, split

_STREAM_WINDOW_BYTES = 1 << 20
_CREDIT_BYTES = 1 << 30
"""Window of the connection, so that only streams can stall."""
_GOAWAY = 7
_REFUSED_STREAM = 7


class _Stream:
    """A request that is arriving or being answered."""

    def __init__(self, exchange: Exchange, half_bytes: int) -> None:
        self.exchange = exchange
        self.body = bytearray()
        self.half_bytes = half_bytes
        self.scope = anyio.CancelScope()
        self.room = anyio.Event()
        """Set when the client has given window."""


class Http2Connection:
    """Serves streams until one side closes."""

    def __init__(self, desk: Desk, stream: ByteStream, first: bytes) -> None:
        self._desk = desk
        self._stream = stream
        self._first = first
        self._stalls = desk.faults.any_of(faults.FlowStall)
        """Whether windows are given stream by stream, so that one can go without."""
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding=None)
        )
        self._streams: dict[int, _Stream] = {}
        self._sending = anyio.Lock()
        self._last_id: int | None = None
        """Set by GOAWAY: later streams are not looked at, and the connection ends with the last."""

    async def run(self) -> None:
        """Serve.

        Raises:
            OSError, anyio.EndOfStream, ...: The client has left.
        """
        self._h2.initiate_connection()
        self._h2.update_settings(
            {
                SettingCodes.MAX_CONCURRENT_STREAMS: 1000,
                SettingCodes.INITIAL_WINDOW_SIZE: 0 if self._stalls else _STREAM_WINDOW_BYTES,
            }
        )
        self._h2.increment_flow_control_window(_CREDIT_BYTES)
        gone: list[Exception] = []
        try:
            async with anyio.create_task_group() as self._tasks:
                try:
                    await self._read()
                except (OSError, anyio.EndOfStream, anyio.BrokenResourceError) as error:
                    gone.append(error)
                except h2.exceptions.ProtocolError:
                    await self._flush()
                self._tasks.cancel_scope.cancel()
        finally:
            for stream in self._streams.values():
                stream.exchange.lost()
        if gone:
            raise gone[0]

    async def _read(self) -> None:
        data = self._first
        while True:
            for event in self._h2.receive_data(data):
                await self._take(event)
            await self._flush()
            data = await self._stream.receive()

    async def _flush(self) -> None:
        async with self._sending:
            if data := self._h2.data_to_send():
                await self._stream.send(data)

    async def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            await self._begin(event)
        elif isinstance(event, h2.events.DataReceived):
            self._take_data(event)
        elif isinstance(event, h2.events.StreamEnded):
            self._arrived(event.stream_id or 0)
        elif isinstance(event, h2.events.StreamReset):
            stream = self._streams.get(event.stream_id or 0)
            if stream is not None:
                stream.scope.cancel()
                self._forget(event.stream_id or 0)
        elif isinstance(event, (h2.events.WindowUpdated, h2.events.RemoteSettingsChanged)):
            for stream in self._streams.values():
                stream.room.set()
                stream.room = anyio.Event()

    # A request comes in

    async def _begin(self, event: h2.events.RequestReceived) -> None:
        stream_id = event.stream_id or 0
        if self._last_id is not None and stream_id > self._last_id:
            return
        headers = {bytes(name): bytes(value) for name, value in event.headers or ()}
        method, target = headers[b":method"].decode(), headers[b":path"].decode("latin-1")
        exchange = Exchange(self._desk, method, target, headers)
        stream = _Stream(exchange, int(headers.get(b"content-length", b"0")) // 2)
        self._streams[stream_id] = stream
        fault = exchange.fault
        if isinstance(fault, faults.Reset) and fault.when == "before":
            self._abort()
        elif isinstance(fault, (faults.Refuse, faults.RstStream)):
            code = fault.code if isinstance(fault, faults.RstStream) else _REFUSED_STREAM
            self._h2.reset_stream(stream_id, code)
            self._forget(stream_id)
        elif isinstance(fault, faults.GoAway) and not fault.processed:
            await self._go_away(stream_id - 2)
            self._forget(stream_id)
        elif self._stalls and not isinstance(fault, faults.FlowStall):
            self._h2.increment_flow_control_window(_STREAM_WINDOW_BYTES, stream_id)

    def _take_data(self, event: h2.events.DataReceived) -> None:
        stream_id = event.stream_id or 0
        stream = self._streams.get(stream_id)
        fault = stream.exchange.fault if stream is not None else None
        if event.flow_controlled_length and not isinstance(fault, faults.FlowStall):
            with suppress(h2.exceptions.StreamClosedError):
                self._h2.acknowledge_received_data(event.flow_controlled_length, stream_id)
        if stream is None:
            return
        stream.body += event.data or b""
        within = isinstance(fault, faults.Reset) and fault.when == "within"
        if within and len(stream.body) >= stream.half_bytes:
            self._abort()

    def _arrived(self, stream_id: int) -> None:
        """A request is there as a whole: answer it, unless its fault is against it."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if isinstance(stream.exchange.fault, faults.Reset):
            self._abort()
        elif not isinstance(stream.exchange.fault, faults.FlowStall):
            self._tasks.start_soon(self._serve, stream_id, stream)

    # An answer goes out

    async def _serve(self, stream_id: int, stream: _Stream) -> None:
        with stream.scope:
            answer = await stream.exchange.answer(bytes(stream.body))
            # A client that has reset the stream, or left, wants no answer any more.
            with suppress(h2.exceptions.ProtocolError, OSError, anyio.BrokenResourceError):
                await self._deliver(stream_id, stream, answer)
        if stream_id in self._streams:
            self._forget(stream_id)

    async def _deliver(self, stream_id: int, stream: _Stream, answer: Answer) -> None:
        fault, body = stream.exchange.fault, answer.body
        if isinstance(fault, faults.DropReply):
            self._abort()
            return
        if isinstance(fault, faults.GoAway):
            await self._go_away(stream_id)
        headers = [
            (b":status", b"%d" % answer.status),
            (b"content-type", answer.content_type),
            (b"content-length", b"%d" % len(body)),
            *answer.headers,
        ]
        self._h2.send_headers(stream_id, headers)
        if isinstance(fault, faults.Truncate):
            body = body[: int(len(body) * fault.keep)]
        if isinstance(fault, faults.Trickle):
            *pieces, body = split(body, fault.chunk_bytes) or [b""]
            for piece in pieces:
                await self._send(stream_id, stream, piece)
                await self._flush()
                await anyio.sleep(fault.pause_s)
        await self._send(stream_id, stream, body)
        self._h2.end_stream(stream_id)
        await self._flush_last(stream.exchange)

    async def _flush_last(self, exchange: Exchange) -> None:
        if isinstance(exchange.fault, faults.Truncate):
            await self._flush()
            return
        exchange.answered()
        try:
            await self._flush()
        except (OSError, anyio.BrokenResourceError):
            exchange.revoked()
            raise

    async def _send(self, stream_id: int, stream: _Stream, body: bytes) -> None:
        start = 0
        while start < len(body):
            room = min(
                self._h2.local_flow_control_window(stream_id), self._h2.max_outbound_frame_size
            )
            if room > 0:
                self._h2.send_data(stream_id, body[start : start + room])
                start += room
            else:
                await self._flush()
                await self._wait_for_room(stream_id, stream)

    async def _wait_for_room(self, stream_id: int, stream: _Stream) -> None:
        room = stream.room
        if self._h2.local_flow_control_window(stream_id) <= 0:
            await room.wait()

    # Ends

    def _forget(self, stream_id: int) -> None:
        self._streams.pop(stream_id).exchange.lost()  # unless it was answered
        if self._last_id is not None and not self._streams:
            self._tasks.cancel_scope.cancel()

    def _abort(self) -> None:
        """Reset the connection, and with it all its streams."""
        reset(self._stream)
        self._tasks.cancel_scope.cancel()

    async def _go_away(self, last_id: int) -> None:
        """Take no later streams. Written by hand: `h2` would end the connection at once."""
        self._last_id = max(last_id, 0)
        await self._flush()
        frame = struct.pack(">HBBBIII", 0, 8, _GOAWAY, 0, 0, self._last_id, 0)
        async with self._sending:
            await self._stream.send(frame)
