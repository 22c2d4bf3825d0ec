"""Losses of one's own: traced, uploaded or not, and the same gradient every way."""

from __future__ import annotations

import math
from typing import Any

import anyio
import numpy as np
import pytest

import tinker_async as ta
from tinker_async.testing import FakeService
from tinker_async.wire.messages import ClientConfigResponse

torch = pytest.importorskip("torch")

BOUND_S = 30
RANKS: dict[str, Any] = {"logprobs": 1, "weights": 1}


def weighted(logprobs: Any, weights: Any) -> Any:
    loss = -(logprobs * weights).sum()
    return loss, {"custom/loss:sum": loss, "custom/mean:mean": logprobs.mean()}


def bounded(logprobs: Any, advantages: Any, logprobs_old: Any, beta: Any) -> Any:
    """With constants, indexing, a scalar input, and functions of torch's own."""
    ratio = torch.exp(logprobs - logprobs_old)
    free = ratio * advantages
    held = torch.clamp(ratio, 0.8, 1.2) * advantages
    first = logprobs[:1].sum() + logprobs[..., -1] * 0.0
    loss = -torch.minimum(free, held).sum() + beta * first * math.pi
    soft = torch.nn.functional.logsigmoid(torch.where(free > held, free, float("inf"))).sum()
    return loss, {"custom/soft:sum": soft.to(torch.float32).detach()}


def data(number: int = 2) -> list[ta.Datum]:
    return [
        ta.Datum(
            ta.ModelInput.from_ints([1 + index, 2, 3]),
            {"target_tokens": [2, 3, 4], "weights": [1.0, 0.5, float(index)]},
        )
        for index in range(number)
    ]


def service(*, uploads: bool) -> FakeService:
    config = ClientConfigResponse(custom_loss_server_side=uploads, fwdbwd_max_chunk_len=2)
    return FakeService(config=config)


@pytest.mark.parametrize("uploads", [False, True])
async def test_a_traced_loss_trains_as_the_built_in_one_does(uploads: bool) -> None:
    """Here or on the server: the weights afterwards are those of a cross-entropy."""
    fake = service(uploads=uploads)
    learnt = []
    with anyio.fail_after(BOUND_S):
        async with fake.session() as session:
            handle = await session.create_custom_loss(weighted, RANKS)
            assert (handle.loss_id is not None) == uploads
            for own in (False, True):
                trainer = await session.create_lora_training_client("toy", rank=4)
                step = (
                    trainer.forward_backward_custom(data(3), handle)
                    if own
                    else trainer.forward_backward(data(3), "cross_entropy")
                )
                await trainer.optim_step(ta.AdamParams(learning_rate=1e-2))
                learnt.append(fake.weights_of(trainer.model_id))
            metrics = (await step).metrics
    for token, row in learnt[0].items():
        np.testing.assert_allclose(row, learnt[1][token], rtol=1e-4, atol=1e-6)
    assert metrics["loss:sum"] == pytest.approx(metrics["custom/loss:sum"])
    assert ("surrogate_loss:sum" in metrics) == (not uploads)
    assert fake.ledger.count("create_custom_loss") == int(uploads)
    assert metrics["custom/mean:mean"] < 0


@pytest.mark.parametrize("uploads", [False, True])
async def test_inputs_of_every_rank_reach_the_loss(uploads: bool) -> None:
    """Scalars too; both ways give the same numbers."""
    datum = ta.Datum(
        ta.ModelInput.from_ints([1, 2]),
        {
            "target_tokens": [2, 3],
            "advantages": [1.0, -1.0],
            "logprobs_old": np.array([-5.0, -6.0], np.float32),
            "beta": np.array(0.25, np.float32),
        },
    )
    ranks: dict[str, Any] = {"logprobs": 1, "advantages": 1, "logprobs_old": 1, "beta": 0}
    with anyio.fail_after(BOUND_S):
        async with service(uploads=uploads).session() as session:
            handle = await session.create_custom_loss(bounded, ranks)
            trainer = await session.create_lora_training_client("toy", rank=4)
            found = await trainer.forward_backward_custom([datum], handle)
            bare = ta.Datum(datum.model_input, {"target_tokens": [2, 3]})
            plain = await trainer.forward([bare], "cross_entropy")
    logprobs = plain.loss_fn_outputs[0]["logprobs"].to_torch()
    expected, metrics = bounded(
        logprobs, *(datum.loss_fn_inputs[name].to_torch() for name in list(ranks)[1:])
    )
    assert float(expected) == pytest.approx(found.metrics["loss:sum"], rel=1e-5)
    assert float(metrics["custom/soft:sum"]) == pytest.approx(found.metrics["custom/soft:sum"])


