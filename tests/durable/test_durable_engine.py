"""The embedded engine: whatever is killed on the way, the training ends with the same bits."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

import tinker_async
from tinker_async.durable.ledger import Ledger

PROGRAM = Path(__file__).parent / "engine_program.py"
HOME = Path(tinker_async.__file__).parent.parent
STEPS = 60
MISCHIEF = ["poison"] * 5 + ["session"] * 2 + ["server"] * 2 + ["me"]


def lives(folder: Path, loss: str, backend: str, due: dict[int, str]) -> int:
    """Start the program until it has come to its end; return how often that took."""
    mischief = [f"{step}:{how}" for step, how in due.items()]
    command = [sys.executable, str(PROGRAM), str(folder), loss, backend, *mischief]
    for number in range(1, 5):
        ended = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": str(HOME)},
            capture_output=True,
            timeout=120,
            check=False,
        )
        if ended.returncode == 0:
            return number
        assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()[-3000:]
    raise AssertionError("it never came to its end")


def found(folder: Path) -> tuple[dict[int, float], dict[str, str]]:
    """The losses by step, and a digest of each file of the last checkpoint: weights, optimizer."""
    losses = {}
    for line in (folder / "losses").read_text(encoding="ascii").splitlines():
        step, loss = line.split()
        losses[int(step)] = float.fromhex(loss)
    files = [path for path in (folder / "data").rglob("weights/final/*") if path.is_file()]
    return losses, {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.suffix == ".safetensors"
    }


@cache
def undisturbed(loss: str) -> tuple[dict[int, float], dict[str, str]]:
    folder = Path(mkdtemp())
    assert 1 == lives(folder, loss, "asyncio", {})
    return found(folder)


@pytest.mark.parametrize("loss", ["cross_entropy", "own"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_run_through_all_kinds_of_death_gives_the_same_bits(
    tmp_path: Path, loss: str, backend: str
) -> None:
    """Five poisoned runs, two dead sessions, the server killed twice and the program once."""
    steps = random.Random(f"{loss} {backend}").sample(range(1, STEPS), len(MISCHIEF))
    started = lives(tmp_path, loss, backend, dict(zip(steps, MISCHIEF, strict=True)))

    losses, files = found(tmp_path)
    expected = undisturbed(loss)
    assert 2 == started
    assert expected[0] == losses
    assert len(expected[1]) >= 2
    assert expected[1] == files
    account = Ledger.read(tmp_path / "run")
    assert 6 <= sum(one.kind == "recovery" for one in account.recoveries)  # some come together
