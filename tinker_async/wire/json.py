"""JSON bodies: every message of `wire.messages`, and the JSON form of the two binary results.

Encoders and decoders are built once for each type. The rule: arrays are lists on the
wire and arrays on both sides of it; JSON has no NaN, so a missing number is null.
"""

from __future__ import annotations

import functools
import math
import typing
from collections.abc import Hashable, Sequence
from typing import Any, TypeVar, cast

import msgspec
import numpy as np
import numpy.typing as npt

from tinker_async.data.results import (
    ForwardBackwardOutput,
    PromptAltTokens,
    SampledSequence,
    SampleResponse,
    TopkLogprobs,
)
from tinker_async.data.tensors import TensorData
from tinker_async.wire.sampling import ids_for
from tinker_async.wire.table import Buffer, DecodeError

T = TypeVar("T")


def encode(obj: Any) -> bytes:
    """Return an object as JSON: structs, plain containers, numpy arrays and scalars.

    NaN and infinities become null.

    Raises:
        TypeError: An object has no JSON form.
    """
    return _ENCODER.encode(obj)


def decode(body: Buffer, type_: type[T]) -> T:
    """Return the JSON in `body` as an object of the type; unknown fields are ignored.

    Raises:
        DecodeError: Not JSON, or not of this type; the message has the path of the field.
    """
    try:
        found: T = _decoder(cast("Hashable", type_)).decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise DecodeError(str(error)) from error
    return found


def forward_backward_output_to_json(output: ForwardBackwardOutput) -> bytes:
    """Return the JSON form of a result."""
    return encode(output)


def forward_backward_output_from_json(body: Buffer) -> ForwardBackwardOutput:
    """Return the result in `body`; a metric that is null becomes NaN.

    Raises:
        DecodeError: Not such a result.
    """
    found = decode(body, _ForwardBackwardOutputJson)
    metrics = {name: math.nan if v is None else v for name, v in found.metrics.items()}
    return ForwardBackwardOutput(found.loss_fn_output_type, found.loss_fn_outputs, metrics)


def sample_response_to_json(response: SampleResponse) -> bytes:
    """Return the JSON form of a result, without the sequence ids, which the promise has."""
    return encode(
        _SampleResponseJson(
            sequences=[
                _SequenceJson(
                    stop_reason=sequence.stop_reason,
                    tokens=sequence.tokens,
                    logprobs=sequence.logprobs,
                    topk_logprobs=_topk_rows(sequence.topk_logprobs),
                )
                for sequence in response.sequences
            ],
            prompt_logprobs=response.prompt_logprobs,
            topk_prompt_logprobs=_topk_rows(response.topk_prompt_logprobs),
            target_prompt_logprobs=response.target_prompt_logprobs,
            prompt_cache_hit_tokens=response.prompt_cache_hit_tokens,
            prompt_alt_tokens=response.prompt_alt_tokens,
        )
    )


def sample_response_from_json(body: Buffer, sequence_ids: Sequence[str] | None) -> SampleResponse:
    """Return the result in `body`.

    Args:
        body: The JSON text.
        sequence_ids: The promise's `sample_sequence_ids`, in the order of the samples,
            or None when the server gave none.

    Raises:
        DecodeError: Not such a result, or not one id for each sample.
    """
    found = decode(body, _SampleResponseJson)
    ids = ids_for(sequence_ids, len(found.sequences))
    return SampleResponse(
        sequences=[
            SampledSequence(
                tokens=sequence.tokens,
                logprobs=_unless_empty(sequence.logprobs),
                stop_reason=sequence.stop_reason,
                sequence_id=sequence_id,
                topk_logprobs=_topk_matrix(sequence.topk_logprobs),
            )
            for sequence, sequence_id in zip(found.sequences, ids, strict=True)
        ],
        prompt_logprobs=_unless_empty(found.prompt_logprobs),
        topk_prompt_logprobs=_topk_matrix(found.topk_prompt_logprobs),
        target_prompt_logprobs=found.target_prompt_logprobs,
        prompt_cache_hit_tokens=found.prompt_cache_hit_tokens,
        prompt_alt_tokens=found.prompt_alt_tokens,
    )


