"""The genuine official client, unmodified, holds its whole conversation with the fake service."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from tinker_async.testing import FakeService, faults

CONVERSATION = Path(__file__).parents[1] / "official" / "conversation.py"
BOUND_S = 300


async def converse(service: FakeService) -> dict[str, Any]:
    """Run the conversation in a process of its own; return what the client found."""
    async with service.serve() as url:
        with anyio.fail_after(BOUND_S):
            process = await anyio.run_process(
                [sys.executable, str(CONVERSATION), url, service.api_key],
                env={**os.environ, "TINKER_TELEMETRY": "0", "OMP_NUM_THREADS": "1"},
                stderr=subprocess.PIPE,
                check=False,
            )
    assert process.returncode == 0, process.stderr.decode()
    found: dict[str, Any] = json.loads(process.stdout)
    return found


@pytest.fixture(scope="module")
def service() -> FakeService:
    """As it was left by a conversation, in which each of these faults happened."""
    pytest.importorskip("tinker", reason="the official client is in the extra `judge`")
    service = FakeService(base_models=("toy",))
    service.faults.on("optim_step", faults.Status(500), occurrence=5)
    service.faults.on("forward_backward", faults.DropReply(), occurrence=7)
    service.faults.on("asample", faults.TooMany(0.1, "ms"), occurrence=1)
    service.faults.on("retrieve_future", faults.QueueState("paused_capacity", "why"), occurrence=9)
    service.found = anyio.run(converse, service)  # type: ignore[attr-defined]  # for the tests
    return service


@pytest.fixture
def found(service: FakeService) -> dict[str, Any]:
    """What the official client found."""
    result: dict[str, Any] = service.found  # type: ignore[attr-defined]  # see above
    return result


def test_it_trains_until_the_text_is_memorised(found: dict[str, Any]) -> None:
    assert (["toy"], "toy") == (found["served"], found["info"])
    assert found["losses"][0] > 30
    assert found["losses"][-1] < 0.1


def test_samplers_recall_the_text(found: dict[str, Any]) -> None:
    """Named and ephemeral; later steps do not reach them."""
    assert found["recalled"] == found["recalled_by_ephemeral"] != found["base_says"]
    assert "toy" == found["base_of_sampler"]
    assert all(value > math.log(0.9) for value in found["prompt_logprobs"][1:])
    assert [None] == found["prompt_logprobs"][:1]


def test_restoring_with_the_optimizer_goes_on_bit_for_bit(found: dict[str, Any]) -> None:
    assert found["next"] == found["next_with_optimizer"]
    assert found["next"][0] == found["next_without_optimizer"][0]
    assert found["next"][1:] != found["next_without_optimizer"][1:]


def test_a_custom_loss_that_is_cross_entropy_trains_alike(found: dict[str, Any]) -> None:
    assert found["custom_losses"] == pytest.approx(found["plain_losses"], rel=1e-4)


def test_a_bad_loss_is_the_users_fault(found: dict[str, Any]) -> None:
    category, message = found["bad_loss"]
    assert "user" in category
    assert "no_such_loss" in message


def test_checkpoints_are_listed_and_deleted(found: dict[str, Any]) -> None:
    assert ["weights/trained", "sampler_weights/fixed"] == [one[0] for one in found["listed"]]
    assert (8, 0) == (found["rank"], found["left"])


def test_the_ledger_has_no_gap_and_each_sample_once(service: FakeService) -> None:
    """The official client resends under the same number; nothing ran twice."""
    ledger = service.ledger
    for model_id in {one.model_id for one in ledger.executed}:
        assert [] == ledger.gaps(model_id)
        numbers = [one.seq_id for one in ledger.executed if one.model_id == model_id]
        assert len(numbers) == len(set(numbers))
    assert ledger.samples_answered_once()
    assert {(("s1:train:0"), 13): 2}.keys() <= ledger.duplicates().keys()


def test_every_fault_happened(service: FakeService) -> None:
    faulted = [entry.fault for entry in service.ledger.entries if entry.fault is not None]

    assert {"Status(500)", "DropReply", "TooMany(ms)"} < set(faulted)
    assert 4 == len(faulted)
