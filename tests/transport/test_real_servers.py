"""Against a server of the wild: Starlette on Hypercorn, with and without TLS."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib import import_module
from typing import Any

import anyio
import pytest
import trustme
from hypercorn.config import Config
from starlette.applications import Starlette
from starlette.requests import Request as ServerRequest
from starlette.responses import Response as ServerResponse
from starlette.routing import Route
from transport.asking import until

from tinker_async.transport import Request, TrafficClass
from tinker_async.transport.opening import OpenTransport, open_transport

BOUND_S = 30.0
AUTHORITY = trustme.CA()


class Application:
    """Echoes bodies, and holds polls until it is told."""

    def __init__(self) -> None:
        self.release = anyio.Event()
        self.held = 0
        self.app = Starlette(
            routes=[
                Route("/echo", self.echo, methods=["POST"]),
                Route("/hold", self.hold, methods=["POST"]),
            ]
        )

    async def echo(self, request: ServerRequest) -> ServerResponse:
        return ServerResponse(await request.body(), media_type="application/octet-stream")

    async def hold(self, request: ServerRequest) -> ServerResponse:
        await request.body()
        self.held += 1
        await self.release.wait()
        return ServerResponse(b"held")


@asynccontextmanager
async def serving(backend: str, application: Application, **settings: Any) -> AsyncIterator[int]:
    """Run Hypercorn in this loop; yields the port."""
    # Hypercorn's own idea of an ASGI application is not Starlette's: hence `Any`.
    run: Any = import_module(f"hypercorn.{backend}").serve

    config = Config()
    config.accesslog = config.errorlog = None
    config.graceful_timeout = 0.1
    for name, value in settings.items():
        setattr(config, name, value)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    port: int = listening.getsockname()[1]
    config.bind = [f"fd://{listening.detach()}"]
    stop = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(run, application.app, config, shutdown_trigger=stop.wait))
        await connectable(port)
        yield port
        stop.set()


async def connectable(port: int) -> None:
    """Wait until the server accepts."""
    while True:
        try:
            await (await anyio.connect_tcp("127.0.0.1", port)).aclose()
        except OSError:
            await anyio.sleep(0.01)
        else:
            return


def post(path: str, body: bytes, traffic: TrafficClass = TrafficClass.SAMPLING) -> Request:
    headers = ((b"content-type", b"application/octet-stream"), (b"accept", b"*/*"))
    return Request("POST", path, headers, (body,), traffic)


async def exercise(t: OpenTransport, application: Application) -> None:
    """Large bodies, many requests, and polls held while others go by."""
    body = os.urandom(5 << 20)
    assert body == (await t.request(post("/echo", body))).body
    answers: list[bytes] = []

    async def ask(number: int) -> None:
        answers.append(bytes((await t.request(post("/echo", b"%d" % number))).body))

    async def poll() -> None:
        await t.request(post("/hold", b"", TrafficClass.POLLING))
        answers.append(b"poll")

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(poll)
        await until(lambda: application.held >= 20)
        async with anyio.create_task_group() as others:
            for number in range(200):
                others.start_soon(ask, number)
        assert {b"%d" % number for number in range(200)} == set(answers)
        application.release.set()
    assert 20 == answers.count(b"poll")


@pytest.mark.parametrize("http2", [False, True])
async def test_hypercorn_without_tls(anyio_backend: tuple[str, Any], http2: bool) -> None:
    """HTTP/1.1, and HTTP/2 by prior knowledge."""
    application = Application()
    with anyio.fail_after(BOUND_S):
        async with (
            serving(anyio_backend[0], application) as port,
            open_transport(f"http://127.0.0.1:{port}", http2=http2) as t,
        ):
            await exercise(t, application)
            statistics = t.statistics()
    assert ("h2" if http2 else "http/1.1") == statistics.protocol


@pytest.mark.parametrize("offered", [["h2", "http/1.1"], ["http/1.1"]])
async def test_hypercorn_with_tls(
    anyio_backend: tuple[str, Any], offered: list[str], tmp_path: Any
) -> None:
    """ALPN settles it, whichever the server prefers."""
    import ssl

    certificate = AUTHORITY.issue_cert("127.0.0.1")
    files = {"certfile": tmp_path / "cert.pem", "keyfile": tmp_path / "key.pem"}
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(files["certfile"], append=True)
    certificate.private_key_pem.write_to_path(files["keyfile"])
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    application = Application()
    with anyio.fail_after(BOUND_S):
        async with serving(
            anyio_backend[0],
            application,
            alpn_protocols=offered,
            **{name: str(path) for name, path in files.items()},
        ) as port:
            url = f"https://127.0.0.1:{port}"
            async with open_transport(url, ssl_context=context) as t:
                await exercise(t, application)
                statistics = t.statistics()
    assert offered[0] == statistics.protocol
