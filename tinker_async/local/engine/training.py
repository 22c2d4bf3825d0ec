"""Training one adapter: forward and backward over micro-batches, and AdamW steps.

Gradients of a call are added to the model's only when all its micro-batches have
succeeded; until then, and after a failure, the model's gradients are as before.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from tinker_async.data.datum import Datum
from tinker_async.data.params import AdamParams, LoraConfig
from tinker_async.data.results import ForwardBackwardOutput, OptimStepResponse
from tinker_async.data.tensors import TensorData
from tinker_async.errors import InvalidInputError
from tinker_async.local.engine.adapters import Adapter
from tinker_async.local.engine.base import BaseModel
from tinker_async.local.engine.batches import Batch, collate, micro_batches, read_rows
from tinker_async.local.engine.failures import ModelLostError
from tinker_async.local.engine.head import Scores, score
from tinker_async.local.engine.jobs import CustomLoss
from tinker_async.local.engine.losses import Loss, custom_loss, make_loss
from tinker_async.local.engine.optimizer import AdamW
from tinker_async.local.engine.whole_rows import whole_rows

MICRO_BATCH_TOKENS = 256
"""Padded tokens computed at once. As many a CPU second as with more, or a few percent above, in
half the memory of 1,024; and samples wait for a quarter of the time."""


@dataclass(eq=False)
class TrainedModel:
    """An adapter in training, with its optimizer. Gradients wait in `Parameter.grad`."""

    adapter: Adapter
    optimizer: AdamW
    steps: int = 0
    """optimizer steps taken"""

    @classmethod
    def create(cls, base: BaseModel, lora: LoraConfig) -> TrainedModel:
        """Make a fresh adapter on a base model.

        Raises:
            InvalidInputError: The rank or the seed is out of range.
        """
        return cls.of(base.adapters.create(lora))

    @classmethod
    def of(cls, adapter: Adapter) -> TrainedModel:
        """Give a trainable adapter a fresh optimizer."""
        parameters = list(adapter.weights.values())
        return cls(adapter=adapter, optimizer=AdamW(parameters))

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The adapter's parameters in the order of the checkpoint."""
        return list(self.adapter.weights.values())


def forward_backward(
    base: BaseModel,
    model: TrainedModel,
    data: Sequence[Datum],
    *,
    loss_fn: str,
    loss_fn_config: dict[str, float | str],
    forward_only: bool = False,
    custom: CustomLoss | None = None,
    micro_batch_tokens: int = MICRO_BATCH_TOKENS,
) -> Generator[None, None, ForwardBackwardOutput]:
    """Run a loss over data; with gradients unless `forward_only`.

    A generator: it yields after each micro-batch, so that the caller can do something
    else in between, even with other adapters, and returns the output. Everything is
    checked before the first micro-batch. If it raises or is closed early, the model's
    gradients are as they were.

    Raises:
        InvalidInputError: The loss, its config or the data are wrong, or the loss or its
            gradient is not finite.
    """
    loss = custom_loss(custom) if loss_fn == "custom" else make_loss(loss_fn, loss_fn_config)
    rows = read_rows(data, loss, base.card)
    outputs: list[dict[str, TensorData]] = [{} for _ in rows]
    with _GradientScope(model.parameters) as gradients:
        for group in micro_batches(rows, max_tokens=micro_batch_tokens):
            batch = collate(group, base.device)
            scores = _run(base, model.adapter, batch, loss, gradients=not forward_only)
            for row, output in zip(group, _outputs(batch, scores), strict=True):
                outputs[row.index] = output
            yield
        total = _total_loss(outputs)
        if not forward_only:
            gradients.keep()
    return ForwardBackwardOutput(
        loss_fn_output_type="ArrayRecord",
        loss_fn_outputs=outputs,
        metrics={
            "loss:sum": total,
            "num_tokens:sum": float(sum(row.length for row in rows)),
            **(loss.graph.reduced() if loss.graph else {}),
        },
    )


def optim_step(model: TrainedModel, adam: AdamParams) -> OptimStepResponse:
    """Apply one AdamW step and clear the gradients.

    As in torch, parameters without a gradient are left alone, weight decay included: a
    step without any `forward_backward` before it changes nothing but the step count.
    Metrics are `grad_norm` (global, before clipping) and `learning_rate`.

    Raises:
        ModelLostError: It failed when some of the weights may have been changed.
    """
    gradients = [p.grad for p in model.parameters if p.grad is not None]
    norm = _norm(gradients)
    model.optimizer.prepare()
    try:
        _step(model, gradients, norm, adam)
    except Exception as error:
        raise ModelLostError(f"an optimizer step failed half-way: {error}") from error
    for parameter in model.parameters:
        parameter.grad = None
    model.steps += 1
    return OptimStepResponse(
        metrics={"grad_norm": float(norm), "learning_rate": adam.learning_rate}
    )


