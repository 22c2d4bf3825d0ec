"""One soak: the program against a server that fails, what is measured, and what must be true."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
from anyio.streams.buffered import BufferedByteReceiveStream
from server.processes import KEY
from soak.engine import engine_server
from soak.program import Program, Work
from soak.toy_server import Ordered, Report

from tinker_async import RetryPolicy, Session

QUICK = RetryPolicy(base_s=0.01, max_s=0.5)
TESTS = Path(__file__).parents[1]
MOST_GROWTH = 1.05
"""Of the memory from the second quarter of a run to the last."""
ALWAYS_ALLOWED_MB = 0.1
"""A small run holds 0.3 MiB in all: a few results that wait are more than 5 % of that."""
MEGA = 1 << 20

Tell = Callable[[str], None]


class Figures(msgspec.Struct):
    """What a soak measured."""

    server: str
    protocol: str
    backend: str
    fault_rate: float
    steps: int
    samples: int
    steps_run: int
    samples_run: int
    lives: int
    ended_by: list[str]
    requests: int
    faults: dict[str, int]
    delivered_again: int
    """Results that had to be sent once more since a broken connection had swallowed them."""
    cancelled: int
    seconds: float
    memory_mb: list[float]
    """Mean of each quarter."""
    weights: str
    weights_without_faults: str


class Toy:
    """The fake server's process."""

    def __init__(
        self, process: anyio.abc.Process, url: str, out: BufferedByteReceiveStream
    ) -> None:
        self._process = process
        self._out = out
        self.url = url

    async def ask(self, line: str) -> bytes:
        """Send a line, return the one that answers it."""
        assert self._process.stdin is not None
        await self._process.stdin.send(line.encode() + b"\n")
        return await self._out.receive_until(b"\n", 64 * MEGA)

    async def restart(self) -> None:
        """Let it lose all but its checkpoints, and its connections."""
        await self.ask("restart")

    async def weights(self, path: str) -> str:
        """Return a hash of the weights of a checkpoint."""
        return msgspec.json.decode(await self.ask(f"weights {path}"), type=str)

    async def report(self) -> Report:
        """Return what it has seen."""
        return msgspec.json.decode(await self.ask("report"), type=Report)


@asynccontextmanager
async def toy_server(ordered: Ordered) -> AsyncIterator[Toy]:
    """Run a fake server in a process."""
    command = [sys.executable, "-m", "soak.toy_server", msgspec.json.encode(ordered).decode()]
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    async with await anyio.open_process(command, stderr=None, env=environment) as process:
        try:
            assert process.stdout is not None
            out = BufferedByteReceiveStream(process.stdout)
            url = msgspec.json.decode(await out.receive_until(b"\n", MEGA), type=str)
            yield Toy(process, url, out)
            assert process.stdin is not None
            await process.stdin.aclose()
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()


class Memory:
    """The memory of this process, by quarters of the work."""

    def __init__(self, *, traced: bool) -> None:
        self._traced = traced
        self._seen: list[list[float]] = [[], [], [], []]

    def note(self, share: float) -> None:
        """Measure, with so much of the work done."""
        gc.collect()
        quarter = min(3, int(4 * share))
        size = tracemalloc.get_traced_memory()[0] if self._traced else resident_bytes()
        self._seen[quarter].append(size / MEGA)

    def means(self) -> list[float]:
        """Return the mean of each quarter, in MiB."""
        return [round(sum(seen) / len(seen), 3) if seen else 0.0 for seen in self._seen]


def resident_bytes() -> int:
    """Return the resident memory of this process; 0 where it cannot be told."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


class Run:
    """One run of the program: what it got, and the memory it took."""

    def __init__(
        self, work: Work, session: Callable[[], Session], *, traced: bool, tell: Tell
    ) -> None:
        self.work = work
        self.received: Counter[str] = Counter()
        """Sequence ids with how often each came; once the run is over."""
        self.got = 0
        self._memory = Memory(traced=traced)
        self._tell = tell
        self._half = anyio.Event()
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by `through`
        self.program = Program(work, session, got=self._note, stepped=self._stepped)

    def _note(self, name: str) -> None:
        self.got += 1
        self._log.write(f"{name}\n")  # not into memory, which is measured
        work = self.work
        if self.got == (work.steps // 2) * work.group + work.group // 2:  # amid a step
            self._half.set()

    def _stepped(self, step: int) -> None:
        self._memory.note((step - 1) / self.work.steps)
        size = resident_bytes() / MEGA
        self._tell(f"{step} of {self.work.steps} steps, {self.got} samples, {size:.1f} MiB")

    async def through(self, restart: Callable[[], Awaitable[None]]) -> str:
        """Run to the end, with one restart of the server; return the last checkpoint's path."""

        async def restart_half_way() -> None:
            await self._half.wait()
            await restart()

        with self._log:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(restart_half_way)
                path = await self.program.run()
            self._log.seek(0)
            self.received.update(line.strip() for line in self._log)
        return path

    def figures(self, **others: Any) -> Figures:
        """Return what was measured."""
        return Figures(
            steps=self.work.steps,
            samples=self.work.steps * self.work.group,
            steps_run=self.program.steps_run,
            samples_run=self.got,
            lives=self.program.lives,
            ended_by=self.program.ended_by,
            memory_mb=self._memory.means(),
            **others,
        )


