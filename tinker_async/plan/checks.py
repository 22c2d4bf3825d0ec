"""Local checks of training data: what cannot be right is refused before anything is sent.

Only what every server refuses is refused here. Losses and keys that this client does
not know pass: the server may know them.
"""

from __future__ import annotations

import math
import sys
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
    data: Sequence[Datum],
    loss_fn: str,
    loss_fn_config: Mapping[str, float | str] | None,
    *,
    longest: int | None = None,
) -> None:
    """Check the arguments of `forward` and `forward_backward`.

    Args:
        data: The data.
        loss_fn: The name of the loss.
        loss_fn_config: Its settings.
        longest: The most tokens that a datum may have, if that is known.

    Raises:
        InvalidInputError: `field` says which argument, down to the datum and the key.
    """
    check_not_empty(data)
    if not loss_fn:
        raise InvalidInputError("loss_fn is empty", field="loss_fn")
    _check_config(loss_fn, loss_fn_config or {})
    required = _REQUIRED.get(loss_fn, ())
    if _surely_sound(data, required, longest or sys.maxsize):
        return
    for index, datum in enumerate(data):
        _check_datum(f"data[{index}]", datum, loss_fn, required)
        if longest is not None and datum.model_input.length > longest:
            field = f"data[{index}].model_input"
            raise InvalidInputError(
                f"{field} has {datum.model_input.length} tokens, but the model takes {longest}",
                field=field,
            )


def check_not_empty(data: Sequence[Datum]) -> None:
    """Check that there is anything to send.

    Raises:
        InvalidInputError: There is not.
    """
    if not data:
        raise InvalidInputError("data is empty", field="data", hint="give at least one Datum")


def check_sample_length(prompt_tokens: int, max_tokens: int | None, longest: int | None) -> None:
    """Check that a prompt and what may follow it fit into a model's context.

    Args:
        prompt_tokens: Length of the prompt.
        max_tokens: Most tokens to draw; None is the server's choice.
        longest: The most tokens that the model takes, if that is known.

    Raises:
        InvalidInputError: They do not.
    """
    if longest is None:
        return
    if prompt_tokens > longest:
        raise InvalidInputError(
            f"prompt has {prompt_tokens} tokens, but the model takes {longest}", field="prompt"
        )
    if max_tokens is not None and prompt_tokens + max_tokens > longest:
        raise InvalidInputError(
            f"prompt and max_tokens are {prompt_tokens} + {max_tokens} tokens, but the model "
            f"takes {longest}",
            field="sampling_params.max_tokens",
            hint=f"at most {longest - prompt_tokens} can follow this prompt",
        )


def _surely_sound(data: Sequence[Datum], required: Sequence[str], longest: int) -> bool:
    """Whether the data pass at a glance; what does not is looked at one by one.

    Numbers are checked in blocks, since a call of numpy costs more than a short tensor.
    """
    names = frozenset(required)
    block: list[npt.NDArray[Any]] = []
    in_block = 0
    for datum in data:
        inputs = datum.loss_fn_inputs
        length = datum.model_input.length
        if not 0 < length <= longest or not names <= inputs.keys():
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
