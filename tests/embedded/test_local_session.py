"""`Session.local`: the engine's process lives exactly as long as the block."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from tinker_async import ConfigError, ModelInput, SamplingParams, Session, SessionLostError


def children(parent: int | None = None) -> set[int]:
    """Ids of a process's children, zombies included."""
    tasks = Path(f"/proc/{parent or os.getpid()}/task")
    return {
        int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()
    }


@pytest.mark.parametrize(
    ("anyio_backend", "way"),
    [("asyncio", "cancellation"), ("trio", "cancellation"), ("trio", "return")],
)
async def test_no_process_is_left_whichever_way_the_block_is_left(way: str) -> None:
    """Ended and reaped when the block has been left."""
    before = children()
    started: set[int] = set()
    with anyio.fail_after(120), anyio.CancelScope() as scope:
        async with Session.local("tiny-llama", threads=1) as session:
            started = children() - before
            sampler = await session.create_sampling_client(base_model="tiny-llama")
            await sampler.sample(ModelInput.from_ints([1]), SamplingParams(max_tokens=1))
            if way == "cancellation":
                scope.cancel()
                await anyio.sleep_forever()

    assert started
    assert before == children()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_engine_that_dies_ends_the_block_with_the_reason() -> None:
    """Not a hang, and no minutes of retries."""
    before = children()
    with anyio.fail_after(120), pytest.raises(SessionLostError, match="process ended"):
        async with Session.local("tiny-llama", threads=1):
            for child in children() - before:
                os.kill(child, signal.SIGKILL)
            await anyio.sleep_forever()
    assert before == children()


async def test_an_unknown_model_is_a_config_error_that_lists_the_known_ones() -> None:
    """The engine's own words reach the caller."""
    with anyio.fail_after(120), pytest.raises(ConfigError, match="smollm2-135m"):
        async with Session.local("tiny-gpt"):
            pass


SCRIPT = """
import anyio, tinker_async as ta

async def main():
    async with ta.Session.local("tiny-llama", threads=1) as session:
        print("open", flush=True)
        await anyio.sleep_forever()

anyio.run(main, backend="BACKEND")
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_ctrl_c_leaves_nothing(backend: str) -> None:
    """SIGINT to the whole foreground group, as a terminal sends it."""
    script = SCRIPT.replace("BACKEND", backend)
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)

    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody of its group is alive


def test_a_killed_program_takes_its_engine_along() -> None:
    """SIGKILL leaves no time to clean up; the engine notices that its standard input has ended."""
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT.replace("BACKEND", "asyncio")],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        process.kill()
        process.wait()
        # The pipe's other end belongs to the engine too: it closes when the engine ends.
        assert process.stdout.read() == ""