async def toy_weights(work: Work) -> str:
    """Return what the program comes to when nothing fails."""
    async with toy_server(Ordered(rate=0.0, seed=0, http2=False)) as toy:
        program = Program(work, lambda: Session(toy.url, "tml-soak"))
        path = await program.run()
        assert [] == program.ended_by
        return await toy.weights(path)


async def engine_weights(work: Work, folder: Path) -> str:
    """As `toy_weights`, of the embedded engine."""
    async with engine_server(folder, rate=0.0, seed=0) as engine:
        program = Program(work, lambda: Session(engine.url, KEY))
        path = await program.run()
        assert [] == program.ended_by
        return engine.weights(path)


async def soak_toy(
    work: Work,
    *,
    http2: bool,
    rate: float,
    right: str,
    backend: str,
    traced: bool = False,
    tell: Tell = lambda _: None,
) -> Figures:
    """Run the program against the fake server with faults and a restart; check everything.

    Raises:
        AssertionError: Something was lost, given twice, wrong, or kept.
    """
    started = time.monotonic()
    async with toy_server(Ordered(rate, 1, http2)) as toy:

        def session() -> Session:
            return Session(toy.url, "tml-soak", http2=http2, retry=QUICK)

        run = Run(work, session, traced=traced, tell=tell)
        path = await run.through(toy.restart)
        weights, report = await toy.weights(path), await toy.report()
    figures = run.figures(
        server="toy",
        protocol="HTTP/2" if http2 else "HTTP/1.1",
        backend=backend,
        fault_rate=rate,
        requests=report.requests,
        faults=report.faults,
        delivered_again=check_samples(run.received, report, http2=http2),
        cancelled=len(report.cancelled),
        seconds=round(time.monotonic() - started, 1),
        weights=weights,
        weights_without_faults=right,
    )
    assert (0, 0) == (report.gaps, report.executed_twice)
    assert len(run.received) == figures.samples_run
    check_figures(figures)
    return figures


async def soak_engine(
    work: Work,
    folder: Path,
    *,
    http2: bool,
    rate: float,
    right: str,
    backend: str,
    traced: bool = False,
    tell: Tell = lambda _: None,
) -> Figures:
    """As `soak_toy`, against the embedded engine, which is killed half-way."""
    started = time.monotonic()
    async with engine_server(folder, rate=rate, seed=1) as engine:

        def session() -> Session:
            return Session(engine.url, KEY, http2=http2, retry=QUICK)

        run = Run(work, session, traced=traced, tell=tell)
        path = await run.through(engine.restart)
        weights = engine.weights(path)
    figures = run.figures(
        server="engine",
        protocol="HTTP/2" if http2 else "HTTP/1.1",
        backend=backend,
        fault_rate=rate,
        requests=engine.proxy.requests,
        faults=dict(engine.proxy.faults),
        delivered_again=0,  # the engine keeps no ledger
        cancelled=0,
        seconds=round(time.monotonic() - started, 1),
        weights=weights,
        weights_without_faults=right,
    )
    assert {1} == {*run.received.values()}, "a sample was given to the program twice"
    check_figures(figures)
    return figures


def check_samples(received: Counter[str], report: Report, *, http2: bool) -> int:
    """Compare what the client got with the ledger; return how many results went out again."""
    assert {1} == {*received.values()}, "a sample was given to the program twice"
    lives: dict[str, list[str]] = {}
    for name in report.samples:
        lives.setdefault(name.partition(":")[0], []).append(name)
    last = max(lives, key=lambda life: int(life[1:]))
    again = 0
    for life, names in lives.items():
        answered = {name for name in names if report.samples[name]}
        ours = {name for name in received if name.startswith(f"{life}:")}
        assert ours <= answered, "the program has a sample that the server did not give"
        if life == last:
            assert ours == answered == {*names}, "a sample was lost"
        again += sum(max(0, report.samples[name] - 1) for name in names)
    if not http2:
        assert again == 0, "a sample was answered twice"
    return again


def check_figures(figures: Figures) -> None:
    """What must be true of every soak."""
    assert figures.weights == figures.weights_without_faults
    assert figures.lives == 2, figures.ended_by
    assert figures.steps_run > figures.steps, "nothing was done again: was there a restart?"
    assert figures.samples_run >= figures.samples
    happened = sum(figures.faults.values()) / figures.requests
    assert 0.4 * figures.fault_rate < happened < 2 * figures.fault_rate, figures.faults
    second, last = figures.memory_mb[1], figures.memory_mb[3]
    assert last <= max(MOST_GROWTH * second, second + ALWAYS_ALLOWED_MB), figures.memory_mb
