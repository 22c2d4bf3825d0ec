"""Attention keys and values of the rows being sampled, one slot a row.

Owns the memory: it grows geometrically and not beyond `max_tokens` (rows times
columns), as long as the caller asks for no more. The one rule: slots in use are the
first ones, without holes, so that what attention reads is a view, never a copy. Before each
forward pass the caller says with `prefill` or `decode` where the new keys go; the
unmodified model then calls `update` in each layer.
"""

from __future__ import annotations

from typing import Any

import msgspec
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_COLUMN_STEP = 64


class _Span(msgspec.Struct):
    """Where the next forward pass writes, and how much of the cache it reads."""

    first: int = 0
    """first slot"""
    rows: int = 0
    start: int = 0
    """first new column, the same for all rows, when `positions` is None"""
    positions: Tensor | None = None
    """int64 `(rows,)`: the one new column of each row"""
    columns: int = 0


class _SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]  # transformers
    """One layer's keys and values, each `(rows, heads, columns, dim)`."""

    keys: Any
    values: Any

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate at the cache's size. Zeros: a masked column must still be finite."""
        rows, columns = self._cache.rows, self._cache.columns
        self.keys = key_states.new_zeros(rows, key_states.shape[1], columns, key_states.shape[3])
        self.values = value_states.new_zeros(
            rows, value_states.shape[1], columns, value_states.shape[3]
        )
        self.is_initialized = True

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *args: Any,  # noqa: ARG002  # the signature is transformers'
        **kwargs: Any,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """Write `(B, heads, T, dim)` where the span says; give back views of what to attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        span = self._cache.span
        rows = slice(span.first, span.first + span.rows)
        keys, values = self.keys[rows], self.values[rows]
        if span.positions is None:
            stop = span.start + key_states.shape[2]
            keys[:, :, span.start : stop] = key_states
            values[:, :, span.start : stop] = value_states
        else:
            index = self._cache.row_index[: span.rows]
            keys[index, :, span.positions] = key_states.squeeze(2)
            values[index, :, span.positions] = value_states.squeeze(2)
        return keys[:, :, : span.columns], values[:, :, : span.columns]

    def resize(self, rows: int, columns: int, keep: int) -> None:
        """Take the new size, with the first `keep` rows."""
        if self.is_initialized:
            self.keys = _resized(self.keys, rows, columns, keep)
            self.values = _resized(self.values, rows, columns, keep)

    def copy(self, source: int, target: int, columns: int) -> None:
        """Copy the first columns of a row over another row's."""
        if self.is_initialized:
            self.keys[target, :, :columns] = self.keys[source, :, :columns]
            self.values[target, :, :columns] = self.values[source, :, :columns]

    def clear(self, row: int, columns: int) -> None:
        """Zero the first columns of a row."""
        if self.is_initialized:
            self.keys[row, :, :columns] = 0
            self.values[row, :, :columns] = 0

    def drop(self) -> None:
        """Free the memory."""
        self.keys = self.values = None
        self.is_initialized = False

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002
        """Key length and offset; not read by models that are given a 4-D mask."""
        return self._cache.span.columns, 0

    def get_seq_length(self) -> int:
        """Columns before the new ones; not read by models that are given positions."""
        return self._cache.span.start

    def get_max_length(self) -> int:
        """No maximum of its own."""
        return -1


def _resized(part: Tensor, rows: int, columns: int, keep: int) -> Tensor:
    bigger = part.new_zeros(rows, part.shape[1], columns, part.shape[3])
    shared = min(columns, part.shape[2])
    bigger[:keep, :, :shared] = part[:keep, :, :shared]
    return bigger


