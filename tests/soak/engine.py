"""The embedded engine behind a proxy that breaks connections; it is killed and started again.

The proxy knows no HTTP: it cuts what flows. So whether the engine has done the work of a
request that failed is known to nobody, as with a real network.
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import anyio.abc
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream
from server.processes import command, environment

_GONE = (OSError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)
_MEGA = 1 << 20


class Proxy:
    """Passes bytes on, and breaks a connection now and then."""

    def __init__(self, rate: float, seed: int) -> None:
        self._rate = rate
        self._chance = random.Random(seed)
        self.port = 0
        """Of the engine; it changes when it is started again."""
        self.faults: Counter[str] = Counter()
        self.requests = 0
        """Parts that came from the client: at least one for each request."""

    async def serve(self, client: SocketStream) -> None:
        """Serve one connection."""
        async with client:
            try:
                engine = await anyio.connect_tcp("127.0.0.1", self.port)
            except OSError:  # it is being started again
                return
            async with engine, anyio.create_task_group() as tasks:
                tasks.start_soon(self._pass, client, engine, tasks.cancel_scope)
                tasks.start_soon(self._pass, engine, client, tasks.cancel_scope)

    async def _pass(
        self, source: SocketStream, sink: SocketStream, scope: anyio.CancelScope
    ) -> None:
        client = source if sink.extra(SocketAttribute.remote_port) == self.port else sink
        with suppress(*_GONE):
            while True:
                part = await source.receive()
                if client is source:
                    self.requests += 1
                fault = self._chance.random() < self._rate / 2  # of requests, and of answers
                if fault:
                    part = part[: self._chance.choice((0, len(part) // 2, len(part)))]
                    self.faults["request" if client is source else "answer"] += 1
                if part:
                    await sink.send(part)
                if fault:
                    _reset(client)
                    break
        scope.cancel()


def _reset(stream: SocketStream) -> None:
    """Let the close of a connection be a reset."""
    raw = stream.extra(SocketAttribute.raw_socket)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Engine:
    """An engine's process, one after another on one data directory."""

    def __init__(self, data_dir: Path, proxy: Proxy) -> None:
        self._data_dir = data_dir
        self.proxy = proxy
        self._process: anyio.abc.Process | None = None
        self.url = ""

    async def start(self) -> None:
        """Start it, and wait until it is ready."""
        line = command(self._data_dir, "--json")
        self._process = await anyio.open_process(line, env=environment(), stderr=None)
        assert self._process.stdout is not None
        out = BufferedByteReceiveStream(self._process.stdout)
        ready = json.loads(await out.receive_until(b"\n", _MEGA))
        self.proxy.port = int(ready["url"].rpartition(":")[2])

    async def restart(self) -> None:
        """Kill it, and start another one."""
        await self.kill()
        await self.start()

    async def kill(self) -> None:
        """End it as a power failure would."""
        if self._process is not None:
            with anyio.CancelScope(shield=True):
                with suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.aclose()

    def weights(self, path: str) -> str:
        """Return a hash of a checkpoint's weights, to the bit."""
        run, kind, name = path.removeprefix("tinker://").split("/")
        folder = self._data_dir / "checkpoints" / run.replace(":", ".") / kind / name
        found = hashlib.blake2b(digest_size=16)
        for file in ("adapter_model.safetensors", "optimizer.safetensors"):
            found.update((folder / file).read_bytes())
        return found.hexdigest()


@asynccontextmanager
async def engine_server(data_dir: Path, *, rate: float, seed: int) -> AsyncIterator[Engine]:
    """Run the engine behind its proxy."""
    proxy = Proxy(rate, seed)
    engine = Engine(data_dir, proxy)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    engine.url = f"http://127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
    async with listener, anyio.create_task_group() as tasks:
        try:
            await engine.start()
            tasks.start_soon(listener.serve, proxy.serve)
            yield engine
        finally:
            await engine.kill()
            tasks.cancel_scope.cancel()
