"""A client that knows nothing: bytes out, bytes in, and how the connection ended."""

from __future__ import annotations

import urllib.parse
from typing import Any

import anyio
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import msgspec
from anyio.abc import SocketStream

PATH = "/api/v1/client/config"
BODY = b'{"sdk_version":"0.38.0"}'


class Heard(msgspec.Struct):
    """What a server sent, and `eof`, `reset` or `silence` for how it ended."""

    data: bytes
    end: str

    @property
    def status(self) -> int:
        return int(self.data.split(b" ", 2)[1])

    @property
    def headers(self) -> dict[str, str]:
        lines = self.data.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
        return {name: value for name, _, value in (line.partition(": ") for line in lines)}

    @property
    def body(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[2]

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


async def connected(url: str) -> SocketStream:
    parts = urllib.parse.urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return await anyio.connect_tcp(parts.hostname, parts.port)


def request_bytes(path: str = PATH, body: bytes = BODY, *, announce: int | None = None) -> bytes:
    size = len(body) if announce is None else announce
    return f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\n\r\n".encode() + body


async def listen(stream: SocketStream, *, for_s: float = 5.0) -> Heard:
    """Read until a whole answer is there, the connection ends, or nothing comes."""
    heard = Heard(b"", "silence")
    with anyio.move_on_after(for_s):
        try:
            while not _whole(heard):
                heard.data += await stream.receive()
            heard.end = "whole"
        except anyio.EndOfStream:
            heard.end = "eof"
        except anyio.BrokenResourceError:
            heard.end = "reset"
    return heard


def _whole(heard: Heard) -> bool:
    if b"\r\n\r\n" not in heard.data:
        return False
    return len(heard.body) >= int(heard.headers.get("content-length", "0"))


async def exchange(url: str, path: str = PATH, body: bytes = BODY, *, for_s: float = 5.0) -> Heard:
    """Send one request on a connection of its own and return what came back."""
    async with await connected(url) as stream:
        try:
            await stream.send(request_bytes(path, body))
        except anyio.BrokenResourceError:
            return Heard(b"", "reset")
        return await listen(stream, for_s=for_s)


class H2Client:
    """An HTTP/2 client that keeps every event of a stream."""

    def __init__(self, stream: SocketStream) -> None:
        self.stream = stream
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.events: list[h2.events.Event] = []
        self.end = ""

    async def start(self) -> None:
        """Exchange settings, so that the server's windows hold."""
        await self.flush()
        while not self.seen(h2.events.SettingsAcknowledged):
            await self.step()

    async def flush(self) -> None:
        if data := self.h2.data_to_send():
            await self.stream.send(data)

    async def step(self) -> None:
        try:
            data = await self.stream.receive()
        except anyio.EndOfStream:
            self.end = "eof"
        except anyio.BrokenResourceError:
            self.end = "reset"
        else:
            self.events += self.h2.receive_data(data)
            await self.flush()

    def seen(self, kind: type[h2.events.Event], stream_id: int | None = None) -> list[Any]:
        return [
            event
            for event in self.events
            if isinstance(event, kind)
            and (stream_id is None or getattr(event, "stream_id", None) == stream_id)
        ]

    async def ask(self, path: str = PATH, body: bytes = BODY) -> int:
        stream_id = self.h2.get_next_available_stream_id()
        names = [(":method", "POST"), (":path", path), (":scheme", "http"), (":authority", "x")]
        self.h2.send_headers(stream_id, [*names, ("content-length", str(len(body)))])
        await self.flush()
        return stream_id

    async def send_body(self, stream_id: int, body: bytes = BODY) -> None:
        """Send a body as its window allows."""
        self.h2.send_data(stream_id, body, end_stream=True)
        await self.flush()

    async def until_over(self, stream_id: int, *, for_s: float = 5.0) -> None:
        """Read until a stream or the connection is over."""
        kinds = (h2.events.StreamEnded, h2.events.StreamReset)
        with anyio.move_on_after(for_s):
            while not self.end and not any(self.seen(kind, stream_id) for kind in kinds):
                await self.step()

    def body_of(self, stream_id: int) -> bytes:
        return b"".join(event.data for event in self.seen(h2.events.DataReceived, stream_id))

    def status_of(self, stream_id: int) -> int:
        (event,) = self.seen(h2.events.ResponseReceived, stream_id)
        return int(dict(event.headers)[":status"])
