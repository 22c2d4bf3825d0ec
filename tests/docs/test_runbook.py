"""The runbook for corrupted runs is true: its program and its commands, with a run that is corrupted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from docs.markdown import ROOT, blocks
from docs.test_pages import RUNBOOK, environment_of, run_program
from server.hosted import leave_gap
from server.processes import RunningServer, start_server

import tinker_async as ta

LIMITS = ("--limit", "gap_s=0.2", "--limit", "housekeeping_s=0.05")
DATA = [ta.Datum(ta.ModelInput.from_ints([5, 6, 7]), {"target_tokens": [6, 7, 8]})]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The embedded engine, which does not wait long for requests that never come."""
    with start_server(tmp_path_factory.mktemp("runbook") / "data", *LIMITS) as running:
        yield running


async def corrupted_run(server: RunningServer) -> str:
    """Make a run with some checkpoints, and lose a request of it; return its id."""
    async with ta.Session(server.url, server.api_key) as session:
        trainer = await session.create_lora_training_client(server.models[0], rank=4)
        for name in ("z-old", "a-new"):
            await trainer.train_step(DATA, "cross_entropy", ta.AdamParams())
            await trainer.save_state(name)
        await trainer.save_weights_for_sampler("newest-of-all")
        listed = [one async for one in session.rest.list_checkpoints(trainer.model_id)]
        assert listed[0].checkpoint_type == "sampler", "the first one listed is the wrong one"
        await leave_gap(session, trainer.model_id)
        with anyio.fail_after(10):
            while not (await session.rest.get_training_run(trainer.model_id)).corrupted:  # noqa: ASYNC110  # it is another process's
                await anyio.sleep(0.02)
        return trainer.model_id


@pytest.fixture(scope="module")
def run_id(server: RunningServer) -> str:
    """A run that is corrupted."""
    return anyio.run(corrupted_run, server)


def test_its_program_goes_on_from_the_newest_training_checkpoint(
    server: RunningServer, run_id: str, tmp_path: Path
) -> None:
    """With the optimizer and without, each in a run of its own."""
    printed = run_program(RUNBOOK, environment_of(server.url, server.api_key), tmp_path)
    lines = [line.split(" goes on at ") for line in printed.splitlines() if " goes on at " in line]
    assert [f"tinker://{run_id}/weights/a-new"] * 2 == [old for old, _ in lines]
    assert 2 == len({new for _, new in lines})
    assert all(new.endswith("/weights/again") for _, new in lines)


def test_its_commands_find_the_run_and_go_on_from_it(
    server: RunningServer, run_id: str, tmp_path: Path
) -> None:
    """Each line of the runbook's shell block, in order."""
    [block] = [one for one in blocks(RUNBOOK, "sh") if "recover" in one.text]
    program = tmp_path / "bin" / "tinker-async"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m tinker_async.cli "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join([str(program.parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        cwd=tmp_path,
        env={
            **os.environ,
            **environment_of(server.url, server.api_key),
            "RUN": run_id,
            "PATH": path,
            "HOME": str(tmp_path),
            "PYTHONPATH": str(ROOT),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    assert run_id in done.stdout.splitlines()[0]
    assert "status 12: 12 is a corrupted run" in done.stdout
    assert f"tinker://{run_id}/weights/a-new" in done.stdout
