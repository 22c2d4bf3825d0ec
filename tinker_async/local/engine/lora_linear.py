"""One Linear layer of the base model with the adapters on it: how a forward pass applies them.

Stands in for peft's own forward, whose bookkeeping costs more than the arithmetic of a
small layer. The rule: which rows use which adapter is decided once a pass, in `Routing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


@dataclass(frozen=True)
class LayerLora:
    """An adapter's part of one layer: output += scale * (input A^T) B^T."""

    a: nn.Parameter  # (rank, inputs) float32
    b: nn.Parameter  # (outputs, rank) float32
    scale: float


class Routing:
    """The adapters of the rows of the next forward passes, shared by all layers.

    Args:
        device: Where index tensors live: the model's device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._names: list[str] = []
        self.only: str | None = None
        """the adapter of all rows, or None when they differ"""
        self.groups: list[tuple[str, Tensor]] = []
        """each adapter with its rows, int64 `(n,)`; empty when `only` is set"""

    def set(self, names: Sequence[str]) -> None:
        """Take one adapter name for each row; a single name may stand for all rows."""
        if len(set(names)) == 1:
            self.only, self.groups, self._names = names[0], [], []
        elif self._names != list(names):
            places: dict[str, list[int]] = {}
            for row, name in enumerate(names):
                places.setdefault(name, []).append(row)
            self.only, self._names = None, list(names)
            self.groups = [
                (name, torch.tensor(rows, device=self._device)) for name, rows in places.items()
            ]


class LoraLinear:
    """The forward pass of one layer.

    Args:
        base: The layer of the base model.
        routing: Which rows use which adapter.
    """

    def __init__(self, base: nn.Linear, routing: Routing) -> None:
        self._weight, self._bias = base.weight, base.bias
        self._routing = routing
        self.loras: dict[str, LayerLora] = {}
        """by adapter name; those that leave this layer alone are missing"""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Map `(rows, ..., inputs)` to `(rows, ..., outputs)`.

        Gradients flow into the adapter when all rows use the same one.
        """
        routing = self._routing
        if routing.only is None:
            return self._mixed(inputs)
        lora = self.loras.get(routing.only)
        if lora is None:
            return linear(inputs, self._weight, self._bias)
        # Two dimensions from here on: a linear of three makes twice the nodes of autograd.
        flat = inputs.reshape(-1, inputs.shape[-1])
        result = linear(flat, self._weight, self._bias)  # (positions, outputs)
        if result.dtype == torch.float32:
            inner = linear(flat, lora.a)  # (positions, rank)
            result = result.addmm_(inner, lora.b.t(), alpha=lora.scale)
        else:
            result = (result + _delta(flat, lora) * lora.scale).to(result.dtype)
        return result.view(*inputs.shape[:-1], result.shape[-1])

    def _mixed(self, inputs: Tensor) -> Tensor:
        result = linear(inputs, self._weight, self._bias)
        for name, rows in self._routing.groups:
            lora = self.loras.get(name)
            if lora is not None:
                delta = _delta(inputs.index_select(0, rows), lora).to(result.dtype)
                result.index_add_(0, rows, delta, alpha=lora.scale)
        return result


def _delta(inputs: Tensor, lora: LayerLora) -> Tensor:
    """Return what the adapter adds before scaling, float32."""
    return linear(linear(inputs.to(lora.a.dtype), lora.a), lora.b)
