"""This library's engine, served for the same clients and with the same weights as its rivals."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import ROOT
from benchmarks.rivals import servers

START_S = 120.0
_MODEL = "tiny"


@contextlib.contextmanager
def server(model: Path) -> Iterator[servers.Server]:
    """Run `tinker-async serve` with a model folder and its default settings."""
    port = servers.free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "tinker_async.cli", "serve", "--model", f"{_MODEL}={model}"]
    command += ["--port", str(port), "--temporary"]
    with servers.running(command, url, {"TINKER_API_KEY": servers.KEY}, cwd=ROOT, start_s=START_S):
        yield servers.Server(url, _MODEL)
