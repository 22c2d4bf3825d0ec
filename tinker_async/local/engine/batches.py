"""From data to padded batches: every check of the user's tensors, and the micro-batches.

The rule: `read_rows` refuses whatever is wrong before anything is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tinker_async.data.datum import Datum
from tinker_async.data.tensors import TensorData
from tinker_async.errors import InvalidInputError
from tinker_async.local.engine.jobs import ModelCard
from tinker_async.local.engine.losses import Loss

_MOST_TARGETS = 1 << 26
_TARGETS = "target_tokens"
_DEFAULTS = {"weights": 1.0, "sequence_ratio_mask": -1.0}
"""Inputs that may be missing, and what stands for them."""


@dataclass(frozen=True)
class Row:
    """One datum, checked. `targets` and all `inputs` have the shape `(length, K)`."""

    index: int
    tokens: npt.NDArray[np.int32]  # (length,)
    targets: npt.NDArray[np.int64]
    inputs: dict[str, npt.NDArray[np.float32]]
    shape: tuple[int, ...]
    """of the user's `target_tokens`: `(length,)` or `(length, K)`"""
    custom: Mapping[str, Any]
    """inputs of a custom loss, in shapes of their own"""

    @property
    def length(self) -> int:
        """Number of positions."""
        return int(self.tokens.size)


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right to `tokens`, and their targets joined without padding.

    A row with fewer than K targets a position is filled up with token 0; `real` is False
    there, and those cells count for nothing.
    """

    rows: Sequence[Row]
    tokens: torch.Tensor  # (rows, longest) int64
    present: torch.Tensor  # (rows, longest) bool: not padding
    targets: torch.Tensor  # (positions, K) int64
    inputs: dict[str, torch.Tensor]  # each (positions, K) float32
    real: torch.Tensor  # (positions, K) bool


def read_rows(data: Sequence[Datum], loss: Loss, card: ModelCard) -> list[Row]:
    """Check data for a loss and give its rows, in the same order.

    Raises:
        InvalidInputError: Something in the data is wrong; `field` says where.
    """
    if not data:
        raise InvalidInputError("data: must not be empty", field="data")
    return [_read_row(index, datum, loss, card) for index, datum in enumerate(data)]


def micro_batches(rows: Sequence[Row], *, max_tokens: int) -> Iterator[list[Row]]:
    """Group rows of similar length, longest first, so that no group exceeds the budget.

    Padding counts. A row that is longer than `max_tokens` is a group of its own.
    """
    group: list[Row] = []
    for row in sorted(rows, key=lambda row: -row.length):
        if group and group[0].length * (len(group) + 1) > max_tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def collate(rows: Sequence[Row], device: torch.device) -> Batch:
    """Pad rows into one batch."""
    longest = max(row.length for row in rows)
    width = max(row.targets.shape[1] for row in rows)
    lengths = np.array([row.length for row in rows])
    present = np.arange(longest) < lengths[:, None]
    tokens = np.zeros((len(rows), longest), dtype=np.int64)
    tokens[present] = np.concatenate([row.tokens for row in rows])
    real = np.concatenate([_widened(np.ones(row.targets.shape, bool), width) for row in rows])
    inputs = {
        name: np.concatenate([_widened(row.inputs[name], width) for row in rows])
        for name in rows[0].inputs
    }
    return Batch(
        rows=rows,
        tokens=torch.from_numpy(tokens).to(device),
        present=torch.from_numpy(present).to(device),
        targets=torch.from_numpy(np.concatenate([_widened(row.targets, width) for row in rows])).to(
            device
        ),
        inputs={name: torch.from_numpy(array).to(device) for name, array in inputs.items()},
        real=torch.from_numpy(real).to(device),
    )


def _widened(array: npt.NDArray[np.generic], width: int) -> npt.NDArray[np.generic]:
    missing = width - array.shape[1]
    return np.pad(array, ((0, 0), (0, missing))) if missing else array


def _read_row(index: int, datum: Datum, loss: Loss, card: ModelCard) -> Row:
    at = f"data[{index}]"
    tokens = datum.model_input.to_numpy()
    _check(tokens.size > 0, f"{at}.model_input", "must have at least one token")
    _check(
        tokens.size <= card.max_context_length,
        f"{at}.model_input",
        f"has {tokens.size} tokens, the context holds {card.max_context_length}",
    )
    _check_tokens(tokens, f"{at}.model_input", card)
    given = datum.loss_fn_inputs
    for name in given if loss.graph is None else ():
        _check(
            name == _TARGETS or name in loss.inputs,
            _field(at, name),
            f"{loss.name} does not take it; it takes {', '.join((_TARGETS, *loss.inputs))}",
        )
    targets = _read_targets(given.get(_TARGETS), tokens.size, _field(at, _TARGETS), card)
    inputs = {
        name: _read_input(given.get(name), targets.shape, _field(at, name)) for name in loss.inputs
    }
    two_dimensional = (targets.shape[0], -1)
    return Row(
        index=index,
        tokens=tokens,
        targets=targets.reshape(two_dimensional),
        inputs={name: array.reshape(two_dimensional) for name, array in inputs.items()},
        shape=targets.shape,
        custom=loss.graph.read(given, targets.shape, at) if loss.graph else {},
    )


def _read_targets(
    tensor: TensorData | None, length: int, field: str, card: ModelCard
) -> npt.NDArray[np.int64]:
    if tensor is None:
        raise InvalidInputError(f"{field}: is missing", field=field)
    _check(tensor.dtype == "int64", field, f"must be int64, got {tensor.dtype}")
    shape = tensor.dense_shape
    _check(
        len(shape) in (1, 2) and shape[0] == length and shape[-1] > 0,
        field,
        f"must have shape ({length},) or ({length}, K), as model_input has {length} tokens; "
        f"got {shape}",
    )
    # A few bytes of CSR can name any shape: look at it before it is laid out.
    _check(
        shape[-1] <= card.vocab_size and length * shape[-1] <= _MOST_TARGETS,
        field,
        f"has {shape[-1]} targets a token; at most {card.vocab_size} (the vocabulary), and "
        f"{_MOST_TARGETS} in one datum",
    )
    targets: npt.NDArray[np.int64] = tensor.to_numpy()
    _check_tokens(targets, field, card)
    return targets


def _read_input(
    tensor: TensorData | None, shape: tuple[int, ...], field: str
) -> npt.NDArray[np.float32]:
    if tensor is None:
        name = field.split("'")[1]
        _check(name in _DEFAULTS, field, "is missing")
        # The padding of sparse targets cannot be told from token 0.
        _check(len(shape) == 1, field, "is required with targets of shape (N, K)")
        return np.full(shape, _DEFAULTS[name], dtype=np.float32)
    _check(
        tensor.dense_shape == shape,
        field,
        f"must have the shape of target_tokens, {shape}, got {tensor.dense_shape}",
    )
    array = tensor.to_numpy().astype(np.float32, copy=False)
    bad = ~np.isfinite(array)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InvalidInputError(
            f"{field}: must be finite, got {array[place]} at {list(place)}", field=field
        )
    return array


def _check_tokens(tokens: npt.NDArray[np.integer], field: str, card: ModelCard) -> None:
    low, high = int(tokens.min()), int(tokens.max())
    _check(
        low >= 0 and high < card.vocab_size,
        field,
        f"token ids must be between 0 and {card.vocab_size - 1}, got {low if low < 0 else high}",
    )


def _field(at: str, name: str) -> str:
    return f"{at}.loss_fn_inputs[{name!r}]"


def _check(holds: bool, field: str, says: str) -> None:
    if not holds:
        raise InvalidInputError(f"{field}: {says}", field=field)
