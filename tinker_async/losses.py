"""Custom losses: from log-probs to the weights of an equivalent cross-entropy. No I/O.

For a loss L of the log-probs p, training on the cross-entropy -sum(w * p) with
w = -dL/dp has the gradient of L. torch is imported only here, when it is used.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from tinker_async.data.custom_loss import LossHandle
from tinker_async.data.datum import Datum
from tinker_async.data.results import ForwardBackwardOutput
from tinker_async.data.tensors import TensorData
from tinker_async.errors import InvalidInputError, MissingExtraError, ResponseError

if TYPE_CHECKING:
    import torch

CustomLossFn: TypeAlias = (
    "Callable[[Sequence[Datum], list[torch.Tensor]], tuple[torch.Tensor, dict[str, float]]]"
)


def needs_torch() -> None:
    """Raise `MissingExtraError` when torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError(
            "forward_backward_custom needs torch", hint="pip install 'tinker-async[torch]'"
        )


def custom_loss_inputs(data: Sequence[Datum]) -> list[Datum]:
    """What of the data must be right for a custom loss: all but the targets is its own affair."""
    return [
        Datum(
            datum.model_input,
            {key: value for key, value in datum.loss_fn_inputs.items() if key == "target_tokens"},
        )
        for datum in data
    ]


def handle_loss(handle: LossHandle) -> CustomLossFn:
    """The function of a handle: the loss of each datum, summed; metrics by the end of their name."""

    def loss_fn(
        data: Sequence[Datum], logprobs: list[torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        total: Any = None
        metrics: dict[str, float] = {}
        for datum, leaf in zip(data, logprobs, strict=True):
            inputs = [datum.loss_fn_inputs[name].to_torch() for name in handle.input_names]
            loss, found = handle.traced(leaf, *inputs)
            if loss.ndim != 0:
                raise InvalidInputError(
                    f"loss_fn: {handle.name} must return a scalar, got shape {list(loss.shape)}",
                    field="loss_fn",
                )
            total = loss if total is None else total + loss
            for key, value in found.items():
                metrics[key] = metrics.get(key, 0.0) + float(value.detach())
        return total, {
            key: value / len(data) if key.endswith(":mean") else value
            for key, value in metrics.items()
        }

    return loss_fn


def forward_data(data: Sequence[Datum]) -> list[Datum]:
    """Data for the forward pass: the targets alone, with weights of zero."""
    plain = []
    for datum in data:
        target = datum.loss_fn_inputs["target_tokens"]
        zeros = np.zeros(target.dense_shape, dtype=np.float32)
        inputs = {"target_tokens": target, "weights": _dense(zeros)}
        plain.append(_like(datum, inputs))
    return plain


def surrogate_data(
    data: Sequence[Datum], output: ForwardBackwardOutput, loss_fn: CustomLossFn
) -> tuple[list[Datum], float, dict[str, float]]:
    """Call the user's loss and turn its gradient into cross-entropy weights.

    Returns:
        The data for the backward pass, the loss, and the user's metrics.

    Raises:
        InvalidInputError: The loss is no scalar, not finite, or leaves a tensor without gradient.
        ResponseError: The server returned no log-probs.
    """
    logprobs = [_leaf(index, item) for index, item in enumerate(output.loss_fn_outputs)]
    if len(logprobs) != len(data):
        raise ResponseError(
            f"the server returned log-probs of {len(logprobs)} data for {len(data)}",
            endpoint="forward",
        )
    loss, metrics = loss_fn(data, logprobs)
    if loss.numel() != 1 or not loss.requires_grad:
        raise InvalidInputError(
            "loss_fn must return a scalar that depends on the log-probs",
            field="loss_fn",
            hint="sum it, and do not detach",
        )
    if not bool(loss.isfinite()):
        raise InvalidInputError(f"loss_fn returned {float(loss)}", field="loss_fn")
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    weighted = [
        _like(
            datum,
            {
                "target_tokens": datum.loss_fn_inputs["target_tokens"],
                "weights": _dense(_weights(index, leaf)),
            },
        )
        for index, (datum, leaf) in enumerate(zip(data, logprobs, strict=True))
    ]
    return weighted, float(loss.detach()), {key: float(value) for key, value in metrics.items()}


def _leaf(index: int, outputs: dict[str, TensorData]) -> torch.Tensor:
    tensor = outputs.get("logprobs")
    if tensor is None:
        raise ResponseError(
            f"the server returned no logprobs for datum {index}", endpoint="forward"
        )
    return tensor.to_torch().clone().requires_grad_()


def _weights(index: int, leaf: torch.Tensor) -> Any:
    if leaf.grad is None:
        raise InvalidInputError(
            f"the loss does not depend on the log-probs of datum {index}",
            field="loss_fn",
            hint="leave the datum out, or give it a term",
        )
    return (-leaf.grad).numpy()


def _like(datum: Datum, inputs: dict[str, TensorData]) -> Datum:
    """The same example with other inputs; it came from where it came from."""
    return Datum(datum.model_input, inputs, datum.model_input_spans, datum.loss_fn_input_spans)


def _dense(array: Any) -> TensorData:
    return TensorData(data=array, dtype="float32", shape=array.shape)
