"""A program that is killed, and started again, goes on with its durable training."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.abc
import pytest
from anyio.streams.text import TextReceiveStream
from durable.toy_training import outcome, undisturbed

import tinker_async
from tinker_async import RunReport
from tinker_async.durable.ledger import Ledger
from tinker_async.testing import FakeService

PROGRAM = Path(__file__).parent / "program.py"
BACKENDS = ("asyncio", "trio")
STEPS = 24


class Life:
    """One start of the program, and what it says."""

    def __init__(self, process: anyio.abc.Process) -> None:
        self.process = process
        self.losses: dict[int, float] = {}
        self.begins = -1
        self.model_id = ""
        self._lines = self._said()

    async def _said(self) -> AsyncIterator[str]:
        rest = ""
        assert self.process.stdout is not None
        async for text in TextReceiveStream(self.process.stdout):
            *lines, rest = (rest + text).split("\n")
            for line in lines:
                if line.startswith("> "):
                    yield line.removeprefix("> ")

    async def until(self, step: int) -> None:
        """Take in what it says until a step is done, or until it has ended."""
        async for line in self._lines:
            word, value = line.split()
            if word == "begins":
                self.begins = int(value)
            elif word == "ends":
                self.model_id = value
            else:
                self.losses[int(word)] = float.fromhex(value)
            if word in (str(step), "ends"):
                return

    async def ended(self) -> dict[int, float]:
        """Let it end, and return all the losses that it said."""
        assert self.process.stdin is not None
        with suppress(anyio.BrokenResourceError):
            await self.process.stdin.aclose()
        await self.until(-1)
        await self.process.wait()
        await self.process.aclose()
        return self.losses


async def life(url: str, run_dir: Path, backend: str) -> Life:
    """Start the program."""
    command = [sys.executable, str(PROGRAM), url, str(run_dir), str(STEPS), backend]
    home = Path(tinker_async.__file__).parent.parent
    env = {**os.environ, "PYTHONPATH": str(home)}
    return Life(await anyio.open_process(command, stderr=subprocess.DEVNULL, env=env))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_program_that_is_killed_or_ended_loses_nothing(
    tmp_path: Path, backend: str
) -> None:
    """After a kill -9 at any step the next start goes on from the newest checkpoint; at a SIGTERM
    the step ends, a checkpoint is taken, and the program ends with 143."""
    expected = await undisturbed(STEPS)
    service, chance = FakeService(hold_s=0.01), random.Random(5)
    losses: dict[int, float] = {}
    with anyio.fail_after(60):
        async with service.serve() as url:
            killed = await life(url, tmp_path, backend)
            await killed.until(chance.randrange(5, 9))
            killed.process.kill()
            losses |= await killed.ended()
            ended = await life(url, tmp_path, backend)
            await ended.until(chance.randrange(12, 17))
            ended.process.terminate()
            losses |= await ended.ended()
            saved = Ledger.read(tmp_path).confirmed
            last = await life(url, tmp_path, backend)
            await last.until(-1)
            found = outcome(
                service,
                last.model_id,
                [(losses | last.losses)[step] for step in range(STEPS)],
            )
            await last.ended()

    assert [-signal.SIGKILL, 128 + signal.SIGTERM, 0] == [
        one.process.returncode for one in (killed, ended, last)
    ]
    assert 0 == killed.begins
    assert ended.begins in range(4, max(killed.losses) + 2, 4)
    asked = next(entry.step for entry in saved if entry.reason == "signal")
    # Steps that are done while that one is being saved are done again, unless they are saved, too.
    assert 13 <= asked <= last.begins <= max(ended.losses) + 2
    assert expected == found
    report = RunReport.of(Ledger.read(tmp_path))
    assert 2 == report.resumes == len(report.incidents)
    for before, after, incident in zip(
        (killed, ended), (ended, last), report.incidents, strict=True
    ):
        repeated = max(before.losses) - after.begins
        assert incident.steps_replayed in (repeated, repeated + 1, repeated + 2)
