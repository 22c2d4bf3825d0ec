"""The output head: logits, and the log-probs of targets with their gradient in one pass.

Logits of all positions are never held: `score` goes over chunks of positions, and as
every loss is a function of the targets' log-probs, the gradient of a chunk is known
as soon as its log-probs are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn

from tinker_async.local.engine.lora_linear import LayerLora

ChunkLoss: TypeAlias = Callable[[torch.Tensor, slice], tuple[torch.Tensor, torch.Tensor]]
"""Log-probs `[chunk, K]` and the chunk's place to losses and their derivatives, same shape."""

_CHUNK_ELEMENTS = 2**24
"""Logits held at once, in elements: 64 MB in float32."""


@dataclass(frozen=True)
class Head:
    """The base model's output projection, perhaps tied to its embedding."""

    weight: torch.Tensor  # (vocab, hidden)
    bias: torch.Tensor | None  # (vocab)

    def logits(self, hidden: torch.Tensor, lora: LayerLora | None = None) -> torch.Tensor:
        """Return float32 logits `[..., vocab]` for hidden states `[..., hidden]`."""
        logits = nn.functional.linear(hidden, self.weight, self.bias).float()
        return logits if lora is None else logits.add_(lora_logits(hidden, lora))

    def mixed_logits(self, hidden: torch.Tensor, loras: Sequence[LayerLora | None]) -> torch.Tensor:
        """Return float32 logits for hidden states `[rows, ..., hidden]`, one adapter a row."""
        logits = self.logits(hidden)
        for lora in {id(lora): lora for lora in loras}.values():
            if lora is not None:
                rows = [row for row, other in enumerate(loras) if other is lora]
                logits[rows] += lora_logits(hidden[rows], lora)
        return logits


def lora_logits(hidden: torch.Tensor, lora: LayerLora) -> torch.Tensor:
    """Return what the adapter adds to the logits, float32 `[..., vocab]`."""
    inner = nn.functional.linear(hidden.float(), lora.a) * lora.scale  # (..., rank)
    return nn.functional.linear(inner, lora.b)


@dataclass(frozen=True)
class Scores:
    """What `score` found. Gradients are None where they were not asked for."""

    logprobs: torch.Tensor  # (positions, K) float32
    losses: torch.Tensor  # (positions, K) float32
    grad_hidden: torch.Tensor | None  # (positions, hidden), dtype of the hidden states
    grad_a: torch.Tensor | None  # (rank, hidden) float32
    grad_b: torch.Tensor | None  # (vocab, rank) float32


@torch.no_grad()
def score(
    head: Head,
    lora: LayerLora | None,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    loss: ChunkLoss,
    *,
    gradients: bool,
    chunk_tokens: int | None = None,
) -> Scores:
    """Score targets and, with `gradients`, differentiate the summed loss.

    Args:
        head: The base model's head.
        lora: The adapter's part of it, or None.
        hidden: `[positions, hidden]`.
        targets: int64 `[positions, K]`, each a token id.
        loss: Called once a chunk, in order.
        gradients: Whether to compute gradients.
        chunk_tokens: Positions at once; None fits them to the vocabulary.
    """
    positions = hidden.shape[0]
    size = chunk_tokens or max(16, _CHUNK_ELEMENTS // head.weight.shape[0])
    logprobs = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
    losses = torch.empty_like(logprobs)
    gradient = _HeadGradient(head, lora, hidden) if gradients else None
    for start in range(0, positions, size):
        part = slice(start, min(start + size, positions))
        logits = head.logits(hidden[part], lora)  # (chunk, vocab)
        normaliser = logits.logsumexp(dim=-1, keepdim=True)  # (chunk, 1)
        logprobs[part] = logits.gather(-1, targets[part]) - normaliser
        losses[part], slopes = loss(logprobs[part], part)
        if gradient is not None and bool(slopes.any()):
            gradient.add(part, logits.sub_(normaliser).exp_(), targets[part], slopes)
    if gradient is None:
        return Scores(logprobs, losses, None, None, None)
    return Scores(logprobs, losses, gradient.hidden, gradient.a, gradient.b)


class _HeadGradient:
    """Sums the head's gradients over chunks."""

    def __init__(self, head: Head, lora: LayerLora | None, states: torch.Tensor) -> None:
        self._head, self._lora, self._states = head, lora, states
        self.hidden = torch.zeros_like(states)
        self.a = None if lora is None else torch.zeros_like(lora.a)
        self.b = None if lora is None else torch.zeros_like(lora.b)

    def add(
        self, part: slice, softmax: torch.Tensor, targets: torch.Tensor, slopes: torch.Tensor
    ) -> None:
        """Add a chunk; `slopes` is dL/dlogprob `[chunk, K]`. `softmax` is overwritten."""
        # d logprob_k / d logits = onehot(target_k) - softmax
        grad = softmax.mul_(-slopes.sum(dim=-1, keepdim=True)).scatter_add_(-1, targets, slopes)
        weight = self._head.weight
        self.hidden[part] = grad.to(weight.dtype) @ weight  # (chunk, hidden)
        if self._lora is None or self.a is None or self.b is None:
            return
        states = self._states[part].float()
        inner = states @ self._lora.a.T * self._lora.scale  # (chunk, rank)
        grad_inner = (grad @ self._lora.b) * self._lora.scale  # (chunk, rank)
        self.hidden[part] += (grad_inner @ self._lora.a).to(self.hidden.dtype)
        self.a += grad_inner.T @ states
        self.b += grad.T @ inner
