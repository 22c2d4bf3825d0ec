"""A file host on bare sockets that a test makes misbehave, and what hands out its URLs."""

from __future__ import annotations

import functools
import hashlib
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import ByteStream, Listener, SocketAttribute
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.tls import TLSListener

from tinker_async.api.retry import RetryPolicy
from tinker_async.config import Config, resolve_config
from tinker_async.download import disk
from tinker_async.download.checkpoint import download_checkpoint
from tinker_async.download.records import DownloadedCheckpoint

GONE = (
    anyio.EndOfStream,
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    anyio.IncompleteRead,
)
EXTERNAL = "tinker://run-1/external_weights/final"
TRAINING = "tinker://run-1/weights/final"
KEY = "tml-secret-of-the-tests"
flush = disk._flush
"""As programs have it: tests do not wait for the disk, unless they are about that."""
QUICK = RetryPolicy(max_attempts=4, base_s=0.001, max_s=0.002)


@dataclass
class Asked:
    """A request that came."""

    path: str
    headers: dict[str, str]
    number: int
    """Of this path, from 0."""

    @property
    def name(self) -> str:
        return self.path.partition("?")[0].lstrip("/")

    @property
    def first(self) -> int | None:
        """Where the range begins that it wants."""
        wanted = self.headers.get("range")
        return None if wanted is None else int(wanted.removeprefix("bytes=").rstrip("-"))


@dataclass
class Reply:
    """What is sent: `cut` closes the connection after so many bytes of the body."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None
    chunked: bool = False
    hold: anyio.Event | None = None
    """Waited for after the body (or its cut) was sent, before anything else happens."""


@functools.cache
def etag_of(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def file_reply(asked: Asked, content: bytes, *, etag: str | None = "") -> Reply:
    """The reply of a good host. `etag=None` sends none."""
    tag = etag_of(content) if etag == "" else etag
    headers = {} if tag is None else {"ETag": tag}
    first, condition = asked.first, asked.headers.get("if-range")
    if first is None or (condition is not None and condition != tag):
        return Reply(200, headers, content)
    if first >= len(content):
        return Reply(416, {**headers, "Content-Range": f"bytes */{len(content)}"})
    span = f"bytes {first}-{len(content) - 1}/{len(content)}"
    return Reply(206, {**headers, "Content-Range": span}, content[first:])


class Host:
    """Where the host listens, what it has, and what was asked."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.files: dict[str, bytes] = {}
        self.behave: Callable[[Asked], Reply | None] = lambda asked: None
        """Returns a reply, or None for the right one."""
        self.asked: list[Asked] = []
        self.sent_bytes = 0
        self.busy = 0
        self.most_busy = 0

    def reply(self, asked: Asked) -> Reply:
        found = self.behave(asked)
        if found is not None:
            return found
        content = self.files.get(asked.name)
        return Reply(404) if content is None else file_reply(asked, content)

    async def serve(self, stream: ByteStream) -> None:
        async with stream:
            with suppress(*GONE):
                await self._serve(stream, BufferedByteReceiveStream(stream))

    async def _serve(self, stream: ByteStream, buffered: BufferedByteReceiveStream) -> None:
        while True:
            head = (await buffered.receive_until(b"\r\n\r\n", 65_536)).decode("latin-1")
            first, *lines = head.split("\r\n")
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
            path = first.split(" ")[1]
            number = sum(one.path.partition("?")[0] == path.partition("?")[0] for one in self.asked)
            asked = Asked(path, headers, number)
            self.asked.append(asked)
            self.busy += 1
            self.most_busy = max(self.busy, self.most_busy)
            try:
                if not await self._send(stream, self.reply(asked)):
                    return
            finally:
                self.busy -= 1

    async def _send(self, stream: ByteStream, reply: Reply) -> bool:
        headers = dict(reply.headers)
        if reply.chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif reply.status != 204:
            headers.setdefault("Content-Length", str(len(reply.body)))
        lines = [f"HTTP/1.1 {reply.status} Whatever", *(f"{k}: {v}" for k, v in headers.items())]
        await stream.send("\r\n".join([*lines, "", ""]).encode("latin-1"))
        body = reply.body if reply.cut is None else reply.body[: reply.cut]
        for at in range(0, len(body), 1 << 16):
            block = body[at : at + (1 << 16)]
            await stream.send(b"%x\r\n%s\r\n" % (len(block), block) if reply.chunked else block)
            self.sent_bytes += len(block)
        if reply.hold is not None:
            await reply.hold.wait()
        if reply.cut is not None:
            return False
        if reply.chunked:
            await stream.send(b"0\r\n\r\n")
        return True


@asynccontextmanager
async def host(ssl_context: ssl.SSLContext | None = None) -> AsyncIterator[Host]:
    """Serve within the block."""
    tcp = await anyio.create_tcp_listener(local_host="127.0.0.1")
    serving = Host(tcp.extra(SocketAttribute.local_port))
    listener: Listener[ByteStream] = tcp
    if ssl_context is not None:
        serving.url = serving.url.replace("http:", "https:")
        listener = TLSListener(tcp, ssl_context, standard_compatible=False)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serving.serve)
        yield serving
        tasks.cancel_scope.cancel()


@dataclass
class External:
    urls: dict[str, str]
    expires: datetime | None


@dataclass
class Archive:
    url: str
    expires: datetime | None


class Signer:
    """Stands where `RestClient` does: hands out URLs of a host, each time with a new signature."""

    def __init__(self, serving: Host, *, lifetime_s: float = 900.0) -> None:
        self.host = serving
        self.lifetime_s = lifetime_s
        self.signed = 0
        self.names: list[str] | None = None
        self.failure: Exception | None = None
        self.missing: dict[str, Exception] = {}

    def _sign(self, name: str) -> str:
        return f"{self.host.url}/{name}?signature={self.signed}"

    def _expires(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.lifetime_s)

    async def get_external_weights_urls(self, tinker_path: str) -> External:
        await anyio.lowlevel.checkpoint()
        if "external" in self.missing:
            raise self.missing["external"]
        self.signed += 1
        names = list(self.host.files) if self.names is None else self.names
        return External({name: self._sign(name) for name in names}, self._expires())

    async def get_checkpoint_archive_url(self, tinker_path: str) -> Archive:
        await anyio.lowlevel.checkpoint()
        if "archive" in self.missing:
            raise self.missing["archive"]
        self.signed += 1
        return Archive(self._sign("archive.tar.gz"), self._expires())


def config_for(url: str, **settings: Any) -> Config:
    return resolve_config(url, KEY, environ={}, **settings)


async def fetch(
    signer: Signer, to: Path, *, tinker_path: str = EXTERNAL, **options: Any
) -> DownloadedCheckpoint:
    """Download as a test wants it: patient in numbers, quick in time."""
    options.setdefault("config", config_for(signer.host.url))
    options.setdefault("retry", QUICK)
    return await download_checkpoint(signer, tinker_path, to, **options)


@functools.cache
def content(size_bytes: int, seed: int = 0) -> bytes:
    """Bytes that no shift and no other seed repeats."""
    return hashlib.shake_128(b"content %d" % seed).digest(size_bytes)


def left(folder: Path) -> list[str]:
    """What a folder has."""
    return sorted(path.name for path in folder.iterdir())


def sockets() -> int:
    """Open sockets of this process."""
    return sum(
        link.is_symlink() and str(link.readlink()).startswith("socket:")
        for link in Path("/proc/self/fd").iterdir()
    )
