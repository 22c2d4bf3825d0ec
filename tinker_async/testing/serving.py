"""The fake server's listener: one port for HTTP/1.1 and HTTP/2, with or without TLS.

It owns the task group in which connections live. The rule: when the block is left, no
task and no socket remains; what the block raised leaves as itself.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import anyio
from anyio.abc import ByteStream, SocketAttribute, SocketStream
from anyio.streams.tls import TLSStream

from tinker_async.lone_errors import lone_errors
from tinker_async.testing import faults
from tinker_async.testing.exchange import Desk
from tinker_async.testing.http1_server import Http1Connection
from tinker_async.testing.script import CONNECT
from tinker_async.testing.sockets import reset

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_GONE = (
    OSError,
    anyio.EndOfStream,
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
)
"""What a connection may end in when the other side leaves."""


@asynccontextmanager
async def served(
    desk: Desk, *, host: str, port: int, ssl_context: ssl.SSLContext | None
) -> AsyncGenerator[str]:
    """Serve for the length of a block, and give the base URL."""
    listener = await anyio.create_tcp_listener(local_host=host, local_port=port)
    found = listener.extra(SocketAttribute.local_port)  # noqa: S610  # not Django
    front = _Front(desk, ssl_context)
    async with listener:
        with lone_errors():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listener.serve, front.connected)
                try:
                    yield f"{'http' if ssl_context is None else 'https'}://{host}:{found}"
                finally:
                    tasks.cancel_scope.cancel()


class _Front:
    def __init__(self, desk: Desk, ssl_context: ssl.SSLContext | None) -> None:
        self._desk = desk
        self._ssl_context = ssl_context

    async def connected(self, raw: SocketStream) -> None:
        """Serve one connection to its end."""
        ledger = self._desk.ledger
        ledger.connections += 1
        ledger.open_connections += 1
        try:
            async with raw:
                with suppress(*_GONE):
                    await self._speak(raw)
        finally:
            ledger.open_connections -= 1

    async def _speak(self, raw: SocketStream) -> None:
        fault = self._desk.faults.choose(CONNECT)
        if isinstance(fault, faults.TlsDrop):
            await raw.receive()  # the client has begun the handshake
            return
        if fault is not None:
            reset(raw)
            return
        stream: ByteStream = raw
        if self._ssl_context is not None:
            stream = await TLSStream.wrap(
                raw, server_side=True, ssl_context=self._ssl_context, standard_compatible=False
            )
        first = await stream.receive()
        while len(first) < len(PREFACE) and PREFACE.startswith(first):
            first += await stream.receive()
        if first.startswith(PREFACE):
            from tinker_async.testing.http2_server import Http2Connection  # noqa: PLC0415

            await Http2Connection(self._desk, stream, first).run()
        else:
            await Http1Connection(self._desk, stream, first).run()
