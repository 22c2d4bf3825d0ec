"""Losses that see a whole sequence: one ratio for all its tokens, and losses that users upload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.training_cases import finish, rl_data, sft_data, shaken, train

from tinker_async.data.custom_loss import CustomLossGraph, CustomLossInput, CustomLossNode
from tinker_async.data.datum import Datum
from tinker_async.errors import InvalidInputError
from tinker_async.local.engine.base import BaseModel
from tinker_async.local.engine.jobs import CustomLoss
from tinker_async.local.engine.training import TrainedModel, forward_backward
from tinker_async.local.tiny import build_tiny
from tinker_async.loss_tracing import trace_loss

LENGTHS = (5, 17, 3, 9)
WIDE: dict[str, Any] = {"clip_low_threshold": 0.0, "clip_high_threshold": 1e6}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One architecture is enough: what is looked at here comes before the layers, or after them."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    build_tiny("tiny-llama", folder)
    return folder


def gradients(model: TrainedModel) -> dict[str, torch.Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in model.adapter.weights.items()
        if parameter.grad is not None
    }


def assert_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert expected.keys() == found.keys()
    for key, gradient in expected.items():
        assert (found[key] - gradient).abs().max() <= 1e-4 * gradient.abs().max(), key


def array(datum: Datum, name: str) -> Any:
    return datum.loss_fn_inputs[name].to_numpy()


def test_gspo_has_one_ratio_for_a_sequence(base: BaseModel) -> None:
    """Its gradient is that of cross entropy weighted with ratio times advantage."""
    data = rl_data(LENGTHS)
    model, other = shaken(base), shaken(base)
    found = train(base, model, data, "gspo", micro_batch_tokens=20, **WIDE)
    weighted, total = [], 0.0
    for datum, output in zip(data, found.loss_fn_outputs, strict=True):
        gap = output["logprobs"].to_numpy() - array(datum, "logprobs")
        advantages = array(datum, "advantages")
        counts = advantages != 0
        ratio = float(np.exp(gap[counts].mean())) if counts.any() else 1.0
        total -= float((ratio * advantages).sum())
        inputs = {"target_tokens": datum.loss_fn_inputs["target_tokens"]}
        weighted.append(Datum(datum.model_input, {**inputs, "weights": ratio * advantages}))
    train(base, other, weighted)

    assert found.metrics["loss:sum"] == pytest.approx(total, rel=1e-4)
    assert_near(gradients(model), gradients(other))


def test_gspo_clips_whole_sequences_and_obeys_its_mask(base: BaseModel) -> None:
    """Far from the sampler nothing is learnt from what is better already."""
    (datum,) = rl_data((9,))
    far: dict[str, Any] = {
        "target_tokens": datum.loss_fn_inputs["target_tokens"],
        "logprobs": np.full(9, -50.0, np.float32),
        "advantages": np.ones(9, np.float32),
    }
    model = shaken(base)
    found = train(base, model, [Datum(datum.model_input, far)], "gspo")
    assert found.metrics["loss:sum"] == pytest.approx(-9 * 1.2)
    assert all(not gradient.any() for gradient in gradients(model).values())

    logprobs = found.loss_fn_outputs[0]["logprobs"].to_numpy()
    mask = np.array([1, 0, 0, 0, 0, 0, 0, 0, 0], np.float32)
    off = np.where(mask, logprobs - np.log(1.1), -50.0).astype(np.float32)
    masked = {**far, "logprobs": off, "sequence_ratio_mask": mask}
    found = train(base, shaken(base), [Datum(datum.model_input, masked)], "gspo")
    assert found.metrics["loss:sum"] == pytest.approx(-9 * 1.1, rel=1e-4)


def run_custom(
    base: BaseModel, model: TrainedModel, data: list[Datum], custom: CustomLoss | None, **more: Any
) -> Any:
    return finish(
        forward_backward(
            base, model, data, loss_fn="custom", loss_fn_config={}, custom=custom, **more
        )
    )


def uploaded(fn: Any, **ranks: Any) -> CustomLoss:
    handle = trace_loss(fn, ranks, "s")
    return CustomLoss(list(handle.inputs), handle.graph)


def weighted_loss(logprobs: torch.Tensor, weights: torch.Tensor) -> Any:
    loss = -(logprobs * weights).sum()
    return loss, {"custom/mean:mean": logprobs.mean(), "custom/all:sum": weights.sum()}


def test_an_uploaded_cross_entropy_is_cross_entropy(base: BaseModel) -> None:
    """Loss, log-probs and gradients; its metrics are reduced as their names say."""
    data = sft_data(LENGTHS)
    model, other = shaken(base), shaken(base)
    custom = uploaded(weighted_loss, logprobs=1, weights=1)
    found = run_custom(base, model, data, custom, micro_batch_tokens=20)
    plain = train(base, other, data)

    assert found.metrics["loss:sum"] == pytest.approx(plain.metrics["loss:sum"], rel=1e-5)
    assert_near(gradients(model), gradients(other))
    logprobs = [output["logprobs"].to_numpy() for output in plain.loss_fn_outputs]
    means = [float(one.mean()) for one in logprobs]
    assert found.metrics["custom/mean:mean"] == pytest.approx(np.mean(means), rel=1e-4)
    weights = sum(float(array(datum, "weights").sum()) for datum in data)
    assert found.metrics["custom/all:sum"] == pytest.approx(weights, rel=1e-4)


def test_an_uploaded_loss_may_mix_the_positions_of_a_sequence(base: BaseModel) -> None:
    """Its gradient is torch's own, through the log-probs."""

    def squared(logprobs: torch.Tensor) -> Any:
        return logprobs.mean().square(), {}

    data = sft_data((9, 4))
    model, other = shaken(base), shaken(base)
    found = run_custom(base, model, data, uploaded(squared, logprobs=1))
    means = [float(one["logprobs"].to_numpy().mean()) for one in found.loss_fn_outputs]
    weighted = [
        Datum(
            datum.model_input,
            {
                "target_tokens": datum.loss_fn_inputs["target_tokens"],
                "weights": np.full(length, -2 * mean / length, np.float32),
            },
        )
        for datum, mean, length in zip(data, means, (9, 4), strict=True)
    ]
    train(base, other, weighted)
    assert found.metrics["loss:sum"] == pytest.approx(sum(mean**2 for mean in means), rel=1e-4)
    assert_near(gradients(model), gradients(other))


