"""The embedded server on a real socket in the test's own loop, with an engine double or a real engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import anyio
from server.desk import KEY
from server.engine_double import CARD

import tinker_async as ta
from tinker_async.api import endpoints
from tinker_async.local.server.flags import Flags
from tinker_async.local.server.hosting import Site, bind, host, url_of
from tinker_async.local.server.limits import Limits
from tinker_async.local.server.port import Engine
from tinker_async.local.server.store import now

BOUND_S = 20.0


class Hosted:
    """A server in this loop, and a way to stop it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.stopping = anyio.Event()
        self.stopped = anyio.Event()

    def session(self) -> ta.Session:
        """A session of our client with it, not entered yet."""
        return ta.Session(self.url, KEY)


async def leave_gap(session: ta.Session, model_id: str) -> None:
    """Send a request of a model whose predecessors never come, behind its client's back."""
    assert session._parts is not None
    body = {"model_id": model_id, "seq_id": 1_000, "adam_params": {"learning_rate": 0.0}}
    await session._parts.caller.once(endpoints.OPTIM_STEP, (json.dumps(body).encode(),))


@asynccontextmanager
async def hosted(
    data_dir: Path,
    engine: Engine,
    limits: Limits | None = None,
    *,
    flags: Flags | None = None,
    clock: Callable[[], datetime] = now,
    bound_s: float = BOUND_S,
) -> AsyncIterator[Hosted]:
    """Serve in the block; the engine's model is called `tiny`, whatever it is."""
    listener = bind("127.0.0.1", 0)
    server = Hosted(url_of(listener))
    ready = anyio.Event()
    site = Site(engine, CARD, data_dir, data_dir, KEY, limits or Limits(), flags or Flags(), clock)

    async def run() -> None:
        await host(site, listener, stopping=server.stopping, ready=ready.set)
        server.stopped.set()

    with anyio.fail_after(bound_s):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await ready.wait()
            yield server
            server.stopping.set()
