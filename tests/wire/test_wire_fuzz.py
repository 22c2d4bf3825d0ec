"""Random and damaged bytes: the decoders answer with a value or `DecodeError`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.wire_values import outputs, requests, samples

from tinker_async.wire import messages
from tinker_async.wire.json import (
    decode,
    encode,
    forward_backward_output_from_json,
    sample_response_from_json,
    sample_response_to_json,
)
from tinker_async.wire.promises import parse_promise_answer
from tinker_async.wire.protobuf import DecodeError
from tinker_async.wire.sampling import decode_sample_response, encode_sample_response
from tinker_async.wire.training import (
    decode_forward_backward,
    decode_forward_backward_output,
    encode_forward_backward,
    encode_forward_backward_output,
)

thorough = settings(max_examples=150, deadline=None)

DECODERS: list[Callable[[bytes], Any]] = [
    decode_forward_backward,
    decode_forward_backward_output,
    lambda body: decode_sample_response(body, None),
    forward_backward_output_from_json,
    lambda body: sample_response_from_json(body, None),
    lambda body: decode(body, messages.SampleRequest),
    lambda body: decode(body, messages.ForwardBackwardRequest),
    lambda body: parse_promise_answer(body, None),
]

valid = (
    requests.map(lambda request: b"".join(encode_forward_backward(**request)))
    | outputs().map(lambda output: b"".join(encode_forward_backward_output(output)))
    | outputs().map(encode)
    | samples.map(sample_response_to_json)
    | samples.map(lambda response: b"".join(encode_sample_response(response)))
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid body with some bytes changed, cut out or put in."""
    body = bytearray(draw(valid))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(body)))
        stop = min(len(body), start + draw(st.integers(0, 3)))
        body[start:stop] = draw(st.binary(max_size=3))
    return bytes(body)


@thorough
@given(body=st.binary(max_size=60) | damaged())
def test_no_bytes_make_a_decoder_fail_otherwise(body: bytes) -> None:
    """Whatever arrives, each decoder returns or raises DecodeError."""
    for decoder in DECODERS:
        with contextlib.suppress(DecodeError):
            decoder(body)


@thorough
@given(body=valid, data=st.data())
def test_no_cut_makes_a_decoder_fail_otherwise(body: bytes, data: st.DataObject) -> None:
    """A body cut anywhere is a shorter message or a DecodeError."""
    cut = body[: data.draw(st.integers(0, len(body)))]
    for decoder in DECODERS:
        with contextlib.suppress(DecodeError):
            decoder(cut)


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"prompt":' * 100_000, b"\xff", b""])
def test_json_that_is_none_gives_a_decode_error(body: bytes) -> None:
    """Deep nesting, foreign bytes and nothing at all are DecodeErrors."""
    for decoder in DECODERS[3:]:
        with pytest.raises(DecodeError):
            decoder(body)
