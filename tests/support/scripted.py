"""A scripted Tinker server over a real socket: each test says what it answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import msgspec

Answer = tuple[int, dict[str, str], bytes]
Handler = Callable[["Call"], "Answer | Awaitable[Answer] | Any"]


class Call(msgspec.Struct):
    """One request as the server saw it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return msgspec.json.decode(self.body)


class ScriptedServer:
    """Answers with the handler set for a path, else with a plain good answer."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.handlers: dict[str, Handler] = {}
        self.port = 0
        self.open_connections = 0
        self._promises = 0

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self.port}"

    def on(self, path: str, handler: Handler) -> None:
        """Answer a path (below /api/v1/) with this handler."""
        self.handlers["/api/v1/" + path] = handler

    def seen(self, path: str) -> list[Call]:
        """The requests of a path, in order."""
        return [call for call in self.calls if call.path.split("?")[0] == "/api/v1/" + path]

    def promise(self, **extra: Any) -> Any:
        """A new promise."""
        self._promises += 1
        return {"request_id": f"r{self._promises}", **extra}

    async def answer(self, call: Call) -> Answer:
        """Find the answer for a call; a handler may give JSON, an Answer, or wait first."""
        handler = self.handlers.get(call.path.split("?")[0], self._default)
        result: Any = handler(call)
        if hasattr(result, "__await__"):
            result = await result
        if isinstance(result, tuple):
            return result
        return 200, {"content-type": "application/json"}, msgspec.json.encode(result)

    def _default(self, call: Call) -> Any:
        name = call.path.removeprefix("/api/v1/")
        if name == "create_session":
            return {"session_id": "s1"}
        if name == "create_sampling_session":
            return {"sampling_session_id": "s1:sample:0"}
        if name in ("create_model", "optim_step", "forward_backward", "save_weights", "asample"):
            return self.promise()
        if name == "retrieve_future":
            return {"model_id": "s1:train:0"}
        return {}

    async def serve(self, stream: anyio.abc.SocketStream) -> None:
        """Serve one connection."""
        self.open_connections += 1
        try:
            async with stream:
                pending = b""
                while True:
                    while b"\r\n\r\n" not in pending:
                        pending += await stream.receive()
                    head, _, pending = pending.partition(b"\r\n\r\n")
                    lines = head.decode("latin-1").split("\r\n")
                    method, path, _ = lines[0].split(" ")
                    headers = {
                        name.strip().lower(): value.strip()
                        for name, _, value in (line.partition(":") for line in lines[1:])
                    }
                    size = int(headers.get("content-length", "0"))
                    while len(pending) < size:
                        pending += await stream.receive()
                    body, pending = pending[:size], pending[size:]
                    call = Call(method, path, headers, body)
                    self.calls.append(call)
                    status, extra, content = await self.answer(call)
                    extra = {"content-length": str(len(content)), **extra}
                    text = "".join(f"{name}: {value}\r\n" for name, value in extra.items())
                    await stream.send(f"HTTP/1.1 {status} X\r\n{text}\r\n".encode() + content)
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            pass
        finally:
            self.open_connections -= 1


@asynccontextmanager
async def scripted_server() -> AsyncGenerator[ScriptedServer]:
    """Run a scripted server for a block."""
    server = ScriptedServer()
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        server.port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, server.serve)
            yield server
            group.cancel_scope.cancel()


def promise_body(buffers: Sequence[bytes | bytearray | memoryview]) -> Answer:
    """The answer to `retrieve_future` that carries a protobuf result."""
    return 200, {"content-type": "application/x-protobuf"}, b"".join(buffers)
