"""The server on a socket: Hypercorn with the application, on asyncio or trio.

Everything here lives in one `async with`; when it is left the port is closed, held
polls have been answered and no task remains.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
from anyio.lowlevel import current_token
from hypercorn.config import Config

from tinker_async.errors import ConfigError
from tinker_async.local.engine.jobs import ModelCard
from tinker_async.local.server.app import make_app
from tinker_async.local.server.flags import Flags
from tinker_async.local.server.folders import Folders
from tinker_async.local.server.limits import Limits
from tinker_async.local.server.port import Engine, EnginePort
from tinker_async.local.server.service import Service
from tinker_async.local.server.store import Store, now

GRACE_S = 3.0
"""How long a request may go on after the signal to stop; held polls are answered at once."""


class Site(msgspec.Struct, frozen=True, eq=False):
    """What is served, and where its state is."""

    engine: Engine
    card: ModelCard
    model_folder: Path
    data_dir: Path
    api_key: str
    limits: Limits = Limits()
    flags: Flags = Flags()
    clock: Callable[[], datetime] = now
    """The time of day."""


def bind(host: str, port: int) -> socket.socket:
    """Return a bound socket that does not listen yet: nobody can connect too early.

    Raises:
        ConfigError: The address is not ours or in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror or error}",
            hint="--port 0 takes any free port",
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the base URL of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def host(
    site: Site, listener: socket.socket, *, stopping: anyio.Event, ready: Callable[[], None]
) -> None:
    """Serve on a bound socket until `stopping` is set.

    Args:
        site: What to serve. The caller owns its data directory (`ownership.lock_folder`).
        listener: From `bind`; it is closed in the end.
        stopping: Set it to end: held polls are answered, other requests get `GRACE_S`.
        ready: Called once, when requests are accepted.
    """
    folders = await anyio.to_thread.run_sync(Folders, site.data_dir)
    store = await anyio.to_thread.run_sync(Store, site.data_dir)
    try:
        await anyio.to_thread.run_sync(folders.sweep, store.folders())
        service = Service(
            port=EnginePort(site.engine),
            card=site.card,
            model_folder=site.model_folder,
            store=store,
            folders=folders,
            limits=site.limits,
            flags=site.flags,
            clock=site.clock,
        )
        async with anyio.create_task_group() as tasks:
            await tasks.start(service.run)
            await _serve(service, site.api_key, listener, stopping=stopping, ready=ready)
            tasks.cancel_scope.cancel()
    finally:
        store.close()


async def _serve(
    service: Service,
    api_key: str,
    listener: socket.socket,
    *,
    stopping: anyio.Event,
    ready: Callable[[], None],
) -> None:
    async def until_stopped() -> None:
        # Hypercorn calls this when its sockets listen: the moment to say "ready".
        ready()
        await stopping.wait()
        service.promises.stop()

    app, config = make_app(service, api_key=api_key), _config(listener)
    serve = _hypercorn()

    # A task of its own: on asyncio, Hypercorn leaves its task's count of cancellations
    # unbalanced, and scopes around it would take that for a cancellation of theirs.
    async def hypercorn() -> None:
        await serve(app, config, shutdown_trigger=until_stopped)
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hypercorn)
        await stopping.wait()
        # Cancelling Hypercorn is noisy: only when its own shutdown hangs.
        await anyio.sleep(GRACE_S + 2.0)
        tasks.cancel_scope.cancel()


def _config(listener: socket.socket) -> Config:
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.loglevel = "WARNING"
    config.graceful_timeout = GRACE_S
    config.backlog = 1024
    config.keep_alive_timeout = 300.0  # clients think between steps; reconnecting costs more
    config.keep_alive_max_requests = 1_000_000
    config.h2_max_concurrent_streams = 100  # each held poll is one
    config.include_server_header = False
    return config


def _hypercorn() -> Callable[..., Awaitable[Any]]:
    if hasattr(current_token().native_token, "run_sync_soon"):
        from hypercorn.trio import serve as serve_on_trio  # noqa: PLC0415  # needs trio

        return serve_on_trio
    from hypercorn.asyncio import serve as serve_on_asyncio  # noqa: PLC0415  # as above

    return serve_on_asyncio
