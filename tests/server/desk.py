"""The server's application without a socket: one service, one engine double, plain requests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
from server.engine_double import CARD, HandEngine
from starlette.applications import Starlette

from tinker_async.data.datum import Datum
from tinker_async.data.model_input import ModelInput
from tinker_async.local.server.app import PREFIX, make_app
from tinker_async.local.server.folders import Folders
from tinker_async.local.server.limits import Limits
from tinker_async.local.server.ownership import lock_folder
from tinker_async.local.server.port import EnginePort
from tinker_async.local.server.service import Service
from tinker_async.local.server.store import Store, now
from tinker_async.wire.training import encode_forward_backward

KEY = "tml-test"
PROTOBUF = "application/x-protobuf"
DATUM = Datum(ModelInput.from_ints([1, 2, 3]), {"target_tokens": [2, 3, 4], "weights": [1, 1, 1]})


class Reply(msgspec.Struct):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Desk:
    """Sends requests straight into the application."""

    def __init__(self, app: Starlette, service: Service) -> None:
        self._app = app
        self.service = service

    async def send(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        *,
        key: str | None = KEY,
        **headers: str,
    ) -> Reply:
        raw = (
            body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        )
        path, _, query = (PREFIX + path).partition("?")
        named = {"content-type": "application/json"}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            named["x-api-key"] = key
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "scheme": "http",
            "headers": [(k.encode(), v.encode()) for k, v in named.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        parts = [raw[: len(raw) // 2], raw[len(raw) // 2 :]]  # bodies come in pieces
        reply = Reply(0, {}, b"")

        async def receive() -> dict[str, Any]:
            await anyio.lowlevel.checkpoint()
            part = parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(parts)}

        async def take(message: Any) -> None:
            if message["type"] == "http.response.start":
                reply.status = message["status"]
                reply.headers = {k.decode(): v.decode() for k, v in message["headers"]}
            else:
                reply.body += message.get("body", b"")

        await self._app(scope, receive, take)
        return reply

    async def post(self, path: str, body: Any = None, **headers: str) -> Reply:
        return await self.send("POST", path, body, **headers)

    async def get(self, path: str) -> Reply:
        return await self.send("GET", path)

    async def ok(self, path: str, body: Any = None, **headers: str) -> Any:
        """Post, and return the JSON of a success."""
        reply = await self.post(path, body, **headers)
        assert reply.status == 200, reply
        return reply.json

    async def result(self, promise: Any) -> Any:
        """Return the JSON result of a promise."""
        with anyio.fail_after(5):
            return await self.ok("/retrieve_future", {"request_id": promise["request_id"]})

    async def session(self) -> str:
        body = {"tags": [], "user_metadata": {"a": "b"}, "sdk_version": "0"}
        return str((await self.ok("/create_session", body))["session_id"])

    async def model(self, session_id: str, number: int = 0) -> str:
        body = {"session_id": session_id, "model_seq_id": number, "base_model": "tiny"}
        body["lora_config"] = {"rank": 4}
        result = await self.result(await self.ok("/create_model", body))
        return str(result["model_id"])

    async def step(self, model_id: str, seq_id: int, rate: float = 0.5) -> Any:
        """Post an optimizer step; return its promise."""
        return await self.ok("/optim_step", step_body(model_id, seq_id, rate))


def step_body(model_id: str, seq_id: int | None, rate: float = 0.5) -> dict[str, Any]:
    return {"model_id": model_id, "seq_id": seq_id, "adam_params": {"learning_rate": rate}}


def sample_body(sampler_id: str, seq_id: int | None, **more: Any) -> dict[str, Any]:
    prompt = {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3, 4]}]}
    params = {"max_tokens": 2, "seed": 1}
    body = {"prompt": prompt, "sampling_params": params, "num_samples": 1}
    return {**body, "sampling_session_id": sampler_id, "seq_id": seq_id, **more}


@asynccontextmanager
async def open_desk(
    data_dir: Path,
    engine: HandEngine,
    limits: Limits | None = None,
    clock: Callable[[], datetime] = now,
) -> AsyncIterator[Desk]:
    """Run a service on a data directory, as `hosting.host` does, but without a socket."""
    with lock_folder(data_dir):
        store = Store(data_dir)
        try:
            service = Service(
                port=EnginePort(engine),
                card=CARD,
                model_folder=data_dir,
                store=store,
                folders=Folders(data_dir),
                limits=limits or Limits(),
                clock=clock,
            )
            async with anyio.create_task_group() as tasks:
                await tasks.start(service.run)
                yield Desk(make_app(service, api_key=KEY), service)
                tasks.cancel_scope.cancel()
        finally:
            store.close()


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something that a task of the service does in its own time."""
    with anyio.fail_after(5):
        while not holds():  # noqa: ASYNC110  # nobody tells: that is what housekeeping means
            await anyio.sleep(0.005)


async def sampler(desk: Desk, session_id: str, number: int = 0, **more: Any) -> str:
    more = more or {"base_model": "tiny"}
    body = {"session_id": session_id, "sampling_session_seq_id": number, **more}
    created = await desk.ok("/create_sampling_session", body)
    return str(created["sampling_session_id"])


def forward_backward_body(model_id: str, seq_id: int, loss_fn: str = "cross_entropy") -> bytes:
    parts = encode_forward_backward(
        model_id=model_id,
        seq_id=seq_id,
        data=[DATUM],
        loss_fn=loss_fn,
        loss_fn_config=None,
        forward_only=False,
    )
    return b"".join(parts)
