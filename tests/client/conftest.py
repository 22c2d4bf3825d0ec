"""Fixtures: a scripted server and a session with it."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
from support.scripted import ScriptedServer, scripted_server

from tinker_async import Session


@pytest.fixture
async def server() -> AsyncGenerator[ScriptedServer]:
    """A scripted server."""
    async with scripted_server() as running:
        yield running


@pytest.fixture
def session(server: ScriptedServer) -> Session:
    """A session with the scripted server, not entered yet."""
    return Session(server.url, "tml-test")
