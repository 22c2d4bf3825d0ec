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

from tinker_async.data import given
from tinker_async.data.custom_loss import LossHandle
from tinker_async.data.datum import Datum
from tinker_async.data.media import ImageAssetPointerChunk, ImageChunk
from tinker_async.data.model_input import ModelInput
from tinker_async.data.params import SamplingParams
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
_CUSTOM = "custom"
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
    if not isinstance(loss_fn, str) or not loss_fn:
        raise InvalidInputError(
            f"loss_fn: must be the name of a loss, got {given.shown(loss_fn)}",
            field="loss_fn",
            hint="such as cross_entropy; a loss of your own goes to forward_backward_custom",
        )
    _check_config(loss_fn, {} if loss_fn_config is None else loss_fn_config)
    required = _REQUIRED.get(loss_fn, ())
    if _surely_sound(data, required, longest or sys.maxsize):
        return
    for index, datum in enumerate(data):
        _check_datum(f"data[{index}]", datum, loss_fn, required)
        length = datum.model_input.least_length
        if longest is not None and length > longest:
            field = f"data[{index}].model_input"
            raise InvalidInputError(
                f"{field} has {length} tokens, but the model takes {longest}", field=field
            )


def check_not_empty(data: Sequence[Datum]) -> None:
    """Check that there is anything to send, and that it is data.

    Raises:
        InvalidInputError: It is not.
    """
    hint = "give a list of at least one Datum"
    if not isinstance(data, Sequence):
        raise InvalidInputError(f"data: got {type(data).__name__}", field="data", hint=hint)
    if not data:
        raise InvalidInputError("data is empty", field="data", hint=hint)
    for index, datum in enumerate(data):
        if not isinstance(datum, Datum):
            field = f"data[{index}]"
            raise InvalidInputError(
                f"{field}: {type(datum).__name__} is no Datum", field=field, hint=hint
            )


def check_base_model(name: object) -> None:
    """Check what is given as the name of a base model.

    Raises:
        InvalidInputError: It cannot be one.
    """
    if not isinstance(name, str) or not name.isprintable() or not name.strip():
        raise InvalidInputError(
            f"base_model: {name!r} is not the name of a model",
            field="base_model",
            hint="get_server_capabilities names them; the form is Qwen/Qwen3-8B",
        )


def check_prompt(prompt: object, params: object) -> None:
    """Check that a prompt and sampling parameters are such.

    Raises:
        InvalidInputError: They are of other types.
    """
    if not isinstance(prompt, ModelInput):
        raise InvalidInputError(
            f"prompt: {type(prompt).__name__} is no ModelInput",
            field="prompt",
            hint="make one: ModelInput.from_ints(tokenizer.encode(text))",
        )
    if not isinstance(params, SamplingParams):
        raise InvalidInputError(
            f"sampling_params: {type(params).__name__} is no SamplingParams",
            field="sampling_params",
        )


def check_custom_loss(handle: LossHandle, data: Sequence[Datum], session_id: str) -> None:
    """Check that a loss can be applied to data.

    Args:
        handle: The loss.
        data: The data; `logprobs` have the shape of their `target_tokens`.
        session_id: The session that they are for.

    Raises:
        InvalidInputError: The loss is another session's, or a datum lacks an input or has it
            in another rank.
    """
    if handle.session_id != session_id:
        raise InvalidInputError(
            f"loss_fn: {handle.name} was made in the session {handle.session_id}",
            field="loss_fn",
            hint="make it again with create_custom_loss of this session",
        )
    for index, datum in enumerate(data):
        for one in handle.inputs:
            key = "target_tokens" if one.name == "logprobs" else one.name
            field = f"data[{index}].loss_fn_inputs[{key!r}]"
            tensor = datum.loss_fn_inputs.get(key)
            if tensor is None:
                raise InvalidInputError(f"{field} is missing: {handle.name} needs it", field=field)
            rank = len(tensor.dense_shape)
            if rank != one.rank:
                raise InvalidInputError(
                    f"{field} has rank {rank}, but {handle.name} takes {one.name} of rank "
                    f"{one.rank}",
                    field=field,
                )


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
        length = datum.model_input.text_length
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
    if not isinstance(config, Mapping):
        raise given.wrong(
            "loss_fn_config",
            f"must be settings by name, got {given.shown(config)}",
            'the form is {"clip_low_threshold": 0.8}',
        )
    for key, value in config.items():
        given.text(key, "loss_fn_config")
        field = f"loss_fn_config[{key!r}]"
        if known is not None and key not in known:
            raise InvalidInputError(
                f"{field}: {loss_fn} has no such setting",
                field=field,
                hint=f"it has {', '.join(known)}" if known else "it has none",
            )
        if not isinstance(value, str) and not _is_finite(value):
            raise InvalidInputError(
                f"{field}: must be a finite number or a text, got {value!r}", field=field
            )
    if loss_fn == _CUSTOM and not (isinstance(config.get("loss_id"), str) and config["loss_id"]):
        raise InvalidInputError(
            "loss_fn_config['loss_id']: is missing: it says which custom loss is meant",
            field="loss_fn_config['loss_id']",
            hint="use forward_backward_custom with the handle of Session.create_custom_loss",
        )


def _is_finite(value: object) -> bool:
    try:
        return math.isfinite(value)  # type: ignore[arg-type]  # whatever the user gave
    except (TypeError, OverflowError):
        return False


def _check_datum(where: str, datum: Datum, loss_fn: str, required: Sequence[str]) -> None:
    length = _known_length(f"{where}.model_input", datum.model_input)
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


def _known_length(where: str, model_input: ModelInput) -> int | None:
    """Return the number of tokens; None where only the server knows it.

    Raises:
        InvalidInputError: A chunk cannot be trained on, or is damaged; the field is the chunk.
    """
    length: int | None = 0
    for index, chunk in enumerate(model_input.chunks):
        field = f"{where}.chunks[{index}]"
        if isinstance(chunk, ImageAssetPointerChunk):
            raise InvalidInputError(
                f"{field}: a pointer to an image cannot be trained on",
                field=field,
                hint="give the image itself, as ImageChunk",
            )
        if isinstance(chunk, ImageChunk) and chunk.expected_tokens is None:
            length = None
            continue
        try:
            tokens = chunk.length
        except InvalidInputError as error:
            raise InvalidInputError(f"{field}: {error.message}", field=field) from None
        length = None if length is None else length + tokens
    return length


def _check_shape(
    field: str, tensor: TensorData, length: int | None, target: TensorData | None
) -> None:
    shape = tensor.dense_shape
    if len(shape) not in (1, 2) or (length is not None and shape[0] != length):
        has = "an unknown number of" if length is None else length
        raise InvalidInputError(
            f"{field} has shape {list(shape)}, but model_input has {has} tokens",
            field=field,
            hint="one row per input token; targets are shifted by the caller",
        )
    if target is not None and shape != target.dense_shape:
        raise InvalidInputError(
            f"{field} has shape {list(shape)}, but target_tokens has {list(target.dense_shape)}",
            field=field,
        )
