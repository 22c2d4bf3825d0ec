"""The pytest plugin, in a pytest of its own: fixtures, the marker, and what it costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tinker_async

ROOT = Path(tinker_async.__file__).parents[1]

FIXTURES = """
import pytest
from tinker_async import ModelInput, SamplingParams
from tinker_async.testing import faults

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


async def test_samples(fake_session, tinker_faults, tinker_ledger, fake_service):
    assert tinker_faults is fake_service.faults
    assert tinker_ledger is fake_service.ledger
    rule = tinker_faults.on("retrieve_future", faults.DropReply(), occurrence=1)
    sampler = await fake_session.create_sampling_client(base_model=fake_service.base_model)
    await sampler.sample(ModelInput.from_ints([1]), SamplingParams(max_tokens=3))
    assert rule.hits == 1
    assert tinker_ledger.samples_answered_once()
    assert tinker_ledger.count("create_session") == 1


async def test_each_test_has_a_service_of_its_own(fake_session, tinker_ledger):
    assert not tinker_ledger.samples
"""

VIRTUAL = """
import time

import anyio
import pytest
from tinker_async import RetryPolicy
from tinker_async.testing import FakeService, faults

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.mark.virtual_time
async def test_an_hour_is_nothing(fake_session, tinker_ledger):
    started = anyio.current_time()
    await anyio.sleep(3605)
    assert anyio.current_time() - started == pytest.approx(3605, abs=1)
    assert 350 <= tinker_ledger.count("session_heartbeat") <= 361


@pytest.mark.virtual_time
async def test_time_begins_anew():
    assert anyio.current_time() < 10


async def test_without_the_mark_it_is_real():
    started = anyio.current_time()
    await anyio.sleep(0.01)
    assert anyio.current_time() - started < 5
"""


def run(folder: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on one file, with the plugins of anyio and of the package only."""
    folder.joinpath("test_it.py").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "--strict-markers"]
    for plugin in ("no:cacheprovider", "anyio.pytest_plugin", "tinker_async.testing.plugin"):
        command += ["-p", plugin]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [*command, *options, "test_it.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_fixtures_give_a_session_with_a_fake_server(tmp_path: Path) -> None:
    """On each backend that the user's own `anyio_backend` names."""
    done = run(tmp_path, FIXTURES)

    assert "4 passed" in done.stdout, done.stdout + done.stderr
    assert 0 == done.returncode


def test_the_mark_runs_a_test_once_in_virtual_time(tmp_path: Path) -> None:
    """On trio, whatever the user's `anyio_backend` is; other tests stay as they are."""
    done = run(tmp_path, VIRTUAL, "-v", "-rA")

    assert 0 == done.returncode, done.stdout + done.stderr
    assert "test_an_hour_is_nothing[virtual_time]" in done.stdout
    assert "test_without_the_mark_it_is_real[asyncio]" in done.stdout
    assert "4 passed" in done.stdout


def test_the_fixtures_are_described(tmp_path: Path) -> None:
    done = run(tmp_path, FIXTURES, "--fixtures")

    for name in ("fake_service", "fake_session", "tinker_faults", "tinker_ledger"):
        assert name in done.stdout


@pytest.mark.parametrize("module", ["tinker_async.testing.plugin", "tinker_async.testing"])
def test_loading_it_imports_nothing_heavy(module: str) -> None:
    """Every run of pytest loads it, whether it is used or not."""
    code = f"""
import sys, pytest
before = set(sys.modules)
import {module}
print(sorted(name for name in set(sys.modules) - before if not name.startswith("tinker_async")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "[]\n" == done.stdout


def test_the_kit_needs_neither_torch_nor_the_server_libraries() -> None:
    code = """
import sys
from tinker_async.testing import *
from tinker_async.testing import serving, http1_server, http2_server
print(sorted({"torch", "transformers", "starlette", "hypercorn", "pytest", "zstandard"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "[]\n" == done.stdout
