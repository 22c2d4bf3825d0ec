"""Runs measured processes: the stub, the clients, one after the other and in shuffled order.

A measured section never shares the machine with another one. Every figure is the result of
one process; a cell of a table is the median of several.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OURS = ("asyncio", "uvloop", "trio")
OFFICIAL = "official"
_BOUND_S = 900.0

Figures = dict[str, float]


class BenchmarkFailedError(Exception):
    """A measured process failed; the message has the end of what it said."""


@dataclass
class Stub:
    """A running stub server."""

    plain: int
    tls: int
    control: int
    authority: str

    def url(self, *, tls: bool = True, switches: str = "") -> str:
        """Return a base URL; `switches` as the stub reads them, such as `/c20000`."""
        if tls:
            return f"https://127.0.0.1:{self.tls}{switches}"
        return f"http://127.0.0.1:{self.plain}{switches}"

    def figures(self) -> Figures:
        """Return the stub's CPU time and counts."""
        with socket.create_connection(("127.0.0.1", self.control), timeout=10) as connection:
            parts = []
            while part := connection.recv(4096):
                parts.append(part)
        found: Figures = json.loads(b"".join(parts))
        return found


@contextlib.contextmanager
def stub_server(max_streams: int = 250) -> Iterator[Stub]:
    """Run a stub in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="tinker-async-bench-") as folder:
        command = [sys.executable, "-m", "benchmarks.stub_server", "--folder", folder]
        command += ["--max-streams", str(max_streams)]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if process.stdin is None or process.stdout is None:
            raise BenchmarkFailedError("no pipes")
        try:
            line = process.stdout.readline()
            if not line:
                raise BenchmarkFailedError("the stub server did not start")
            yield Stub(**json.loads(line))
        finally:
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass
class Bench:
    """The settings of one run of the benchmarks, and where its progress is told."""

    runs: int = 5
    quick: bool = False
    official_python: Path = ROOT / ".venv-official" / "bin" / "python"
    say: Callable[[str], None] = print
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    @property
    def has_official(self) -> bool:
        """Whether the official client's environment is there."""
        return self.official_python.exists()

    def scaled(self, number: int, least: int = 1) -> int:
        """Return a number of repetitions, a tenth of it when quick."""
        return max(least, number // 10) if self.quick else number

    def clients(self) -> list[str]:
        """Return who is measured in the client's table."""
        return [*([OFFICIAL] if self.has_official else []), *OURS]

    def client(
        self,
        who: str,
        stub: Stub | None,
        scenario: str,
        *,
        tls: bool = True,
        switches: str = "",
        **task: Any,
    ) -> Figures:
        """Run one scenario of one client in a process of its own and return its figures."""
        task["scenario"] = scenario
        environment: dict[str, str] = {}
        if stub is not None:
            task["url"] = stub.url(tls=tls, switches=switches)
            task["authority"] = stub.authority
            environment["SSL_CERT_FILE"] = stub.authority
        if who == OFFICIAL:
            python, module = str(self.official_python), "benchmarks.client_official"
        else:
            python, module = sys.executable, "benchmarks.client_ours"
            task["backend"] = who
        return run_json([python, "-m", module, json.dumps(task)], environment)

    def interleave(
        self, variants: Mapping[str, Callable[[], Figures]], runs: int | None = None
    ) -> dict[str, list[Figures]]:
        """Run each variant so often, in shuffled rounds; return the figures of each."""
        found: dict[str, list[Figures]] = {name: [] for name in variants}
        for number in range(runs or self.runs):
            names = list(variants)
            self._random.shuffle(names)
            for name in names:
                self.say(f"  run {number + 1}: {name}")
                found[name].append(variants[name]())
        return found

    def each_client(
        self, stub: Stub | None, scenario: str, *, who: list[str] | None = None, **task: Any
    ) -> dict[str, list[Figures]]:
        """Run one scenario of every client, interleaved."""
        return self.interleave(
            {
                name: lambda name=name: self.client(name, stub, scenario, **task)  # type: ignore[misc]
                for name in who or self.clients()
            }
        )


def run_json(
    command: list[str], environment: Mapping[str, str] | None = None, *, cwd: Path = ROOT
) -> Figures:
    """Run a process and return the JSON that it printed last.

    Raises:
        BenchmarkFailedError: It failed.
    """
    process = subprocess.run(
        command,
        cwd=cwd,
        env={
            **os.environ,
            "TINKER_TELEMETRY": "0",
            "OMP_WAIT_POLICY": "PASSIVE",
            **(environment or {}),
        },
        capture_output=True,
        text=True,
        timeout=_BOUND_S,
        check=False,
    )
    if process.returncode != 0:
        raise BenchmarkFailedError(f"{' '.join(command)}\n{process.stderr[-3000:]}")
    found: Figures = json.loads(process.stdout.splitlines()[-1])
    return found
