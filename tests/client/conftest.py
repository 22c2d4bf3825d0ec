"""Fixtures: a scripted server and a session with it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from support.loops import CORE
from support.scripted import ScriptedServer, scripted_server

from tinker_async import Session


@pytest.fixture(params=CORE)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Name and options of the event loop that runs the test."""
    return request.param


@pytest.fixture
async def server() -> AsyncGenerator[ScriptedServer]:
    """A scripted server."""
    async with scripted_server() as running:
        yield running


@pytest.fixture
def session(server: ScriptedServer) -> Session:
    """A session with the scripted server, not entered yet."""
    return Session(server.url, "tml-test")
