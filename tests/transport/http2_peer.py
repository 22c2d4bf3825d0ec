"""An HTTP/2 server that a test scripts frame by frame, on the `h2` library."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import anyio
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from anyio.abc import ByteStream, SocketAttribute

E = TypeVar("E", bound=h2.events.Event)
GONE = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)


class Peer:
    """The server's side of one connection."""

    def __init__(self, stream: ByteStream, *, settings: dict[int, int], acks: bool) -> None:
        self.stream = stream
        self.acks = acks
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding=None)
        )
        self.h2.local_settings.update(settings)
        self.h2.local_settings.acknowledge()
        self.h2.initiate_connection()
        self.bodies: dict[int, bytearray] = {}
        self.log: list[h2.events.Event] = []
        self._events: list[h2.events.Event] = []
        self._sending = anyio.Lock()

    async def flush(self) -> None:
        async with self._sending:
            if data := self.h2.data_to_send():
                await self.stream.send(data)

    async def event(self) -> h2.events.Event:
        """Return the next event; bodies are collected and, if wanted, acknowledged."""
        while not self._events:
            await self.flush()
            self._events = self.h2.receive_data(await self.stream.receive())
        event = self._events.pop(0)
        self.log.append(event)
        if isinstance(event, h2.events.DataReceived):
            assert event.stream_id is not None
            self.bodies.setdefault(event.stream_id, bytearray()).extend(event.data or b"")
            if self.acks and event.flow_controlled_length:
                with suppress(h2.exceptions.StreamClosedError):
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        return event

    async def until(self, kind: type[E], **fields: Any) -> E:
        """Return the next event of a kind whose attributes are as given."""
        while True:
            event = await self.event()
            if isinstance(event, kind) and all(
                getattr(event, name) == value for name, value in fields.items()
            ):
                return event

    async def request(self) -> int:
        """Wait for the next request to have arrived whole; return its stream id."""
        return (await self.until(h2.events.StreamEnded)).stream_id or 0

    def headers(self, stream_id: int) -> dict[bytes, bytes]:
        """Return the headers of a request that has arrived."""
        for event in self.log:
            if isinstance(event, h2.events.RequestReceived) and event.stream_id == stream_id:
                return dict(event.headers or ())
        raise KeyError(stream_id)

    async def answer(
        self, stream_id: int, body: bytes = b"", *, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        """Send a whole response, as the client's windows allow."""
        # A client that has cancelled the request wants no answer any more.
        with suppress(h2.exceptions.StreamClosedError):
            self.h2.send_headers(stream_id, [(b":status", b"200"), *headers])
            await self._send_body(stream_id, body)
            self.h2.end_stream(stream_id)
        await self.flush()

    async def _send_body(self, stream_id: int, body: bytes) -> None:
        start = 0
        while start < len(body):
            room = min(
                self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size
            )
            if room <= 0:
                await self.flush()
                self._events += self.h2.receive_data(await self.stream.receive())
                continue
            self.h2.send_data(stream_id, body[start : start + room])
            start += room
            await self.flush()

    async def gone(self) -> None:
        """Wait until the client has closed the connection."""
        with suppress(*GONE):
            while True:
                await self.event()


async def echo(peer: Peer) -> None:
    """Answer each request with its own body."""
    while True:
        stream_id = await peer.request()
        await peer.answer(stream_id, bytes(peer.bodies.pop(stream_id, b"")))


class Server:
    """Where the peers listen, and those that have connected."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.peers: list[Peer] = []


@asynccontextmanager
async def http2_server(
    script: Callable[[Peer], Awaitable[None]],
    *,
    settings: dict[int, int] | None = None,
    acks: bool = True,
) -> AsyncIterator[Server]:
    """Run a script for each connection made within the block."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    server = Server(listener.extra(SocketAttribute.local_port))

    async def connected(stream: ByteStream) -> None:
        peer = Peer(stream, settings=settings or {}, acks=acks)
        server.peers.append(peer)
        async with stream:
            try:
                await peer.flush()
                await script(peer)
            except* GONE:
                pass

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, connected)
        yield server
        tasks.cancel_scope.cancel()
