"""Local checks of training data: what cannot be right is refused before anything is sent.

Only what every server refuses is refused here. Losses and keys that this client does
not know pass: the server may know them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tinker_async.data.datum import Datum
from tinker_async.data.tensors import TensorData
from tinker_async.errors import InvalidInputError

_RL_INPUTS = ("target_tokens", "logprobs", "advantages")
_REQUIRED: dict[str, tuple[str, ...]] = {
    "cross_entropy": ("target_tokens",),
    "importance_sampling": _RL_INPUTS,
    "ppo": _RL_INPUTS,
    "cispo": _RL_INPUTS,
    "dro": _RL_INPUTS,
}
_CLIP_KEYS = ("clip_low_threshold", "clip_high_threshold")
_CONFIG_KEYS: dict[str, tuple[str, ...]] = {
    "cross_entropy": (),
    "importance_sampling": (),
    "ppo": _CLIP_KEYS,
    "cispo": _CLIP_KEYS,
    "dro": ("beta",),
}
_MUST_BE_FINITE = frozenset(("weights", "advantages", "logprobs"))
_BLOCK_NUMBERS = 65_536
"""Numbers that are checked at once: few enough for the processor's cache."""


def check_training_call(
    data: Sequence[Datum], loss_fn: str, loss_fn_config: Mapping[str, float | str] | None
) -> None:
    """Check the arguments of `forward` and `forward_backward`.

    Raises:
        InvalidInputError: `field` says which argument, down to the datum and the key.
    """
    if not data:
        raise InvalidInputError("data is empty", field="data", hint="give at least one Datum")
    if not loss_fn:
        raise InvalidInputError("loss_fn is empty", field="loss_fn")
    _check_config(loss_fn, loss_fn_config or {})
    required = _REQUIRED.get(loss_fn, ())
    if _surely_sound(data, required):
        return
    for index, datum in enumerate(data):
        _check_datum(f"data[{index}]", datum, loss_fn, required)


def _surely_sound(data: Sequence[Datum], required: Sequence[str]) -> bool:
    """Whether the data pass at a glance; what does not is looked at one by one.

    Numbers are checked in blocks, since a call of numpy costs more than a short tensor.
    """
    names = frozenset(required)
    block: list[npt.NDArray[Any]] = []
    in_block = 0
    for datum in data:
        inputs = datum.loss_fn_inputs
        length = datum.model_input.length
        if not length or not names <= inputs.keys():
            return False
        for key, tensor in inputs.items():
            array = tensor.data
            if names and (tensor.dense_shape != (length,) or array.size != length):
                return False
            if key in _MUST_BE_FINITE and tensor.dtype == "float32":
                block.append(array)
                in_block += array.size
        if in_block >= _BLOCK_NUMBERS:
            if not _all_finite(block):
                return False
            block, in_block = [], 0
    return _all_finite(block)


def _all_finite(block: list[npt.NDArray[Any]]) -> bool:
    if not block:
        return True
    numbers = block[0] if len(block) == 1 else np.concatenate(block)
    return bool(np.isfinite(numbers).all())


def _check_config(loss_fn: str, config: Mapping[str, float | str]) -> None:
    known = _CONFIG_KEYS.get(loss_fn)
    for key, value in config.items():
        field = f"loss_fn_config[{key!r}]"
        if known is not None and key not in known:
            raise InvalidInputError(
                f"{field}: {loss_fn} has no such setting",
                field=field,
                hint=f"it has {', '.join(known)}" if known else "it has none",
            )
        if not isinstance(value, str) and not math.isfinite(value):
            raise InvalidInputError(f"{field}: must be finite, got {value}", field=field)


def _check_datum(where: str, datum: Datum, loss_fn: str, required: Sequence[str]) -> None:
    length = datum.model_input.length
    if length == 0:
        raise InvalidInputError(f"{where}.model_input has no tokens", field=f"{where}.model_input")
    for key in required:
        if key not in datum.loss_fn_inputs:
            field = f"{where}.loss_fn_inputs[{key!r}]"
            raise InvalidInputError(f"{field} is missing: {loss_fn} needs it", field=field)
    target = datum.loss_fn_inputs.get("target_tokens")
    for key, tensor in datum.loss_fn_inputs.items():
        field = f"{where}.loss_fn_inputs[{key!r}]"
        if required:
            _check_shape(field, tensor, length, target)
        if key in _MUST_BE_FINITE and not np.isfinite(tensor.data).all():
            raise InvalidInputError(f"{field} has NaN or infinite values", field=field)


def _check_shape(field: str, tensor: TensorData, length: int, target: TensorData | None) -> None:
    shape = tensor.dense_shape
    if len(shape) not in (1, 2) or shape[0] != length:
        raise InvalidInputError(
            f"{field} has shape {list(shape)}, but model_input has {length} tokens",
            field=field,
            hint="one row per input token; targets are shifted by the caller",
        )
    if target is not None and shape != target.dense_shape:
        raise InvalidInputError(
            f"{field} has shape {list(shape)}, but target_tokens has {list(target.dense_shape)}",
            field=field,
        )