_FREE_CELLS = 1 << 22
_CELLS_PER_PAIR = 16
"""A few long rows among many short ones would make a matrix that no body backs."""

_TopkRows = list[list[tuple[int, float]] | None]


class _ForwardBackwardOutputJson(msgspec.Struct):
    loss_fn_output_type: str
    loss_fn_outputs: list[dict[str, TensorData]]
    metrics: dict[str, float | None]


class _SequenceJson(msgspec.Struct, omit_defaults=True):
    stop_reason: str
    tokens: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32] | None = None
    topk_logprobs: _TopkRows | None = None


class _SampleResponseJson(msgspec.Struct, omit_defaults=True):
    sequences: list[_SequenceJson]
    prompt_logprobs: npt.NDArray[np.float32] | None = None
    topk_prompt_logprobs: _TopkRows | None = None
    target_prompt_logprobs: TensorData | None = None
    prompt_cache_hit_tokens: int = 0
    prompt_alt_tokens: PromptAltTokens | None = None
    type: str = msgspec.field(default_factory=lambda: "sample")  # a factory: always sent


def _unless_empty(array: npt.NDArray[np.float32] | None) -> npt.NDArray[np.float32] | None:
    return array if array is not None and array.size else None


def _topk_rows(topk: TopkLogprobs | None) -> _TopkRows | None:
    return None if topk is None else topk.tolist()


def _topk_matrix(rows: _TopkRows | None) -> TopkLogprobs | None:
    sizes = [len(row) for row in rows or () if row]
    width = max(sizes, default=0)
    if not rows or not width:
        return None
    if len(rows) * width > max(_FREE_CELLS, _CELLS_PER_PAIR * sum(sizes)):
        raise DecodeError(f"{sum(sizes)} top-k pairs in {len(rows)} rows of up to {width}")
    ids = np.zeros((len(rows), width), dtype=np.int32)
    logprobs = np.full((len(rows), width), TopkLogprobs.EMPTY, dtype=np.float32)
    for i, row in enumerate(rows):
        if row:
            row_ids, row_logprobs = zip(*row, strict=True)
            try:
                ids[i, : len(row)] = _checked_array(row_ids, np.int32)
            except ValueError as error:
                raise DecodeError(f"top-k row {i}: {error}") from error
            with np.errstate(over="ignore"):
                logprobs[i, : len(row)] = row_logprobs
    return TopkLogprobs(token_ids=ids, logprobs=logprobs)


# The two hooks of msgspec


def _to_builtin(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _from_builtin(type_: Any, value: Any) -> Any:
    """Make the array that a field wants; msgspec adds the field's path to a ValueError."""
    if typing.get_origin(type_) is not np.ndarray or not isinstance(value, list):
        raise ValueError(f"Expected `array`, got `{type(value).__name__}`")
    return _checked_array(value, _scalar_type(type_))


@functools.cache
def _scalar_type(array_type: Any) -> type[np.generic] | None:
    """Return the element type of `NDArray[...]`, None for `NDArray[Any]`."""
    dtype = typing.get_args(array_type)[1]
    (scalar,) = typing.get_args(dtype)
    return None if scalar is Any else scalar


def _checked_array(values: Sequence[Any], scalar: type[np.generic] | None) -> npt.NDArray[Any]:
    array = np.asarray(values)
    if array.dtype.kind == "O" and all(v is None or isinstance(v, float | int) for v in values):
        try:
            array = np.asarray(values, dtype=np.float64)  # null is NaN
        except OverflowError as error:
            raise ValueError("Expected numbers of at most 64 bits") from error
    if array.size == 0:
        return np.zeros(array.shape, dtype=scalar or array.dtype)
    if array.dtype.kind not in "if" or array.ndim != 1:
        raise ValueError("Expected a flat array of numbers")
    if scalar is None or array.dtype == scalar:
        return array
    if issubclass(scalar, np.integer):
        limits = np.iinfo(scalar)
        if array.dtype.kind == "f" or array.min() < limits.min or array.max() > limits.max:
            raise ValueError(f"Expected integers of type {scalar.__name__}")
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite
        return array.astype(scalar)


_ENCODER = msgspec.json.Encoder(enc_hook=_to_builtin)


@functools.cache
def _decoder(type_: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(type_, dec_hook=_from_builtin)
