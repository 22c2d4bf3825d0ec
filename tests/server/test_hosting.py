"""The server on a real socket, in the test's own event loop: HTTP/1.1 and HTTP/2, start and stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest
from server.desk import KEY
from server.engine_double import CARD, HandEngine, QuickEngine
from server.hosted import hosted

from tinker_async.errors import ConfigError
from tinker_async.local.server.hosting import GRACE_S, bind
from tinker_async.transport import Request, Response, TrafficClass
from tinker_async.transport.opening import OpenTransport, open_transport


async def post(transport: OpenTransport, path: str, body: Any) -> Response:
    headers = ((b"x-api-key", KEY.encode()), (b"content-type", b"application/json"))
    raw = json.dumps(body).encode()
    request = Request("POST", "/api/v1" + path, headers, (raw,), TrafficClass.SESSION)
    return await transport.request(request)


async def promised(transport: OpenTransport) -> Any:
    """Make a session and start a model that the engine never finishes; return its promise."""
    new = {"tags": [], "user_metadata": {}, "sdk_version": "0"}
    session = json.loads(bytes((await post(transport, "/create_session", new)).body))
    body = {"session_id": session["session_id"], "model_seq_id": 0, "base_model": CARD.name}
    return json.loads(bytes((await post(transport, "/create_model", body)).body))


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "h2c"])
async def test_it_speaks_http1_and_http2_without_tls(tmp_path: Path, http2: bool) -> None:
    """On one port; a body larger than the window of HTTP/2 arrives whole."""
    async with (
        hosted(tmp_path, QuickEngine()) as server,
        open_transport(server.url, http2=http2) as transport,
    ):
        promise = await promised(transport)
        poll = {"request_id": promise["request_id"]}
        result = await post(transport, "/retrieve_future", poll)
        assert json.loads(bytes(result.body))["model_id"] == promise["model_id"]
        assert (await post(transport, "/telemetry", {"events": "x" * 300_000})).status == 200
        assert (await post(transport, "/nowhere", {"events": "x" * 300_000})).status == 404
        assert (await post(transport, "/telemetry", {})).status == 200


async def test_stopping_answers_held_polls_and_closes_idle_connections(tmp_path: Path) -> None:
    """Neither a held poll nor an idle connection uses up the grace that others have."""
    async with (
        hosted(tmp_path, HandEngine()) as server,
        open_transport(server.url, http2=False) as transport,
        open_transport(server.url, http2=False) as idle,
    ):
        await post(idle, "/telemetry", {})
        promise = await promised(transport)
        statuses: list[int] = []

        async def poll() -> None:
            wanted = {"request_id": promise["request_id"]}
            statuses.append((await post(transport, "/retrieve_future", wanted)).status)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(poll)
            await anyio.sleep(0.1)  # no event tells that the server holds the poll
            server.stopping.set()
            with anyio.fail_after(GRACE_S):
                await server.stopped.wait()
    assert statuses == [503]


async def test_an_address_that_is_taken_is_a_config_error(tmp_path: Path) -> None:
    """Told when binding, before the model is loaded."""
    async with hosted(tmp_path, QuickEngine()) as server:
        with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1 port"):
            bind("127.0.0.1", int(server.url.rpartition(":")[2]))
