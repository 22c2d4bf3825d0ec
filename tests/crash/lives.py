"""Lives of a server, one after another on one data directory, each a forked process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from crash.zygote import Order
from server.processes import KEY, RunningServer

from tinker_async import RetryPolicy, Session

BOUND_S = 120.0
ROOT = Path(__file__).parents[2]
ONCE = RetryPolicy(max_attempts=1)


class Life(RunningServer):
    """One process of `tinker-async serve`. `process` is not ours: the zygote waits for it."""

    def __init__(self, zygote: Zygote, pid: int, ready: dict[str, Any], stdout: Any) -> None:
        self.url = ready["url"]
        self.api_key = ready["api_key"]
        self.models = ready["models"]
        self.port = int(self.url.rpartition(":")[2])
        self.pid = pid
        self._zygote = zygote
        self._stdout = stdout
        self._status: int | None = None
        self._lock = threading.Lock()

    def session(self, retry: RetryPolicy = ONCE) -> Session:
        """A session with it, not entered yet; it repeats nothing."""
        return Session(self.url, self.api_key, retry=retry, grace_s=5.0)

    def arm(self) -> None:
        """Let the counting of calls begin."""
        os.kill(self.pid, signal.SIGUSR1)

    def counted(self) -> int:
        """Return how many calls there were since `arm`."""
        os.kill(self.pid, signal.SIGUSR1)
        return int(self._stdout.readline())

    def kill(self) -> None:
        """Kill it with SIGKILL; nothing happens if it is dead."""
        if self._status is None:  # the pid is its own until its status was asked for
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def ended(self) -> int:
        """Wait until it has ended; return its exit status, or the negative of its signal."""
        with self._lock:
            if self._status is None:
                self._stdout.read()
                self._status = self._zygote.status()
                self._stdout.close()
        return self._status


class Zygote:
    """The process that forks servers. One at a time."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        self._folder = folder
        self.errors = folder / "stderr"

    def order(self, data_dir: Path, *arguments: str, **options: Any) -> tuple[int, Any]:
        """Fork a server; return its pid and its standard output."""
        pipe = self._folder / "stdout"
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
        self.errors.unlink(missing_ok=True)
        line = ["--model", "tiny-llama", "--threads", "1", "--json", "--data-dir", str(data_dir)]
        order = Order([*line, *arguments], str(pipe), str(self.errors), **options)
        self._stdin.write(msgspec.json.encode(order) + b"\n")
        self._stdin.flush()
        pid = int(self._stdout.readline())
        return pid, pipe.open("rb")

    def status(self) -> int:
        """Wait for the end of the server; return its status."""
        self._stdin.write(b"\n")
        self._stdin.flush()
        return int(self._stdout.readline())

    @contextmanager
    def life(self, data_dir: Path, *arguments: str, **options: Any) -> Iterator[Life]:
        """A server that is ready; it is killed behind the block, if it still lives."""
        pid, stdout = self.order(data_dir, *arguments, **options)
        line = stdout.readline()
        assert line, self.errors.read_text()
        life = Life(self, pid, json.loads(line), stdout)
        watchdog = threading.Timer(BOUND_S, os.kill, (pid, signal.SIGKILL))
        watchdog.start()
        try:
            yield life
        finally:
            watchdog.cancel()
            life.kill()
            life.ended()

    def failed(self, data_dir: Path, *arguments: str, **options: Any) -> tuple[int, str]:
        """Start a server that cannot start; return its status and what it wrote."""
        _, stdout = self.order(data_dir, *arguments, **options)
        with stdout:
            assert stdout.read() == b""
        return self.status(), self.errors.read_text()


@contextmanager
def zygote(folder: Path) -> Iterator[Zygote]:
    """Start the process that forks servers."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # No threads that a fork would lose, and no memory in reserve.
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_ARENA_MAX")
    one = dict.fromkeys(names, "1")
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("zygote.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **one, "PYTHONPATH": path, "TINKER_API_KEY": KEY},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield Zygote(process, folder)
        assert process.stdin is not None
        process.stdin.close()
