"""A real server process with the tiny Llama, started once for the whole run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from server.processes import RunningServer, start_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """`tinker-async serve --model tiny-llama`, ready."""
    with start_server(tmp_path_factory.mktemp("server") / "data") as running:
        yield running