def _step(
    model: TrainedModel, gradients: list[torch.Tensor], norm: torch.Tensor, adam: AdamParams
) -> None:
    if adam.grad_clip_norm:
        factor = torch.clamp(adam.grad_clip_norm / (norm + 1e-6), max=1.0)
        torch._foreach_mul_(gradients, factor)
    model.optimizer.step(adam)


def _run(base: BaseModel, adapter: Adapter, batch: Batch, loss: Loss, *, gradients: bool) -> Scores:
    """Score one micro-batch and accumulate its gradients in the adapter's parameters."""
    names = [adapter.name] * len(batch.rows)
    with torch.set_grad_enabled(gradients):
        # Right padding needs no mask: attention is causal.
        states = base.hidden_states(batch.tokens, adapter_names=names)  # (rows, longest, hidden)
        hidden = states[batch.present]  # (positions, hidden)

    def chunk_loss(logprobs: torch.Tensor, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = {name: tensor[part] for name, tensor in batch.inputs.items()}
        losses, slopes = loss(logprobs, inputs)
        real = batch.real[part]
        return torch.where(real, losses, 0.0), torch.where(real, slopes, 0.0)

    part_loss = (
        whole_rows(base.head, adapter.head, hidden, batch, loss) if loss.whole else chunk_loss
    )
    scores = score(base.head, adapter.head, hidden, batch.targets, part_loss, gradients=gradients)
    if scores.grad_hidden is not None and hidden.requires_grad:
        hidden.backward(scores.grad_hidden)  # type: ignore[no-untyped-call]  # torch has no types here
    if adapter.head is not None and scores.grad_a is not None and scores.grad_b is not None:
        _accumulate(adapter.head.a, scores.grad_a)
        _accumulate(adapter.head.b, scores.grad_b)
    return scores


def _accumulate(parameter: torch.nn.Parameter, gradient: torch.Tensor) -> None:
    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def _outputs(batch: Batch, scores: Scores) -> list[dict[str, TensorData]]:
    """Cut the scores back to one pair of arrays a row, in the user's shapes."""
    arrays = {
        "logprobs": scores.logprobs.cpu().numpy(),
        "elementwise_loss": scores.losses.cpu().numpy(),
    }
    outputs = []
    start = 0
    for row in batch.rows:
        part = (slice(start, start + row.length), slice(0, row.targets.shape[1]))
        outputs.append(
            {
                name: TensorData(
                    data=np.ascontiguousarray(array[part]), dtype="float32", shape=row.shape
                )
                for name, array in arrays.items()
            }
        )
        start += row.length
    return outputs


def _total_loss(outputs: Sequence[dict[str, TensorData]]) -> float:
    """Sum in float64 over data in the order given, whatever the micro-batches were."""
    total = 0.0
    for index, output in enumerate(outputs):
        part = float(output["elementwise_loss"].data.sum(dtype=np.float64))
        if not np.isfinite(part):
            raise InvalidInputError(
                f"data[{index}]: its loss is {part}; no gradients were added",
                field=f"data[{index}].loss_fn_inputs",
                hint="are the log-probs the sampler's own, and the advantages of normal size?",
            )
        total += part
    return total


class _GradientScope:
    """Sets a model's gradients aside for a call; `keep` adds the call's own to them.

    Leaving the block without `keep` puts back what was there.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self._parameters = parameters
        self._before = [parameter.grad for parameter in parameters]

    def __enter__(self) -> Self:
        for parameter in self._parameters:
            parameter.grad = None
        return self

    def __exit__(self, *_: object) -> None:
        for parameter, before in zip(self._parameters, self._before, strict=True):
            parameter.grad = before

    def keep(self) -> None:
        """Take the call's gradients over.

        Raises:
            InvalidInputError: One of them is not finite.
        """
        new = [parameter.grad for parameter in self._parameters]
        if not _finite([gradient for gradient in new if gradient is not None]):
            raise InvalidInputError("the gradient is not finite; it was not added", field="data")
        self._before = [
            fresh if before is None else before if fresh is None else before.add_(fresh)
            for before, fresh in zip(self._before, new, strict=True)
        ]


def _finite(gradients: list[torch.Tensor]) -> bool:
    # The norm tells at once; should it overflow, finite gradients are still good.
    return math.isfinite(_norm(gradients).item()) or all(
        bool(torch.isfinite(gradient).all()) for gradient in gradients
    )


def _norm(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Return the length of all gradients together."""
    if not gradients:
        return torch.zeros(())
    norms = torch._foreach_norm(gradients)  # noqa: SLF001  # as torch's own clipping has it
    norm: torch.Tensor = torch.linalg.vector_norm(torch.stack([*norms]))
    return norm
