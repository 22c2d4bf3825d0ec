"""One embedded server with the tiny model, shared by the tests of this folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.embedded_engine import Engine


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The server's process, from ready to a clean end."""
    folder: Path = tmp_path_factory.mktemp("engine")
    command = [sys.executable, "-m", "tinker_async.cli", "serve", "--model", "tiny-llama"]
    command += ["--data-dir", str(folder), "--threads", "1", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        yield Engine(url=ready["url"], api_key=ready["api_key"], model=ready["models"][0])
        process.terminate()
        assert process.wait(timeout=60) == 0