async def test_the_same_loss_is_made_once() -> None:
    """Who makes it again gets the first handle; at the same time, too."""
    fake = service(uploads=True)
    handles = []
    with anyio.fail_after(BOUND_S):
        async with fake.session() as session:

            async def make() -> None:
                handles.append(await session.create_custom_loss(weighted, RANKS))

            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(make)
            other = await session.create_custom_loss(
                lambda logprobs: (logprobs.sum(), {}), {"logprobs": 1}
            )
    assert len({id(handle) for handle in handles}) == 1
    assert fake.ledger.count("create_custom_loss") == 2
    assert [other.loss_id, handles[0].loss_id] == ["s1:loss:1", "s1:loss:0"]
    assert "weighted(logprobs: rank 1, weights: rank 1): runs on the server" in repr(handles[0])


@pytest.mark.parametrize("uploads", [False, True])
async def test_data_that_do_not_suit_a_loss_are_refused_before_they_are_sent(
    uploads: bool,
) -> None:
    """A missing input, another rank, and the loss of another session."""
    fake = service(uploads=uploads)
    without = ta.Datum(ta.ModelInput.from_ints([1]), {"target_tokens": [2]})
    wide = ta.Datum(
        ta.ModelInput.from_ints([1]),
        {"target_tokens": [2], "weights": np.ones((1, 2), np.float32)},
    )
    with anyio.fail_after(BOUND_S):
        async with fake.session() as first, fake.session() as session:
            handle = await session.create_custom_loss(weighted, RANKS)
            foreign = await first.create_custom_loss(weighted, RANKS)
            trainer = await session.create_lora_training_client("toy", rank=4)
            for batch, loss, field in (
                ([*data(1), without], handle, "data[1].loss_fn_inputs['weights']"),
                ([wide], handle, "data[0].loss_fn_inputs['weights']"),
                (data(1), foreign, "loss_fn"),
                ([], handle, "data"),
            ):
                with pytest.raises(ta.InvalidInputError) as caught:
                    trainer.forward_backward_custom(batch, loss)
                assert field == caught.value.field
    assert fake.ledger.count("forward_backward") == 0


async def test_a_loss_that_the_server_does_not_take_is_its_callers_error() -> None:
    """The session goes on; a function can still be given as it is."""

    def unusual(logprobs: Any) -> Any:
        return torch.special.erf(logprobs).sum(), {}

    with anyio.fail_after(BOUND_S):
        async with service(uploads=True).session() as session:
            with pytest.raises(ta.RequestFailedError, match="is not allowed here"):
                await session.create_custom_loss(unusual, {"logprobs": 1})
            trainer = await session.create_lora_training_client("toy", rank=4)
            step = trainer.forward_backward_custom(
                data(), lambda _, logprobs: (logprobs[0].sum() + logprobs[1].sum(), {})
            )
            assert "loss:sum" in (await step).metrics


async def test_a_custom_loss_needs_its_id() -> None:
    """Said here, before anything is sent."""
    fake = service(uploads=True)
    with anyio.fail_after(BOUND_S):
        async with fake.session() as session:
            trainer = await session.create_lora_training_client("toy", rank=4)
            with pytest.raises(ta.InvalidInputError) as caught:
                trainer.forward_backward(data(), "custom")
            assert caught.value.field == "loss_fn_config['loss_id']"
            with pytest.raises(ta.RequestFailedError, match="no loss 'nobody'"):
                await trainer.forward_backward(data(), "custom", {"loss_id": "nobody"})


async def test_provenance_goes_along_with_a_custom_loss() -> None:
    """In both passes: the examples are the same ones."""
    span = ta.SampledProvenanceSpan(sequence_id="s1:sample:0:0:0", length=3)
    from tinker_async.losses import forward_data, surrogate_data

    marked = [one.with_provenance([span], [span]) for one in data()]
    leaf = ta.TensorData.from_value("logprobs", [-1.0, -2.0, -3.0])
    output = ta.ForwardBackwardOutput("ArrayRecord", [{"logprobs": leaf}] * 2, {})

    weighted_data, _, _ = surrogate_data(
        marked, output, lambda _, logprobs: (sum(map(torch.sum, logprobs)), {})
    )
    for one in (*forward_data(marked), *weighted_data):
        assert ((span,), (span,)) == (one.model_input_spans, one.loss_fn_input_spans)
