"""Official clients of five ages, unmodified, hold the main loop on our servers.

Each runs in a process and an environment of its own, over a real socket. `make test-compat` makes
the environments; without them only the newest client, which the tests need anyway, is here.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from server.processes import RunningServer, start_server

from tinker_async.testing import FakeService

ROOT = Path(__file__).resolve().parents[2]
CONVERSATION = Path(__file__).with_name("conversation.py")
BOUND_S = 120
NEWEST = "0.38.0"
TEXT = [17, 230, 5, 99, 41, 180, 7, 66, 254, 12, 133, 78, 201, 31, 150, 88]


def python_of(version: str) -> str:
    """The interpreter that has this client; skip without it, unless it has to be there."""
    if version == NEWEST:
        pytest.importorskip("tinker", reason="the official client is in the extra `judge`")
        return sys.executable
    folder = Path(os.environ.get("BENCHMARK_RIVALS", ROOT)).absolute() / f".venv-compat-{version}"
    if not (folder / ".ready").exists() and not os.environ.get("COMPAT_REQUIRED"):
        pytest.skip(f"`make test-compat` makes the environment of the client {version}")
    return str(folder / "bin" / "python")


def converse(version: str, *arguments: str) -> dict[str, Any]:
    process = subprocess.run(
        [python_of(version), str(CONVERSATION), *arguments],
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
        env={**os.environ, "TINKER_TELEMETRY": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
    )
    assert process.returncode == 0, process.stderr
    found: dict[str, Any] = json.loads(process.stdout)
    assert version == found["version"]
    return found


@pytest.fixture(scope="module", params=["0.4.1", "0.16.1", "0.24.1", "0.25.0", NEWEST])
def version(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    python_of(chosen)
    return chosen


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with start_server(tmp_path_factory.mktemp("compat") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def found(version: str, server: RunningServer) -> dict[str, Any]:
    """What this client found on the embedded engine."""
    return converse(version, server.url, server.api_key)


def test_it_trains_until_the_text_is_memorised(found: dict[str, Any]) -> None:
    """JSON or protobuf, the metrics arrive under the name that every age knows."""
    assert (["tiny-llama"], "tiny-llama") == (found["served"], found["info"])
    assert found["losses"][0] > 30
    assert found["losses"][-1] < 1


def test_forward_gives_each_datum_its_logprobs(found: dict[str, Any]) -> None:
    """By `/forward` or by `forward_only`, and of all parts of a call that had to be cut."""
    first, second, third = found["forward"]
    assert first == second == third
    assert 15 == len(first)
    count, loss = found["many"]
    assert 130 == count
    assert -130 * sum(first) == pytest.approx(loss, rel=1e-3)


def test_policy_losses_of_a_policy_on_itself_are_minus_the_advantages(
    found: dict[str, Any],
) -> None:
    assert [-15, -15] == pytest.approx([found["importance_sampling"], found["ppo"]], rel=1e-4)


def test_a_checkpoint_resumes_bit_for_bit(found: dict[str, Any]) -> None:
    """Into a new model, and into one that was there; without `optimizer` all comes back."""
    assert found["next"] == found["resumed"] == found["loaded"]


def test_samplers_recall_the_text(found: dict[str, Any]) -> None:
    assert TEXT[1:] == found["recalled"] == found["recalled_by_ephemeral"]
    assert TEXT[1:] != found["base_says"]
    assert [2] * 24 == found["at_once"]


def test_samples_come_with_what_was_asked_for(found: dict[str, Any]) -> None:
    assert [4, 4, 4] == [len(tokens) for tokens in found["sequences"]]
    assert [4, 4, 4] == [len(logprobs) for logprobs in found["sample_logprobs"]]
    assert found["prompt_logprobs"][0] is None
    assert all(value > math.log(0.5) for value in found["prompt_logprobs"][1:])
    assert TEXT[1:] == [row[0][0] for row in found["topk"][1:]]


def test_a_custom_loss_reports_its_own_metric(found: dict[str, Any]) -> None:
    assert 1.5 == found["custom"]["my_metric"]


def test_bad_requests_say_what_is_wrong_and_training_goes_on(found: dict[str, Any]) -> None:
    """An old client refuses the loss itself, and skips the number that it had taken for it."""
    assert "no_such_loss" in found["bad_loss"]
    assert "text alone" in found["image"]
    assert math.isfinite(found["after_the_error"])


def test_runs_and_checkpoints_are_listed_published_and_deleted(found: dict[str, Any]) -> None:
    state, sampler = found["state_path"], found["sampler_path"]
    assert state.split("/")[2] in found["runs"]
    assert 8 == found["rank"]
    both = [
        ["sampler_weights/fixed", "sampler", sampler],
        ["weights/trained", "training", state],
    ]
    assert both == sorted(found["listed"])
    assert {state, sampler} <= set(found["of_user"])
    assert [False, True] == sorted(found["public"])
    assert 0 == found["left"]


def test_an_archive_url_leads_to_this_server(found: dict[str, Any], server: RunningServer) -> None:
    """The newest client has no such call."""
    if NEWEST == found["version"]:
        assert "archive_url" not in found
    else:
        assert found["archive_url"].startswith(server.url)


SWITCHES = (
    "sample_use_retrieve_futures", "sample_join_sampling_session", "proto_compress_fwdbwd",
    "proto_write_fwdbwd", "fwd_via_fwdbwd", "create_model_via_load_weights",
)  # fmt: skip


@pytest.fixture(scope="module")
def switched_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    switches = [part for name in SWITCHES for part in ("--switch", f"{name}=true")]
    with start_server(tmp_path_factory.mktemp("switched") / "data", *switches) as running:
        yield running


def test_it_holds_with_every_switch_on(version: str, switched_server: RunningServer) -> None:
    """Protobuf, zstd, the session poller, and resuming by one request, as far as it knows them."""
    found = converse(version, switched_server.url, switched_server.api_key)
    assert TEXT[1:] == found["recalled"]
    assert found["next"] == found["resumed"] == found["loaded"]
    assert [2] * 24 == found["at_once"]


@pytest.fixture(scope="module")
def on_the_fake(version: str) -> dict[str, Any]:
    """What this client found on the fake service."""

    async def run() -> dict[str, Any]:
        service = FakeService(base_models=("toy",))
        async with service.serve() as url:
            key = service.api_key
            return await anyio.to_thread.run_sync(converse, version, url, key, "--no-gap")

    return anyio.run(run)


def test_the_fake_service_holds_the_same_loop(on_the_fake: dict[str, Any]) -> None:
    """Its toy learns, recalls, resumes and lists as the engine does."""
    found = on_the_fake
    assert found["losses"][0] > found["losses"][-1]
    assert found["recalled"] == found["recalled_by_ephemeral"] != found["base_says"]
    assert found["next"] == found["resumed"] == found["loaded"]
    assert 130 == found["many"][0]
    assert 0 == found["left"]
