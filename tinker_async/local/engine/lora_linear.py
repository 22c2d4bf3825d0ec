"""One Linear layer of the base model with the adapters on it: how a forward pass applies them.

Stands in for peft's own forward, whose bookkeeping costs more than the arithmetic of a
small layer. The rule: which rows use which adapter is decided once a pass, in `Routing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

_MOST_STACKED = 8
"""Most adapters that decoding keeps side by side in one tensor. More are applied in turn."""


@dataclass(frozen=True)
class LayerLora:
    """An adapter's part of one layer: output += scale * (input A^T) B^T."""

    a: nn.Parameter  # (rank, inputs) float32
    b: nn.Parameter  # (outputs, rank) float32
    scale: float


@dataclass(frozen=True)
class Stacking:
    """Where rows of one position each go in a product with N adapters at once.

    Each adapter has as many places as the one with the most rows. Those left over hold
    any row, and what comes out of them is not read.
    """

    names: tuple[str, ...]
    """the adapters"""
    rows: Tensor
    """int64 `(places,)`: the row at each place; the adapters' places follow each other"""
    places: Tensor
    """int64 `(rows,)`: the place of each row"""


class Routing:
    """The adapters of the rows of the next forward passes, shared by all layers.

    Args:
        device: Where index tensors live: the model's device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._names: list[str] = []
        self._frozen: set[str] = set()
        self._stacked: tuple[str, ...] = ()
        self._stacking: Stacking | None = None
        self.only: str | None = None
        """the adapter of all rows, or None when they differ"""
        self.groups: list[tuple[str, slice]] = []
        """each adapter with its rows, once they are in `order`"""
        self.order: Tensor | None = None
        """int64 `(rows,)`: the rows by adapter; None when they are so already"""
        self.back: Tensor | None = None
        """int64 `(rows,)`: undoes `order`"""

    def freeze(self, name: str) -> None:
        """Say that an adapter's weights never change, or that it has none: copies may be kept."""
        self._frozen.add(name)

    def forget(self, name: str) -> None:
        """Say that an adapter is no more."""
        self._frozen.discard(name)
        self._names = []
        if name in self._stacked:
            self._stacked = ()

    def set(self, names: Sequence[str]) -> None:
        """Take one adapter name for each row; a single name may stand for all rows."""
        if len(set(names)) == 1:
            self.only, self._names = names[0], []
        elif self._names != list(names):
            self.only, self._names, self._stacking = None, list(names), None
            self._group()

    def stacking(self) -> Stacking | None:
        """Return how to apply all adapters at once; None if they are many, or may change."""
        if self._stacking is None:
            used = {name for name, _ in self.groups}
            if len(used) > _MOST_STACKED or not used <= self._frozen:
                return None
            # Who has just left often comes back, and to stack anew costs part of a pass.
            if not used <= set(self._stacked) or len(self._stacked) > 2 * len(used):
                self._stacked = tuple(sorted(used))
            self._stacking = self._stack(self._stacked)
        return self._stacking

    def _group(self) -> None:
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(self._names):
            rows.setdefault(name, []).append(row)
        order = [row for group in rows.values() for row in group]
        ends = accumulate(len(group) for group in rows.values())
        self.groups = [
            (name, slice(end - len(rows[name]), end)) for name, end in zip(rows, ends, strict=True)
        ]
        self.order = self.back = None
        if order != sorted(order):
            self.order = torch.tensor(order, device=self._device)
            self.back = self.order.argsort()

    def _stack(self, names: tuple[str, ...]) -> Stacking:
        width = max(part.stop - part.start for _, part in self.groups)
        rows = [0] * (width * len(names))
        places = [0] * len(self._names)
        taken = {name: width * number for number, name in enumerate(names)}
        for row, name in enumerate(self._names):
            places[row] = taken[name]
            rows[taken[name]] = row
            taken[name] += 1
        return Stacking(
            names,
            torch.tensor(rows, device=self._device),
            torch.tensor(places, device=self._device),
        )


class LoraLinear:
    """The forward pass of one layer.

    Args:
        base: The layer of the base model.
        routing: Which rows use which adapter.
    """

    def __init__(self, base: nn.Linear, routing: Routing) -> None:
        self._weight, self._bias = base.weight, base.bias
        self._routing = routing
        self._stack: _Stack | None = None
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

    def forget(self, name: str) -> None:
        """Free an adapter's part."""
        self.loras.pop(name, None)
        if self._stack is not None and name in self._stack.names:
            self._stack = None

    def _mixed(self, inputs: Tensor) -> Tensor:
        flat = inputs.reshape(-1, inputs.shape[-1])
        result = linear(flat, self._weight, self._bias)  # (positions, outputs)
        if any(name in self.loras for name, _ in self._routing.groups):
            stacking = self._routing.stacking() if len(flat) == len(inputs) else None
            if stacking is None:
                delta = self._in_turn(inputs).view(result.shape)
            else:
                delta = self._at_once(flat, stacking)
            result += delta.to(result.dtype)
        return result.view(*inputs.shape[:-1], result.shape[-1])

    def _at_once(self, inputs: Tensor, stacking: Stacking) -> Tensor:
        """Return what the adapters add to `(rows, inputs)`: one product for all of them."""
        stack = self._stack
        if stack is None or stack.names != stacking.names:
            stack = self._stack = _Stack.of(stacking.names, self.loras)
        placed = inputs.to(stack.a.dtype).index_select(0, stacking.rows)
        inner = torch.bmm(placed.view(len(stack.names), -1, placed.shape[-1]), stack.a)
        added = torch.bmm(inner, stack.b).view(len(placed), -1)  # (places, outputs)
        return added.index_select(0, stacking.places)

    def _in_turn(self, inputs: Tensor) -> Tensor:
        """Return what the adapters add to `(rows, ..., inputs)`: a product for each of them."""
        routing = self._routing
        if routing.order is not None:
            inputs = inputs.index_select(0, routing.order)
        added = torch.empty(
            *inputs.shape[:-1], len(self._weight), dtype=torch.float32, device=inputs.device
        )
        for name, rows in routing.groups:
            lora = self.loras.get(name)
            if lora is None:
                added[rows] = 0
            else:
                part = inputs[rows].flatten(0, -2)
                inner = linear(part.to(lora.a.dtype), lora.a).mul_(lora.scale)
                torch.mm(inner, lora.b.t(), out=added[rows].flatten(0, -2))
        return added if routing.back is None else added.index_select(0, routing.back)


@dataclass(frozen=True)
class _Stack:
    """Copies of several adapters' parts of a layer, in one tensor each."""

    names: tuple[str, ...]
    a: Tensor  # (adapters, inputs, rank): zeros beyond an adapter's own rank
    b: Tensor  # (adapters, rank, outputs), scaled

    @classmethod
    def of(cls, names: tuple[str, ...], loras: dict[str, LayerLora]) -> _Stack:
        """Copy; there must be a part of at least one of the adapters."""
        parts = [(place, loras[name]) for place, name in enumerate(names) if name in loras]
        rank = max(len(lora.a) for _, lora in parts)
        first = parts[0][1]
        a = first.a.new_zeros(len(names), first.a.shape[1], rank)
        b = first.b.new_zeros(len(names), rank, len(first.b))
        for place, lora in parts:
            a[place, :, : len(lora.a)] = lora.a.t()
            b[place, : len(lora.a)] = lora.b.t() * lora.scale
        return cls(names, a, b)


def _delta(inputs: Tensor, lora: LayerLora) -> Tensor:
    """Return what the adapter adds before scaling, float32."""
    return linear(linear(inputs.to(lora.a.dtype), lora.a), lora.b)
