"""A small soak; `make soak` runs the whole one."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from soak.program import Work
from soak.trial import Figures, engine_weights, soak_engine, soak_toy, toy_weights

SMALL = Work(steps=12, group=10, every=3)
TINY = Work(steps=6, group=2, every=2, model="tiny-llama", supervised=True)


@pytest.fixture(autouse=True)
def traced() -> Iterator[None]:
    """The memory that a test takes from here on; that of the whole process says nothing here."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


def named(anyio_backend: Any) -> str:
    name, options = anyio_backend
    return "uvloop" if options.get("use_uvloop") else str(name)


async def test_a_program_goes_on_through_faults_and_a_restart(anyio_backend: Any) -> None:
    """Each sample once, the ledger and the client agree, and the weights are as without faults."""
    with anyio.fail_after(120):
        right = await toy_weights(SMALL)
        for http2 in (False, True):
            found = await soak_toy(
                SMALL,
                http2=http2,
                rate=0.05,
                right=right,
                backend=named(anyio_backend),
                traced=True,
            )
            assert isinstance(found, Figures)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_program_goes_on_when_the_engine_is_killed(
    anyio_backend: str, tmp_path: Path
) -> None:
    """As above; the engine's process is another one afterwards, on the same folder."""
    with anyio.fail_after(240):
        right = await engine_weights(TINY, tmp_path / "right")
        found = await soak_engine(
            TINY,
            tmp_path / "failing",
            http2=False,
            rate=0.05,
            right=right,
            backend=anyio_backend,
            traced=True,
        )
    assert found.weights == right
