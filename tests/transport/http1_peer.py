"""An HTTP/1.1 server on a bare socket that a test scripts byte by byte."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import anyio
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.buffered import BufferedByteReceiveStream

GONE = (
    anyio.EndOfStream,
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    anyio.IncompleteRead,
)


class Wire:
    """The server's side of one connection."""

    def __init__(self, stream: ByteStream, number: int) -> None:
        self.stream = stream
        self.number = number
        """0 for the first connection of the server."""
        self._buffered = BufferedByteReceiveStream(stream)

    async def head(self) -> bytes:
        """Read a request up to its empty line."""
        return await self._buffered.receive_until(b"\r\n\r\n", 65_536)

    async def request(self) -> tuple[bytes, bytes]:
        """Read a request; return head and body."""
        head = await self.head()
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                return head, await self._buffered.receive_exactly(int(value))
        return head, b""

    async def send(self, data: bytes) -> None:
        await self.stream.send(data)

    async def answer(self, body: bytes = b"", *headers: bytes) -> None:
        """Send a whole response."""
        lines = [b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *headers, b"", body]
        await self.send(b"\r\n".join(lines))

    async def gone(self) -> None:
        """Wait until the client has closed the connection."""
        with suppress(*GONE):
            while True:
                await self._buffered.receive()


async def echo(wire: Wire) -> None:
    """Answer each request with its own body."""
    while True:
        _, body = await wire.request()
        await wire.answer(body)


class Server:
    """Where the server listens, and how many connections it has had."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.connections = 0


@asynccontextmanager
async def http1_server(script: Callable[[Wire], Awaitable[None]]) -> AsyncIterator[Server]:
    """Run a script for each connection made within the block."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    server = Server(listener.extra(SocketAttribute.local_port))

    async def connected(stream: ByteStream) -> None:
        wire = Wire(stream, server.connections)
        server.connections += 1
        async with stream:
            with suppress(*GONE):
                await script(wire)

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, connected)
        yield server
        tasks.cancel_scope.cancel()
