"""The stub server of the benchmarks as a process, and its measured clients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

ROOT = Path(__file__).parents[2]
STOP_S = 20
CLIENT_S = 60

RunClient = Callable[..., dict[str, float]]


class Stub(msgspec.Struct, frozen=True):
    """Ports of a running stub server, and the certificate of its authority."""

    plain: int
    tls: int
    control: int
    authority: str


@pytest.fixture(scope="session")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stub]:
    """A stub server for all tests here; it ends with its standard input."""
    folder = tmp_path_factory.mktemp("stub")
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.stub_server", "--folder", str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        try:
            yield msgspec.json.decode(process.stdout.readline(), type=Stub)
        finally:
            process.stdin.close()
            process.wait(STOP_S)


@pytest.fixture
def run_client(stub: Stub) -> RunClient:
    """Run a scenario of `benchmarks.client_ours` in a process of its own."""

    def run(scenario: str, backend: str = "asyncio", **task: Any) -> dict[str, float]:
        task |= {"scenario": scenario, "backend": backend}
        task |= {"url": f"https://127.0.0.1:{stub.tls}", "authority": stub.authority}
        process = subprocess.run(
            [sys.executable, "-m", "benchmarks.client_ours", json.dumps(task)],
            cwd=ROOT,
            # One thread of numpy's linear algebra: it starts more at import, and uses none here.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=CLIENT_S,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        found: dict[str, float] = json.loads(process.stdout)
        return found

    return run
