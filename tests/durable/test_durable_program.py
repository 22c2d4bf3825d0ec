"""A program that is killed, and started again, goes on with its durable training."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.abc
import pytest
from anyio.streams.text import TextReceiveStream
from durable.toy_training import STEPS, outcome, undisturbed

import tinker_async
from tinker_async.durable.ledger import Ledger
from tinker_async.testing import FakeService

PROGRAM = Path(__file__).parent / "program.py"
BACKENDS = ("asyncio", "trio")


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


async def life(url: str, run_dir: Path, backend: str, linger_s: float = 0.0) -> Life:
    command = [sys.executable, str(PROGRAM), url, str(run_dir), str(STEPS), backend, str(linger_s)]
    home = Path(tinker_async.__file__).parent.parent
    env = {**os.environ, "PYTHONPATH": str(home)}
    return Life(await anyio.open_process(command, stderr=subprocess.DEVNULL, env=env))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_program_that_is_killed_loses_nothing(tmp_path: Path, backend: str) -> None:
    """`kill -9` at any step: the next start goes on from the newest checkpoint."""
    expected = await undisturbed()
    service, chance = FakeService(hold_s=0.01), random.Random(5)
    losses: dict[int, float] = {}
    begins = []
    with anyio.fail_after(60):
        async with service.serve() as url:
            for step in (chance.randrange(12, 25), chance.randrange(35, 55), None):
                one = await life(url, tmp_path, backend, linger_s=30.0)
                await one.until(-1 if step is None else step)
                losses |= one.losses
                begins.append(one.begins)
                if step is None:
                    found = outcome(service, one.model_id, [losses[at] for at in range(STEPS)])
                one.process.kill()
                await one.process.wait()
                await one.process.aclose()

    assert begins[0] == 0
    assert begins[1] >= 10
    assert begins[2] >= 30
    assert expected == found
    resumed = [record for record in Ledger.read(tmp_path).recoveries if record.kind == "resume"]
    assert 2 == len(resumed)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_program_that_is_asked_to_end_saves_first(tmp_path: Path, backend: str) -> None:
    """At a SIGTERM the step ends, a checkpoint is taken, and the program ends with 143."""
    service = FakeService(hold_s=0.01, train_s=0.01)
    with anyio.fail_after(60):
        async with service.serve() as url:
            one = await life(url, tmp_path, backend)
            await one.until(14)
            one.process.terminate()
            code = await one.process.wait()
            await one.until(-1)
            await one.process.aclose()

    newest = Ledger.read(tmp_path).confirmed[-1]
    assert 128 + signal.SIGTERM == code
    assert "signal" == newest.reason
    assert newest.step in (max(one.losses), max(one.losses) + 1, max(one.losses) + 2)
    assert newest.step >= 15
