"""Sample results, judged by the official messages and converter."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from support.wire_values import quick, same_tensor, samples
from tinker.proto import tinker_public_pb2 as pb
from tinker.proto.response_conv import deserialize_sample_response

from tinker_async.data.results import SampledSequence, SampleResponse, TopkLogprobs
from tinker_async.errors import InvalidInputError
from tinker_async.wire.protobuf import DecodeError
from tinker_async.wire.sampling import decode_sample_response, encode_sample_response


def _same(left: Any, right: Any) -> bool:
    if left is None or right is None:
        return left is right
    return left.dtype == right.dtype and np.array_equal(left, right, equal_nan=True)


def _same_topk(left: Any, right: Any) -> bool:
    if left is None or right is None:
        return left is right
    return _same(left.token_ids, right.token_ids) and _same(left.logprobs, right.logprobs)


def _assert_same(ours: SampleResponse, found: SampleResponse) -> None:
    assert _same(ours.prompt_logprobs, found.prompt_logprobs)
    assert _same_topk(ours.topk_prompt_logprobs, found.topk_prompt_logprobs)
    assert ours.target_prompt_logprobs == found.target_prompt_logprobs
    assert ours.prompt_cache_hit_tokens == found.prompt_cache_hit_tokens
    assert ours.prompt_alt_tokens == found.prompt_alt_tokens
    for a, b in zip(ours.sequences, found.sequences, strict=True):
        assert a.stop_reason == b.stop_reason
        assert _same(a.tokens, b.tokens)
        assert _same(a.logprobs, b.logprobs)
        assert _same_topk(a.topk_logprobs, b.topk_logprobs)


@quick
@given(response=samples)
def test_our_result_gives_the_official_client_the_same_values(response: SampleResponse) -> None:
    """The official converter reads from our bytes what went in, lists included."""
    official = deserialize_sample_response(b"".join(encode_sample_response(response)))

    assert _same(response.prompt_logprobs, official.prompt_logprobs_np)
    assert _same_topk(response.topk_prompt_logprobs, official.topk_prompt_logprobs_np)
    assert response.prompt_cache_hit_tokens == official.prompt_cache_hit_tokens
    target = response.target_prompt_logprobs
    if target is None:
        assert official.target_prompt_logprobs is None
    else:
        assert same_tensor(official.target_prompt_logprobs, target)
    draws = response.prompt_alt_tokens
    if draws is None:
        assert official.prompt_alt_tokens is None
    else:
        assert official.prompt_alt_tokens is not None
        assert same_tensor(official.prompt_alt_tokens.tokens, draws.tokens)
        assert same_tensor(official.prompt_alt_tokens.logprobs, draws.logprobs)
    for ours, theirs in zip(response.sequences, official.sequences, strict=True):
        assert ours.stop_reason == theirs.stop_reason
        assert _same(ours.tokens, theirs.tokens_np)
        assert _same(ours.logprobs, theirs.logprobs_np)
        assert _same_topk(ours.topk_logprobs, theirs.topk_logprobs_np)


@quick
@given(response=samples)
def test_a_result_survives_the_official_runtime_and_our_decoder(response: SampleResponse) -> None:
    """Our bytes, also reserialised by the official runtime, decode to what went in."""
    ours = b"".join(encode_sample_response(response))
    theirs = pb.SampleResponse.FromString(ours).SerializeToString()

    _assert_same(response, decode_sample_response(ours, None))
    _assert_same(response, decode_sample_response(theirs, None))


def test_the_worked_result_has_exactly_its_bytes() -> None:
    """The worked example of the protocol's description; NaN stays NaN."""
    worked = bytes.fromhex("0a0e08011204070000001a04000000bf12080000c07f000080bf")
    sequence = SampledSequence(
        tokens=np.array([7], np.int32), logprobs=np.array([-0.5], np.float32), stop_reason="length"
    )
    response = SampleResponse([sequence], prompt_logprobs=np.array([np.nan, -1], np.float32))

    assert worked == b"".join(encode_sample_response(response))
    decoded = decode_sample_response(worked, ["id"])
    _assert_same(response, decoded)
    assert decoded.sequences[0].sequence_id == "id"


def test_arrays_are_views_of_the_received_body() -> None:
    """Tokens, log-probs and top-k matrices of a result share the body's memory."""
    random = np.random.default_rng(3)
    topk = TopkLogprobs(
        token_ids=random.integers(0, 9, (300, 4), dtype=np.int32),
        logprobs=random.random((300, 4), dtype=np.float32),
    )
    sequence = SampledSequence(
        tokens=random.integers(0, 9, 300, dtype=np.int32),
        logprobs=random.random(300, dtype=np.float32),
        stop_reason="stop",
        topk_logprobs=topk,
    )
    body = bytearray(b"".join(encode_sample_response(SampleResponse([sequence]))))

    found = decode_sample_response(body, None).sequences[0]
    memory = np.frombuffer(body, np.uint8)
    assert found.logprobs is not None
    assert found.topk_logprobs is not None
    for array in (found.tokens, found.logprobs, found.topk_logprobs.token_ids):
        assert np.shares_memory(array, memory)
    assert topk == found.topk_logprobs


