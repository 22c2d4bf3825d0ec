"""The main loop against each kind of server that the fake can be, over a socket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import numpy as np
import pytest

from tinker_async import (
    AdamParams,
    Datum,
    Feature,
    ModelInput,
    SamplingParams,
    ServerFeatures,
    Session,
)
from tinker_async.testing import FakeService

KINDS = ("skyrl-0.3.0", "tuft-0.2.2", "tinker-0.4")
DATUM = Datum(
    ModelInput.from_ints([1, 2, 3]), {"target_tokens": [2, 3, 4], "weights": [1.0, 1.0, 1.0]}
)
PROMPT = ModelInput.from_ints([1, 2])

WAYS: dict[str, dict[Feature, bool | None]] = {
    "skyrl-0.3.0": {
        Feature.CLIENT_CONFIG: True,
        Feature.DYNAMIC_CONFIG: False,
        Feature.PROTOBUF_TRAINING: False,
        Feature.JSON_TRAINING: True,
        Feature.CREATE_BY_LOAD: False,
        Feature.SEQUENCE_IDS: False,
    },
    "tuft-0.2.2": {
        Feature.CLIENT_CONFIG: True,
        Feature.DYNAMIC_CONFIG: False,
        Feature.PROTOBUF_TRAINING: True,
        Feature.JSON_TRAINING: None,
        Feature.CREATE_BY_LOAD: False,
        Feature.SEQUENCE_IDS: False,
    },
    "tinker-0.4": {
        Feature.CLIENT_CONFIG: False,
        Feature.DYNAMIC_CONFIG: False,
        Feature.PROTOBUF_TRAINING: False,
        Feature.JSON_TRAINING: True,
        Feature.CREATE_BY_LOAD: False,
        Feature.SEQUENCE_IDS: False,
    },
}
"""What a session knows of each at its end."""


def total(data: Sequence[Datum], logprobs: list[Any]) -> tuple[Any, dict[str, float]]:
    """A loss of one's own: the negative sum, as cross-entropy with weights of one."""
    return -sum(one.sum() for one in logprobs), {"data:sum": float(len(data))}


async def main_loop(session: Session) -> ServerFeatures:
    trainer = await session.create_lora_training_client("toy", rank=4)
    before = await trainer.forward([DATUM], "cross_entropy")
    ahead = await trainer.forward_backward([DATUM, DATUM], "cross_entropy")
    own = await trainer.forward_backward_custom([DATUM], total)
    await trainer.optim_step(AdamParams(learning_rate=0.1))
    saved = await trainer.save_state("middle")

    resumed = await session.create_training_client_from_state_with_optimizer(saved.path)
    same = await resumed.forward([DATUM], "cross_entropy")
    there = await trainer.forward([DATUM], "cross_entropy")
    await resumed.forward_backward([DATUM], "cross_entropy")
    await resumed.optim_step(AdamParams(learning_rate=0.1))

    snapshot = await resumed.save_weights_and_get_sampling_client()
    sample = await snapshot.sample(PROMPT, SamplingParams(max_tokens=4, stop="never"), 2)
    scored = await snapshot.compute_logprobs(PROMPT)
    kept = await resumed.save_weights_for_sampler("end")
    sampler = await session.create_sampling_client(kept.path)
    drawn = await sampler.sample(PROMPT, SamplingParams(max_tokens=4))
    listed = [one.tinker_path async for one in session.rest.list_checkpoints(resumed.model_id)]

    logprobs: Any = before.loss_fn_outputs[0]["logprobs"].tolist()
    assert logprobs == ahead.loss_fn_outputs[1]["logprobs"].tolist()
    assert -sum(logprobs) == pytest.approx(own.metrics["loss:sum"])
    assert 1.0 == own.metrics["data:sum"]
    assert there.loss_fn_outputs[0]["logprobs"] == same.loss_fn_outputs[0]["logprobs"]
    assert logprobs != there.loss_fn_outputs[0]["logprobs"].tolist()
    assert [4, 4] == [len(one.tokens) for one in sample.sequences]
    assert 2 == len({one.sequence_id for one in sample.sequences} - {None})
    assert [True, False] == np.isnan(scored).tolist()
    assert 4 == len(drawn.sequences[0].tokens)
    assert [f"tinker://{resumed.model_id}/sampler_weights/end"] == listed
    return session.server.features


@pytest.mark.parametrize("kind", KINDS)
async def test_the_main_loop_runs_on_a_server_of_another_kind(kind: str) -> None:
    """Train, a loss of one's own, save, resume, sample, score, list: over a real socket."""
    service = FakeService(like=kind)
    with anyio.fail_after(60):
        async with service.serve() as url, Session(url, service.api_key) as session:
            features = await main_loop(session)

    found = {feature: features[feature].supported for feature in WAYS[kind]}
    assert WAYS[kind] == found
    assert [] == [one for one in service.ledger.executed if one.failed]


async def test_a_server_without_a_likeness_is_asked_in_the_newest_way() -> None:
    """Nothing of the negotiation costs the service a request."""
    service = FakeService()
    with anyio.fail_after(60):
        async with service.serve() as url, Session(url, service.api_key) as session:
            features = await main_loop(session)

    assert {200} == {one.status for one in service.ledger.entries}
    assert features[Feature.PROTOBUF_TRAINING].supported
    assert features[Feature.CREATE_BY_LOAD].supported
    assert features[Feature.SEQUENCE_IDS].supported
