"""The genuine official client, unmodified, trains and samples on the embedded engine.

One conversation is held, in a process of its own; each test looks at a part of it.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from official.endpoints import ACCEPTED, endpoint_of
from server.processes import start_server

TEXT = [17, 230, 5, 99, 41, 180, 7, 66, 254, 12, 133, 78, 201, 31, 150, 88]
CONVERSATION = Path(__file__).with_name("conversation.py")
BOUND_S = 300


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the official client found."""
    pytest.importorskip("tinker", reason="the official client is in the extra `judge`")
    with start_server(tmp_path_factory.mktemp("official") / "data") as server:
        process = subprocess.run(
            [sys.executable, str(CONVERSATION), server.url, server.api_key],
            capture_output=True,
            text=True,
            timeout=BOUND_S,
            check=False,
            env={**os.environ, "TINKER_TELEMETRY": "0", "OMP_NUM_THREADS": "1"},
        )
        assert process.returncode == 0, process.stderr
        assert [server.send("GET", "/healthz")[0]] == [200]
    result: dict[str, Any] = json.loads(process.stdout)
    return result


def test_it_was_content_with_the_answers(found: dict[str, Any]) -> None:
    """To each request of this list, and more."""
    assert {*ACCEPTED["test_official_client"]} <= {endpoint_of(*one) for one in found["answered"]}


def test_it_learns_which_models_are_served(found: dict[str, Any]) -> None:
    assert found["served"] == ["tiny-llama"]
    assert found["info"] == "tiny-llama"


def test_it_trains_until_the_text_is_memorised(found: dict[str, Any]) -> None:
    """From several nats a token to a hundredth of one."""
    assert found["losses"][0] > 30
    assert found["losses"][-1] < 0.1


def test_greedy_samples_recall_the_text(found: dict[str, Any]) -> None:
    """From a named checkpoint and from ephemeral weights, which later steps do not change."""
    assert TEXT[1:] == found["recalled"]
    assert TEXT[1:] == found["recalled_by_ephemeral"]
    assert TEXT[1:] != found["base_says"]
    assert found["base_of_sampler"] == "tiny-llama"


def test_restoring_with_the_optimizer_goes_on_bit_for_bit(found: dict[str, Any]) -> None:
    """Without it the weights are the same, but not what the next steps make of them."""
    assert found["next"] == found["next_with_optimizer"]
    assert found["next"][0] == found["next_without_optimizer"][0]
    assert found["next"][1:] != found["next_without_optimizer"][1:]


def test_forward_passes_and_prompt_logprobs_agree(found: dict[str, Any]) -> None:
    """Trainer and sampler are one model; the first prompt position has no log-prob."""
    first, second, third = found["forward"]
    assert first == second == third
    assert found["prompt_logprobs"][0] is None
    assert len(TEXT) == len(found["prompt_logprobs"])
    assert all(value > math.log(0.9) for value in found["prompt_logprobs"][1:])


def test_top_k_prompt_logprobs_name_the_likeliest_tokens(found: dict[str, Any]) -> None:
    """Best first; of a memorised text that is the text itself."""
    assert found["topk"][0] is None
    assert TEXT[1:] == [row[0][0] for row in found["topk"][1:]]
    for row, expected in zip(found["topk"][1:], found["prompt_logprobs"][1:], strict=True):
        assert row[0][1] >= row[1][1]
        assert row[0][1] == pytest.approx(expected, abs=1e-4)


def test_samples_have_ids_and_logprobs(found: dict[str, Any]) -> None:
    assert [len(sequence) for sequence in found["sequences"]] == [4, 4, 4]
    assert len(set(found["sequence_ids"])) == 3
    assert all(value <= 0 for row in found["sample_logprobs"] for value in row)


def test_a_custom_loss_that_is_cross_entropy_trains_alike(found: dict[str, Any]) -> None:
    """`forward_backward_custom` relies on un-normalised cross entropy and on `loss:sum`."""
    assert found["custom_losses"] == pytest.approx(found["plain_losses"], rel=1e-4)
    assert found["custom_metric"] == 1.5


def test_a_bad_loss_is_the_users_fault_and_training_goes_on(found: dict[str, Any]) -> None:
    category, message = found["bad_loss"]
    assert "user" in category
    assert "no_such_loss" in message
    assert found["after_the_error"] > 0


def test_runs_and_checkpoints_are_listed_and_deleted(found: dict[str, Any]) -> None:
    run_id = found["state_path"].split("/")[2]
    assert run_id in found["runs"]
    assert found["rank"] == 8
    assert [
        ["sampler_weights/fixed", "sampler", found["sampler_path"]],
        ["weights/trained", "training", found["state_path"]],
    ] == found["listed"]
    assert found["left"] == 0
