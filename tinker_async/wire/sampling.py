"""Protobuf form of a sample's result, for both sides.

The rule: arrays are views. Encoded lists hold the caller's own memory, decoded arrays
keep the body alive.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tinker_async.data.results import (
    PromptAltTokens,
    SampledSequence,
    SampleResponse,
    TopkLogprobs,
)
from tinker_async.errors import InvalidInputError
from tinker_async.wire import schema
from tinker_async.wire.protobuf import Buffer, DecodeError, decode, encode
from tinker_async.wire.tensors import array_bytes, array_view, tensor_data, tensor_message

_STOP_NUMBERS = {"stop": schema.STOP_REASON_STOP, "length": schema.STOP_REASON_LENGTH}
_STOP_REASONS = {number: reason for reason, number in _STOP_NUMBERS.items()}


def encode_sample_response(response: SampleResponse) -> list[Buffer]:
    """Return the protobuf form of a result as buffers to be sent in order.

    Sequence ids are not part of it: they travel with the promise.

    Raises:
        InvalidInputError: A stop reason other than `stop` and `length`.
    """
    target = response.target_prompt_logprobs
    return encode(
        schema.SampleResponse(
            sequences=[_sequence_message(sequence) for sequence in response.sequences],
            prompt_logprobs=_optional_bytes(response.prompt_logprobs),
            topk_prompt_logprobs=_topk_message(response.topk_prompt_logprobs),
            prompt_cache_hit_tokens=response.prompt_cache_hit_tokens,
            target_prompt_logprobs=None if target is None else tensor_message(target),
            prompt_alt_tokens=_alt_message(response.prompt_alt_tokens),
        )
    )


def decode_sample_response(body: Buffer, sequence_ids: Sequence[str] | None) -> SampleResponse:
    """Return the result in `body`; its arrays are views that keep `body` alive.

    Args:
        body: The protobuf bytes.
        sequence_ids: The promise's `sample_sequence_ids`, in the order of the samples,
            or None when the server gave none.

    Raises:
        DecodeError: Malformed, an unknown stop reason, or not one id for each sample.
    """
    message = decode(schema.SampleResponse, body)
    ids = ids_for(sequence_ids, len(message.sequences))
    target = message.target_prompt_logprobs
    return SampleResponse(
        sequences=[
            _sequence(sequence, ids[i], f"sequences[{i}]")
            for i, sequence in enumerate(message.sequences)
        ],
        prompt_logprobs=_logprobs(message.prompt_logprobs, "prompt_logprobs"),
        topk_prompt_logprobs=_topk(message.topk_prompt_logprobs, "topk_prompt_logprobs"),
        target_prompt_logprobs=None
        if target is None
        else tensor_data(target, "target_prompt_logprobs"),
        prompt_cache_hit_tokens=message.prompt_cache_hit_tokens,
        prompt_alt_tokens=None if message.prompt_alt_tokens is None else _alt_tokens(message),
    )


def _alt_message(found: PromptAltTokens | None) -> schema.PromptAltTokens | None:
    if found is None:
        return None
    return schema.PromptAltTokens(
        tokens=tensor_message(found.tokens), logprobs=tensor_message(found.logprobs)
    )


def _alt_tokens(message: schema.SampleResponse) -> PromptAltTokens:
    found = message.prompt_alt_tokens
    if found is None or found.tokens is None or found.logprobs is None:
        raise DecodeError("prompt_alt_tokens: has not both tokens and logprobs")
    return PromptAltTokens(
        tokens=tensor_data(found.tokens, "prompt_alt_tokens.tokens"),
        logprobs=tensor_data(found.logprobs, "prompt_alt_tokens.logprobs"),
    )


def ids_for(sequence_ids: Sequence[str] | None, samples: int) -> Sequence[str | None]:
    """Return one id for each sample, or Nones when the server gave no ids.

    Raises:
        DecodeError: There are ids, but not as many as samples.
    """
    if sequence_ids is None:
        return [None] * samples
    if len(sequence_ids) != samples:
        raise DecodeError(f"{len(sequence_ids)} sequence ids for {samples} sequences")
    return sequence_ids


def _sequence_message(sequence: SampledSequence) -> schema.SampledSequence:
    stop_number = _STOP_NUMBERS.get(sequence.stop_reason)
    if stop_number is None:
        raise InvalidInputError(
            f"stop_reason {sequence.stop_reason!r} has no protobuf form", field="stop_reason"
        )
    return schema.SampledSequence(
        stop_reason=stop_number,
        tokens=array_bytes(np.ascontiguousarray(sequence.tokens, dtype=np.int32)),
        logprobs=_optional_bytes(sequence.logprobs),
        topk_sampled_logprobs=_topk_message(sequence.topk_logprobs),
    )


def _sequence(
    message: schema.SampledSequence, sequence_id: str | None, where: str
) -> SampledSequence:
    reason = _STOP_REASONS.get(message.stop_reason)
    if reason is None:
        raise DecodeError(f"{where}: stop reason number {message.stop_reason} is unknown")
    return SampledSequence(
        tokens=array_view(message.tokens, "<i4", f"{where}.tokens"),
        logprobs=_logprobs(message.logprobs, f"{where}.logprobs"),
        stop_reason=reason,
        sequence_id=sequence_id,
        topk_logprobs=_topk(message.topk_sampled_logprobs, f"{where}.topk_logprobs"),
    )


def _optional_bytes(logprobs: npt.NDArray[np.float32] | None) -> Buffer | None:
    if logprobs is None:
        return None
    return array_bytes(np.ascontiguousarray(logprobs, dtype=np.float32))


def _logprobs(data: Buffer | None, name: str) -> npt.NDArray[np.float32] | None:
    return array_view(data, "<f4", name) if data else None


def _topk_message(topk: TopkLogprobs | None) -> schema.TopkLogprobs | None:
    if topk is None:
        return None
    length, k = topk.token_ids.shape
    return schema.TopkLogprobs(
        token_ids=array_bytes(np.ascontiguousarray(topk.token_ids, dtype=np.int32).reshape(-1)),
        logprobs=array_bytes(np.ascontiguousarray(topk.logprobs, dtype=np.float32).reshape(-1)),
        k=k,
        length=length,
    )


def _topk(message: schema.TopkLogprobs | None, name: str) -> TopkLogprobs | None:
    if message is None or message.length == 0 or message.k == 0:
        return None
    shape = (message.length, message.k)
    token_ids = array_view(message.token_ids, "<i4", name)
    logprobs = array_view(message.logprobs, "<f4", name)
    cells = message.length * message.k
    if token_ids.size != cells or logprobs.size != cells:
        raise DecodeError(
            f"{name}: {token_ids.size} ids and {logprobs.size} log-probs for {shape} cells"
        )
    return TopkLogprobs(token_ids=token_ids.reshape(shape), logprobs=logprobs.reshape(shape))