def test_forward_alone_of_an_uploaded_loss_leaves_no_gradient(base: BaseModel) -> None:
    model = shaken(base)
    custom = uploaded(weighted_loss, logprobs=1, weights=1)
    found = run_custom(base, model, sft_data((5,)), custom, forward_only=True)
    assert found.metrics["loss:sum"] > 0
    assert {} == gradients(model)


def graph_of(op: Any, target: str, args: list[Any]) -> CustomLoss:
    nodes = [
        CustomLossNode("placeholder", "p", "logprobs"),
        CustomLossNode(op, "x", target, args),
        CustomLossNode("output", "output", "output", [{"tuple": [{"ref": "x"}, {"dict": {}}]}]),
    ]
    return CustomLoss([CustomLossInput("logprobs", 1)], CustomLossGraph(nodes))


@pytest.mark.parametrize(
    ("says", "custom"),
    [
        ("loss_id", None),
        ("not allowed", graph_of("call_function", "torch.load", ["/etc/passwd"])),
        ("not allowed", graph_of("call_function", "os.system", ["true"])),
        ("not allowed", graph_of("call_method", "numpy", [{"ref": "p"}])),
        ("not allowed", graph_of("call_function", "math.factorial", [10**9])),
        ("too large", graph_of("call_function", "operator.mul", [{"ref": "p"}, 10**30])),
        ("failed", graph_of("call_function", "operator.pow", [10**9, 10**9])),
        ("multiplied", graph_of("call_function", "operator.mul", [[1], 10**9])),
        ("no node", graph_of("call_function", "torch.exp", [{"ref": "later"}])),
        ("failed", graph_of("call_function", "torch.exp", [{"ref": "p"}])),
    ],
)
def test_what_an_uploaded_loss_may_not_do_is_refused(
    base: BaseModel, says: str, custom: CustomLoss | None
) -> None:
    """Before or while it runs, always as the user's fault, and without a trace in the gradients."""
    model = shaken(base)
    with pytest.raises(InvalidInputError, match=says):
        run_custom(base, model, sft_data((5,)), custom)
    assert {} == gradients(model)
