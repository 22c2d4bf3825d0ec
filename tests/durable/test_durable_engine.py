"""The embedded engine: whatever is killed on the way, the training ends with the same bits."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from durable.engine_program import NAMES, STEPS

import tinker_async
from tinker_async import RunReport
from tinker_async.durable.ledger import Ledger

PROGRAM = Path(__file__).parent / "engine_program.py"
HOME = Path(tinker_async.__file__).parent.parent
MISCHIEF = ["poison"] * 5 + ["session"] * 2 + ["server"] * 2 + ["me"]


def lives(folder: Path, backend: str, due: dict[int, str]) -> int:
    """Start the program until it has come to its end; return how often that took."""
    mischief = [f"{step}:{how}" for step, how in due.items()]
    command = [sys.executable, str(PROGRAM), str(folder), backend, *mischief]
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


class Found(msgspec.Struct):
    """What a training came to."""

    losses: dict[int, float]
    """By step."""
    files: dict[str, str]
    """A digest of each file of the last checkpoint: weights, optimizer."""


def found(folder: Path, name: str, way: str) -> Found:
    losses = {}
    for line in (folder / name / way).read_text(encoding="ascii").splitlines():
        step, loss = line.split()
        losses[int(step)] = float.fromhex(loss)
    files = [path for path in (folder / "data").rglob(f"weights/{way}-{name}/*") if path.is_file()]
    return Found(
        losses,
        {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
            if path.suffix == ".safetensors"
        },
    )


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_run_through_all_kinds_of_death_gives_the_same_bits(tmp_path: Path, backend: str) -> None:
    """Five poisoned runs, two dead sessions, the server killed twice and the program once.

    Two trainings at a time, one with a loss of the user's own; what it cost is in the report.
    """
    steps = random.Random(backend).sample(range(1, STEPS), len(MISCHIEF))
    started = lives(tmp_path, backend, dict(zip(steps, MISCHIEF, strict=True)))

    assert 2 == started
    for name in NAMES:
        expected, own = found(tmp_path, name, "plain"), found(tmp_path, name, "durable")
        assert set(range(STEPS)) == set(expected.losses)
        assert expected.losses == own.losses
        assert len(expected.files) >= 2
        assert expected.files == own.files
        report = RunReport.of(Ledger.read(tmp_path / name / "run"))
        assert 5 <= report.recoveries  # some come together
        assert (1, 0) == (report.resumes, report.failed)
        assert 0 < report.steps_replayed < STEPS * len(report.incidents)
        assert report.seconds_lost > 0
        said = (tmp_path / name / "report").read_text(encoding="utf-8")
        assert str(report).splitlines()[1:] == said.splitlines()[1:]  # the first is of its moment
