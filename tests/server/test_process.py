"""The engine as a child process, from its user's side.

Each start imports torch: the same is told of `Session.local`, on both event loops.
"""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

from tinker_async.errors import ConfigError, EngineStartError
from tinker_async.local.process import local_engine

BOUND_S = 120


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_engine_lives_as_long_as_the_block(tmp_path: Path) -> None:
    """It is ready in the block and gone behind it; the key is not on its command line.

    The block's exception leaves as itself, not in a group.
    """
    lines: list[str] = []
    with anyio.fail_after(BOUND_S), pytest.raises(KeyError):
        async with local_engine(
            model="tiny-llama", api_key="tml-hidden", threads=1, progress=lines.append
        ) as engine:
            assert (engine.api_key, engine.models) == ("tml-hidden", ["tiny-llama"])
            assert engine.url.startswith("http://127.0.0.1:")
            process = engine.process
            assert process.returncode is None
            assert b"tml-hidden" not in command_line(process.pid)
            raise KeyError
    assert process.returncode == 0
    assert "loading tiny-llama" in lines


async def test_a_wrong_model_is_a_config_error() -> None:
    """With the message and the hint that the command line gives."""
    with anyio.fail_after(BOUND_S), pytest.raises(ConfigError, match="unknown model") as caught:
        async with local_engine(model="no-such-model"):
            pytest.fail("it must not start")
    assert caught.value.hint is not None


def test_a_model_that_does_not_load_is_an_engine_start_error(tmp_path: Path) -> None:
    """With the last lines it wrote."""
    anyio.run(fail_to_load, tmp_path)  # one event loop is enough: torch is slow to import


async def fail_to_load(tmp_path: Path) -> None:
    # What only the library notices that builds the model: heads of no size.
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_attention_heads": 0}')
    (tmp_path / "tokenizer.json").write_text("{}")
    header = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    whole = len(header).to_bytes(8, "little") + header + bytes(4)
    (tmp_path / "model.safetensors").write_bytes(whole)
    with anyio.fail_after(BOUND_S), pytest.raises(EngineStartError) as caught:
        async with local_engine(model=f"broken={tmp_path}"):
            pytest.fail("it must not start")
    assert "broken" in caught.value.message
    assert "error: " in caught.value.detail


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_too_slow_a_start_is_an_engine_start_error() -> None:
    """And the process is gone."""
    with (
        anyio.fail_after(BOUND_S),
        pytest.raises(EngineStartError, match=r"not ready after 0\.05 s"),
    ):
        async with local_engine(model="tiny-llama", startup_timeout_s=0.05):
            pytest.fail("it must not start")


async def test_cancelling_while_it_starts_leaves_no_process(tmp_path: Path) -> None:
    """The child is ended, however far it has come."""
    seen: list[str] = []
    with anyio.fail_after(BOUND_S):
        async with anyio.create_task_group() as tasks:

            def cancel(line: str) -> None:
                seen.append(line)
                tasks.cancel_scope.cancel()

            async with local_engine(model="tiny-llama", threads=1, progress=cancel):
                pytest.fail("it must not get ready")
    assert seen[:1] == ["loading tiny-llama"]
    assert not any(b"--exit-on-stdin-eof" in command_line(pid) for pid in children())


def command_line(pid: int) -> bytes:
    """Return a process's arguments, or nothing where the system does not tell."""
    file = Path(f"/proc/{pid}/cmdline")
    return file.read_bytes() if file.exists() else b""


def children() -> list[int]:
    """Return the processes of this one, or nothing where the system does not tell."""
    file = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    return [int(pid) for pid in file.read_text().split()] if file.exists() else []
