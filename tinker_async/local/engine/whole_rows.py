"""Losses that look at a whole sequence at once: they need its log-probs before any gradient.

The rule: the head is run twice, first for all log-probs; then the losses and slopes are known.
"""

from __future__ import annotations

import torch

from tinker_async.local.engine.batches import Batch, Row
from tinker_async.local.engine.head import ChunkLoss, Head, score
from tinker_async.local.engine.lora_linear import LayerLora
from tinker_async.local.engine.losses import Loss, Values


def whole_rows(
    head: Head, lora: LayerLora | None, hidden: torch.Tensor, batch: Batch, loss: Loss
) -> ChunkLoss:
    """Return the loss of a batch, computed row by row, in the form that `score` takes.

    Args:
        head: The base model's head.
        lora: The adapter's part of it, or None.
        hidden: `[positions, hidden]`.
        batch: The rows, whose positions these are.
        loss: One that sees whole sequences.
    """
    first = score(head, lora, hidden, batch.targets, _nothing, gradients=False)
    values, slopes = torch.zeros_like(first.logprobs), torch.zeros_like(first.logprobs)
    start = 0
    for row in batch.rows:
        # Without what collating has filled up: those cells are no targets.
        part = (slice(start, start + row.length), slice(0, row.targets.shape[1]))
        values[part], slopes[part] = _of_row(loss, row, first.logprobs[part], batch, part)
        start += row.length
    return lambda _logprobs, part: (values[part], slopes[part])


def _of_row(
    loss: Loss, row: Row, logprobs: torch.Tensor, batch: Batch, part: tuple[slice, slice]
) -> Values:
    if loss.graph is None:
        return loss(logprobs, {name: tensor[part] for name, tensor in batch.inputs.items()})
    total, found = loss.graph(logprobs.reshape(row.shape).numpy(force=True), row.custom)
    values = torch.zeros_like(logprobs)
    values[0, 0] = float(total)  # it has no parts: the first position stands for all
    return values, torch.from_numpy(found).to(logprobs).reshape(logprobs.shape)


def _nothing(logprobs: torch.Tensor, _part: slice) -> Values:
    return logprobs, logprobs