class SlotCache(Cache):
    """A key-value cache whose rows come and go while others are in the middle.

    Args:
        max_tokens: Most cached tokens, counted as rows times columns, padding included.
        max_rows: Most slots.
        device: Where index tensors live: the model's device.
    """

    def __init__(self, *, max_tokens: int, max_rows: int, device: torch.device) -> None:
        self.rows = 0
        """slots allocated"""
        self.columns = 0
        """columns allocated"""
        self.lengths: list[int] = []
        """tokens held, by slot in use"""
        self.span = _Span()
        self._dirty: list[int] = []  # columns written, padding included, by slot in use
        self._max_tokens = max_tokens
        self._max_rows = max_rows
        self._device = device
        self.row_index = torch.arange(max_rows, device=device)
        self._slots: list[_SlotLayer] = []
        super().__init__(layers=[])
        # transformers calls it when the model first writes to a layer.
        self.layer_class_to_replicate = self._make_layer  # type: ignore[assignment]  # a factory

    def prefill(self, first: int, lengths: list[int], *, start: int) -> None:
        """Say that the next pass writes from column `start` on, in adjacent slots.

        Args:
            first: The first slot, in use or the first free one.
            lengths: New tokens by slot; shorter ones are padded on the right.
            start: Tokens these slots hold already, the same for all.
        """
        columns = start + max(lengths)
        stop = first + len(lengths)
        self._take(stop - len(self.lengths), columns)
        self.lengths[first:stop] = [start + length for length in lengths]
        self._dirty[first:stop] = [columns] * len(lengths)
        self.span = _Span(first, len(lengths), start, None, columns)

    def decode(self, rows: int) -> tuple[Tensor, int]:
        """Say that the next pass adds one token to each of the first rows.

        Returns:
            The position of each new token, int64 `(rows,)`, and the columns to attend to.
        """
        positions = torch.tensor(self.lengths[:rows], device=self._device)
        columns = max(self.lengths[:rows]) + 1
        self._take(0, columns)
        for slot in range(rows):
            self.lengths[slot] += 1
            self._dirty[slot] = max(self._dirty[slot], self.lengths[slot])
        self.span = _Span(0, rows, 0, positions, columns)
        return positions, columns

    def fork(self, source: int, columns: int) -> int:
        """Copy the first columns of a slot into a fresh one; return its number."""
        slot = len(self.lengths)
        self._take(1, columns)
        self._copy(source, slot, columns)
        return slot

    def replace(self, target: int, source: int) -> None:
        """Make slot `target` a copy of slot `source`."""
        if target != source:
            self._copy(source, target, self.lengths[source])

    def truncate(self, slot: int, columns: int) -> None:
        """Forget all but the first columns of a slot."""
        self.lengths[slot] = columns

    def pop(self) -> None:
        """Give back the last slot in use; with the last one gone, free the memory.

        The slot is zeroed: a NaN left by a diverged adapter would reach the next user,
        since a masked column is multiplied by zero, and zero times NaN is NaN.
        """
        slot = len(self.lengths) - 1
        for layer in self._slots:
            layer.clear(slot, self._dirty[slot])
        self.lengths.pop()
        self._dirty.pop()
        if not self.lengths:
            self.drop()

    def drop(self) -> None:
        """Empty all slots and free the memory."""
        for layer in self._slots:
            layer.drop()
        self.lengths.clear()
        self._dirty.clear()
        self.rows = self.columns = 0

    def _make_layer(self) -> _SlotLayer:
        self._slots.append(_SlotLayer(self))
        return self._slots[-1]

    def _copy(self, source: int, target: int, columns: int) -> None:
        for layer in self._slots:
            layer.clear(target, self._dirty[target])
            layer.copy(source, target, columns)
        self.lengths[target] = self._dirty[target] = columns

    def _take(self, slots: int, columns: int) -> None:
        """Bring `slots` more slots into use and make room for `columns` columns."""
        held = len(self.lengths)
        needed = held + max(slots, 0)
        if needed > self.rows or columns > self.columns:
            self._grow(needed, max(columns, *self.lengths, 1), held)
        self.lengths += [0] * (needed - held)
        self._dirty += [0] * (needed - held)

    def _grow(self, rows: int, columns: int, held: int) -> None:
        """Double what is too small, within the bound; rows not in use may be given up for it."""
        wide = self.columns
        if columns > self.columns:
            wide = max(2 * self.columns, _COLUMN_STEP * -(-columns // _COLUMN_STEP))
        wide = max(columns, min(wide, self._max_tokens // rows))
        tall = self.rows if rows <= self.rows else max(rows, 2 * self.rows)
        tall = max(rows, min(tall, self._max_rows, self._max_tokens // wide))
        for layer in self._slots:
            layer.resize(tall, wide, held)
        self._dirty = [min(dirty, wide) for dirty in self._dirty]
        self.rows, self.columns = tall, wide