def test_the_top_tokens_read_the_same_as_the_official_lists() -> None:
    """Rows without values are None, empty cells at a row's end are left out."""
    topk = TopkLogprobs(
        token_ids=np.array([[0, 0], [5, 0], [5, 6]], np.int32),
        logprobs=np.array([[-99999, -99999], [-1, -99999], [-1, -2]], np.float32),
    )
    body = b"".join(encode_sample_response(SampleResponse([], topk_prompt_logprobs=topk)))

    found = decode_sample_response(body, None).topk_prompt_logprobs
    assert found is not None
    assert deserialize_sample_response(body).topk_prompt_logprobs == found.tolist()


@pytest.mark.parametrize(
    "message",
    [
        pb.SampleResponse(prompt_logprobs=b""),
        pb.SampleResponse(topk_prompt_logprobs=pb.TopkLogprobs(k=3)),
        pb.SampleResponse(topk_prompt_logprobs=pb.TopkLogprobs(length=3)),
        pb.SampleResponse(sequences=[pb.SampledSequence(logprobs=b"")]),
    ],
)
def test_empty_values_are_absent(message: Any) -> None:
    """Empty log-probs and top-k matrices without cells are None."""
    found = decode_sample_response(message.SerializeToString(), None)

    assert found.prompt_logprobs is None
    assert found.topk_prompt_logprobs is None
    assert all(sequence.logprobs is None for sequence in found.sequences)


def test_draws_of_either_width_are_read_as_int64() -> None:
    """Servers send int32 ids, too."""
    ids = pb.Tensor(dtype=pb.DTYPE_INT32, dense=np.array([3, 4], np.int32).tobytes(), shape=[1, 2])
    logprobs = pb.Tensor(
        dtype=pb.DTYPE_FLOAT32, dense=np.array([-1, -2], np.float32).tobytes(), shape=[1, 2]
    )
    message = pb.SampleResponse(
        prompt_alt_tokens=pb.PromptAltTokens(tokens=ids, logprobs=logprobs),
        prompt_cache_hit_tokens=4,
    )

    found = decode_sample_response(message.SerializeToString(), None)
    assert found.prompt_alt_tokens is not None
    assert ("int64", [[3, 4]]) == (
        found.prompt_alt_tokens.tokens.dtype,
        found.prompt_alt_tokens.tokens.tolist(),
    )
    assert [[-1.0, -2.0]] == found.prompt_alt_tokens.logprobs.tolist()
    assert found.prompt_cache_hit_tokens == 4


@pytest.mark.parametrize(
    ("message", "ids", "says"),
    [
        (pb.SampleResponse(prompt_alt_tokens=pb.PromptAltTokens()), None, "prompt_alt_tokens"),
        (
            pb.SampleResponse(sequences=[pb.SampledSequence(stop_reason=cast("Any", 2))]),
            None,
            "number 2",
        ),
        (pb.SampleResponse(sequences=[pb.SampledSequence(tokens=b"123")]), None, "whole"),
        (pb.SampleResponse(sequences=[pb.SampledSequence(logprobs=b"123")]), None, "whole"),
        (pb.SampleResponse(prompt_logprobs=b"12345"), None, "prompt_logprobs"),
        (
            pb.SampleResponse(topk_prompt_logprobs=pb.TopkLogprobs(k=2, length=1)),
            None,
            "topk_prompt_logprobs",
        ),
        (
            pb.SampleResponse(target_prompt_logprobs=pb.Tensor(dense=b"1234")),
            None,
            "target_prompt_logprobs",
        ),
        (pb.SampleResponse(sequences=[pb.SampledSequence()]), ["a", "b"], "2 sequence ids"),
    ],
)
def test_a_result_that_does_not_add_up_is_refused(
    message: Any, ids: list[str] | None, says: str
) -> None:
    """The error names the field."""
    with pytest.raises(DecodeError, match=says):
        decode_sample_response(message.SerializeToString(), ids)


def test_a_stop_reason_without_a_number_is_not_sent() -> None:
    """The enum has two values; another is refused, not guessed."""
    sequence = SampledSequence(np.zeros(1, np.int32), None, "content_filter")

    with pytest.raises(InvalidInputError) as caught:
        encode_sample_response(SampleResponse([sequence]))
    assert caught.value.field == "stop_reason"
