"""Processes of `tinker-async serve` that are there at once: forked from one that has imported torch.

For tests of what a server does; how one is started as a user starts it is told elsewhere.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from functools import cache
from pathlib import Path

import msgspec
from crash.zygote import Order

ROOT = Path(__file__).parents[2]
_STEP_S = 0.02


class Zygote:
    """The process that forks. One for each process of tests, ended with it."""

    def __init__(self, api_key: str) -> None:
        self._lock = threading.Lock()
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
        # No threads that a fork would lose, and no memory in reserve.
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_ARENA_MAX")
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                **dict.fromkeys(names, "1"),
                "PYTHONPATH": path,
                "TINKER_API_KEY": api_key,
            },
        )
        atexit.register(self._end)
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()

    def ask(self, request: Order | int) -> str:
        """Send a request; return the answer."""
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(msgspec.json.encode(request) + b"\n")
            self._process.stdin.flush()
            return self._answer()

    def serve(self, arguments: list[str]) -> Forked:
        """Fork a server."""
        pipe = Path(tempfile.mkdtemp()) / "stdout"
        os.mkfifo(pipe)
        return Forked(self, int(self.ask(Order(arguments, str(pipe), os.devnull))), pipe)

    def _end(self) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()


class Forked:
    """A forked server, as much of it like `subprocess.Popen` as the tests need."""

    def __init__(self, zygote: Zygote, pid: int, pipe: Path) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._zygote = zygote
        self.stdout = pipe.open("rb")
        pipe.unlink()
        pipe.parent.rmdir()

    def send_signal(self, how: signal.Signals) -> None:
        """Send a signal, if it lives."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, how)

    def kill(self) -> None:
        """Kill it with SIGKILL, if it lives."""
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        """Return its exit status, or the negative of its signal, or None while it lives."""
        if self.returncode is None:
            answer = self._zygote.ask(self.pid)
            self.returncode = None if answer == "None" else int(answer)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Wait for its end; return its status as in `poll`."""
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("tinker-async serve", timeout)
            time.sleep(_STEP_S)
        self.stdout.close()
        assert self.returncode is not None
        return self.returncode


@cache
def zygote(api_key: str) -> Zygote:
    """Return the one whose servers have this key; the first call takes as long as importing torch."""
    return Zygote(api_key)
