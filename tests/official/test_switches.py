"""The genuine official client with the server's switches on: poller, cancel, join, uploaded losses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from official.endpoints import ACCEPTED, endpoint_of
from server.processes import start_server

SWITCHED = Path(__file__).with_name("switched.py")
SWITCHES = (
    "sample_use_retrieve_futures", "sample_join_sampling_session", "sample_cancel_enabled",
    "custom_loss_server_side", "pjwt_auth_enabled",
)  # fmt: skip
BOUND_S = 120


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the official client found."""
    pytest.importorskip("tinker", reason="the official client is in the extra `judge`")
    switches = [part for name in SWITCHES for part in ("--switch", f"{name}=true")]
    with start_server(tmp_path_factory.mktemp("switched") / "data", *switches) as server:
        process = subprocess.run(
            [sys.executable, str(SWITCHED), server.url, server.api_key],
            capture_output=True,
            text=True,
            timeout=BOUND_S,
            check=False,
            env={**os.environ, "TINKER_TELEMETRY": "1", "OMP_NUM_THREADS": "1"},
        )
    assert process.returncode == 0, process.stderr
    result: dict[str, Any] = json.loads(process.stdout)
    return result


def test_it_was_content_with_the_answers(found: dict[str, Any]) -> None:
    """To each request of this list, and more."""
    assert {*ACCEPTED["test_switches"]} <= {endpoint_of(*one) for one in found["answered"]}
    assert "ok" == found["health"]


def test_one_poll_tells_of_many_samples(found: dict[str, Any]) -> None:
    assert [2] * 40 == found["many"]
    assert 8 == found["logprobs"]


def test_a_failed_sample_is_told_with_its_reason(found: dict[str, Any]) -> None:
    assert "user: " == found["failing"][:6]
    assert "token 9999" in found["failing"]


def test_clones_of_a_sampler_do_not_collide(found: dict[str, Any]) -> None:
    assert [[2] * 40] * 2 == found["clones"]


def test_abandoned_samples_leave_the_engine(found: dict[str, Any]) -> None:
    """They would take it half a minute; the next sample does not wait for them."""
    assert found["after_abandoning_s"] < 10


def test_all_that_may_be_asked_about_a_prompt_is_answered(found: dict[str, Any]) -> None:
    """The last-n limit is for the prompt's own log-probs; -1 names no token."""
    asked = found["about_prompts"]
    assert [0.0] * 7 == [row[1] for row in asked["named"]]
    assert asked["of_3"] == pytest.approx([row[0] for row in asked["named"]], abs=1e-4)
    assert [7, 4] == asked["alternatives"]
    assert asked["alternative_logprobs"] < 0
    assert [True] * 6 + [False] * 2 == [one is None for one in asked["prompt_logprobs"]]
    assert [3, 3, 3] == asked["topk_of_samples"]


def test_an_uploaded_loss_trains_as_the_built_in_one(found: dict[str, Any]) -> None:
    """It runs on the server, which returns its metrics beside the loss."""
    custom = found["custom_loss"]
    assert custom["loss_id"]
    assert custom["plain"] == pytest.approx(custom["custom"], rel=1e-4)
    assert custom["custom"][2] < custom["custom"][0]
    assert {"custom/lowest:mean", "custom/shortfall:sum", "loss:sum"} <= set(custom["metrics"])
