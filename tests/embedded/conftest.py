"""One embedded server with the tiny model, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from server.processes import start_server
from support.embedded_engine import Engine


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The server's process, from ready to a clean end."""
    with start_server(tmp_path_factory.mktemp("engine")) as server:
        yield Engine(url=server.url, api_key=server.api_key, model=server.models[0])
        assert server.stop() == 0
