"""Starts a server of any kind, waits until it answers, and ends it with all that it started.

A server lives as long as the block that starts it; its keeper ends it even when this process is killed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import ROOT, BenchmarkFailedError

KEY = "tml-benchmark-key"
_STOP_S = 60.0


@dataclass(frozen=True)
class Server:
    """Where a server is, and the name that it gives the compared model."""

    url: str
    model: str
    key: str = KEY

    def task(self) -> dict[str, str]:
        """Return what a measured client must know of it."""
        return {"url": self.url, "key": self.key, "model": self.model}


def write_model(folder: Path) -> None:
    """Write the compared model, in a process of its own: this one shall not load torch."""
    command = [sys.executable, "-m", "benchmarks.rivals.tiny_qwen3", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def absent(measured: Container[str], *names: str) -> str:
    """Return a row's note on the servers that were not there to be measured."""
    missing = [name for name in names if name not in measured]
    if not missing:
        return ""
    return f"{' and '.join(missing)} not measured: `make rivals` installs what it needs"


def free_port() -> int:
    """Return a loopback port that nobody listens on just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def running(
    command: list[str], url: str, environment: Mapping[str, str], *, cwd: Path, start_s: float
) -> Iterator[None]:
    """Run a server until the block is left; enter it once the server says it is healthy.

    Raises:
        BenchmarkFailedError: It ended, or was not there in time; the message has its last words.
    """
    with tempfile.TemporaryFile() as said:
        keeper = subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks" / "rivals" / "keeper.py"), *command],
            cwd=cwd,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            start_new_session=True,  # an interrupt at the terminal reaches it through us only
        )
        try:
            _wait_until_healthy(keeper, url, start_s)
            yield
        except BaseException as error:
            said.seek(0)
            error.add_note(said.read()[-3000:].decode(errors="replace"))
            raise
        finally:
            _end(keeper)


def _wait_until_healthy(keeper: subprocess.Popen[bytes], url: str, start_s: float) -> None:
    end = time.monotonic() + start_s
    while time.monotonic() < end:
        if keeper.poll() is not None:
            raise BenchmarkFailedError(f"the server of {url} ended with {keeper.returncode}")
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            request = urllib.request.Request(f"{url}/api/v1/healthz", headers={"X-API-Key": KEY})
            with urllib.request.urlopen(request, timeout=5):
                return
        time.sleep(0.2)
    raise BenchmarkFailedError(f"no server answered at {url} after {start_s:g} s")


def _end(keeper: subprocess.Popen[bytes]) -> None:
    if keeper.stdin is not None:
        keeper.stdin.close()
    try:
        keeper.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        keeper.kill()
        keeper.wait()
