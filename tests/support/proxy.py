"""An HTTP proxy on loopback: tunnels by CONNECT, forwards plain requests, and asks for a password."""

from __future__ import annotations

import base64
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import anyio
import anyio.abc
from anyio.streams.tls import TLSListener

GONE = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)


class Proxy:
    """Counts what goes through it. `answer` is said to every request instead, if it is set."""

    def __init__(self, password: str | None) -> None:
        self.port = 0
        self.tunnels: list[str] = []
        """`host:port` of each CONNECT that was let in."""
        self.forwarded: list[str] = []
        """The URL of each request that was passed on."""
        self.heads: list[bytes] = []
        """Of everything that was asked, the head as it came."""
        self.answer: bytes | None = None
        self.names: dict[str, int] = {}
        """Ports of names that only the proxy knows."""
        self._authorization = None
        if password is not None:
            self._authorization = b"Basic " + base64.b64encode(password.encode())

    async def serve(self, stream: anyio.abc.ByteStream) -> None:
        """Serve one connection."""
        async with stream:
            try:
                while await self._request(stream):
                    pass
            except GONE:
                pass

    async def _request(self, stream: anyio.abc.ByteStream) -> bool:
        pending = b""
        while b"\r\n\r\n" not in pending:
            pending += await stream.receive()
        head, _, pending = pending.partition(b"\r\n\r\n")
        self.heads.append(head)
        lines = head.split(b"\r\n")
        pairs = [line.partition(b": ") for line in lines[1:]]
        headers = {name.lower(): value for name, _, value in pairs}
        if self.answer is not None:
            await stream.send(self.answer)
            return False
        if self._authorization not in (None, headers.get(b"proxy-authorization")):
            await stream.send(b"HTTP/1.1 407 No\r\ncontent-length: 0\r\n\r\n")
            return False
        method, target, _ = lines[0].split(b" ")
        if method == b"CONNECT":
            self.tunnels.append(target.decode())
            await self._tunnel(stream, target.decode())
            return False
        body = pending
        while len(body) < int(headers.get(b"content-length", b"0")):
            body += await stream.receive()
        self.forwarded.append(target.decode())
        await self._forward(stream, target.decode(), lines, body)
        return True

    def _address(self, text: str) -> tuple[str, int]:
        host, _, port = text.rpartition(":")
        return "127.0.0.1", self.names.get(host, int(port))

    async def _tunnel(self, stream: anyio.abc.ByteStream, target: str) -> None:
        async with await anyio.connect_tcp(*self._address(target)) as far:
            # The last bytes of the answer come with the first of the server's, if it speaks first.
            await stream.send(b"HTTP/1.1 200 Fine\r\nvia: test\r\n\r\n")
            async with anyio.create_task_group() as tasks:

                async def pump(source: anyio.abc.ByteStream, sink: anyio.abc.ByteStream) -> None:
                    try:
                        async for data in source:
                            await sink.send(data)
                    except GONE:
                        pass
                    tasks.cancel_scope.cancel()

                tasks.start_soon(pump, stream, far)
                await pump(far, stream)

    async def _forward(
        self, stream: anyio.abc.ByteStream, url: str, lines: list[bytes], body: bytes
    ) -> None:
        parts = urlsplit(url)
        async with await anyio.connect_tcp(*self._address(f"{parts.hostname}:{parts.port}")) as far:
            kept = [line for line in lines[1:] if not line.lower().startswith(b"proxy-")]
            path = f"{parts.path}?{parts.query}" if parts.query else parts.path
            first = lines[0].split(b" ")[0] + b" " + path.encode() + b" HTTP/1.1"
            await far.send(b"\r\n".join([first, *kept, b"", b""]) + body)
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += await far.receive()
            head, _, content = answer.partition(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            while len(content) < size:
                content += await far.receive()
            await stream.send(head + b"\r\n\r\n" + content)


@asynccontextmanager
async def running_proxy(
    *, password: str | None = None, ssl_context: ssl.SSLContext | None = None
) -> AsyncGenerator[Proxy]:
    """Run a proxy for a block.

    Args:
        password: `user:password`, if it wants one.
        ssl_context: Of the proxy, to be spoken to by https.
    """
    proxy = Proxy(password)
    tcp = await anyio.create_tcp_listener(local_host="127.0.0.1")
    proxy.port = tcp.extra(anyio.abc.SocketAttribute.local_port)
    listener: anyio.abc.Listener[anyio.abc.ByteStream] = tcp
    if ssl_context is not None:
        listener = TLSListener(tcp, ssl_context, standard_compatible=False)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, proxy.serve)
        yield proxy
        tasks.cancel_scope.cancel()
