"""The codec itself: what it accepts, what it refuses, what it does not copy."""

from __future__ import annotations

import struct
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.wire_values import int32s, int64s, quick
from tinker.proto import tinker_public_pb2 as pb

from tinker_async.wire import schema
from tinker_async.wire.protobuf import DecodeError, Message, decode, encode
from tinker_async.wire.writer import COPY_BELOW_BYTES


def _varint(value: int) -> bytes:
    parts = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([part | 0x80 for part in parts[:-1]] + parts[-1:])


@quick
@given(values=st.lists(int64s), dtype=int32s)
@example(values=[-(2**63), 2**63 - 1], dtype=-(2**31))
@example(values=[], dtype=2**31 - 1)
def test_numbers_are_those_of_the_official_runtime(values: list[int], dtype: int) -> None:
    """Negative numbers, packed lists and open enums travel both ways unchanged."""
    official = pb.Tensor(shape=values, dtype=cast("Any", dtype))

    body = b"".join(encode(schema.Tensor(shape=values, dtype=dtype)))
    assert official.SerializeToString() == body
    assert schema.Tensor(shape=values, dtype=dtype) == decode(schema.Tensor, body)


def test_repeated_numbers_are_read_packed_unpacked_and_mixed() -> None:
    """A repeated number may come in any of the two forms, or both."""
    body = b"\x20\x03" + b"\x22\x02\x04\x05" + b"\x20\x06" + b"\x22\x00"

    assert decode(schema.Tensor, body).shape == [3, 4, 5, 6]


def test_numbers_wider_than_their_field_are_truncated_as_protobuf_does() -> None:
    """A 64-bit varint in a 32-bit field keeps its lower half."""
    wide = _varint(2**40 + 7)

    topk = decode(schema.TopkLogprobs, b"\x18" + wide)
    assert pb.TopkLogprobs.FromString(b"\x18" + wide).k == topk.k
    assert decode(schema.ForwardBackwardRequest, b"\x10" + _varint(2**64 - 2)).seq_id == -2


def test_unknown_fields_of_every_wire_type_are_skipped() -> None:
    """Fields of a newer server do not disturb the known ones around them."""
    unknown = b"\xf8\x07" + _varint(2**64 - 1)
    unknown += b"\xf9\x07" + bytes(8)
    unknown += b"\xfa\x07" + b"\x03abc"
    unknown += b"\xfd\x07" + bytes(4)
    body = unknown + b"\x0a\x01m" + unknown + b"\x22\x03ppo" + unknown

    request = decode(schema.ForwardBackwardRequest, body)
    assert (request.model_id, request.loss_fn) == ("m", "ppo")


def test_repeated_singular_values_keep_the_last_and_messages_merge() -> None:
    """The rules of protobuf for a field that comes twice."""
    twice = b"\x0a\x01a" + b"\x0a\x01b"
    parts = b"\x12\x04" + b"\x0a\x02vv" + b"\x12\x04" + b"\x12\x02cc"

    assert decode(schema.ForwardBackwardRequest, twice).model_id == "b"
    csr = decode(schema.Tensor, parts).sparse_csr
    assert csr is not None
    assert (bytes(csr.values), bytes(csr.crow_indices)) == (b"vv", b"cc")


@pytest.mark.parametrize(
    ("body", "dense"), [(b"\x12\x00\x0a\x01x", b"x"), (b"\x0a\x01x\x12\x00", None)]
)
def test_the_last_member_of_a_oneof_wins(body: bytes, dense: bytes | None) -> None:
    """Of two members of a oneof, only the later is set."""
    tensor = decode(schema.Tensor, body)

    assert dense == tensor.dense
    assert (dense is None) == (tensor.sparse_csr is not None)


def test_a_map_entry_may_be_in_any_order_and_lack_its_parts() -> None:
    """An entry without key or value has the defaults; of two with one key the last counts."""
    number = struct.pack("<d", 2.5)
    entries = [b"\x11" + number + b"\x0a\x01k", b"\x0a\x01z", b"\x11" + number]
    entries += [b"\x0a\x01k\x11" + struct.pack("<d", 3.5), b"\x18\x01\x0a\x01u"]
    body = b"".join(b"\x2a" + _varint(len(entry)) + entry for entry in entries)

    config = decode(schema.ForwardBackwardRequest, body).loss_fn_config
    assert config == {"k": 3.5, "z": 0.0, "": 2.5, "u": 0.0}
    official = dict(pb.ForwardBackwardRequest.FromString(body).loss_fn_config)
    # The official runtime sets an entry with unknown fields aside as a whole.
    assert official | {"u": 0.0} == config


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\x0a", id="no length"),
        pytest.param(b"\x0a\x05abc", id="text cut short"),
        pytest.param(b"\x10", id="no number"),
        pytest.param(b"\x10\x80\x80", id="number cut short"),
        pytest.param(b"\x10" + b"\x80" * 10 + b"\x01", id="number of eleven bytes"),
        pytest.param(b"\x10" + b"\xff" * 9 + b"\x7f", id="number of 70 bits"),
        pytest.param(b"\x08\x01", id="number for a text"),
        pytest.param(b"\x12\x01m", id="text for a number"),
        pytest.param(b"\x15\x01\x00\x00\x00", id="fixed32 for a number"),
        pytest.param(b"\x00\x01", id="field number zero"),
        pytest.param(b"\xfb\x07\xfc\x07", id="group"),
        pytest.param(b"\xfe\x07", id="wire type six"),
        pytest.param(b"\xf9\x07abc", id="fixed64 cut short"),
        pytest.param(b"\xfd\x07abc", id="fixed32 cut short"),
        pytest.param(b"\x80\x80\x80\x80\x80\x80\x01\x00", id="field number too large"),
        pytest.param(b"\x0a\x02\xff\xfe", id="text not UTF-8"),
        pytest.param(b"\x2a\x03\x11\x00\x00", id="double cut short"),
        pytest.param(b"\x2a\x02\x08\x01", id="map key of wrong type"),
        pytest.param(b"\x1a\x02\x0a\x02\x22\x00", id="message longer than its parent"),
    ],
)
def test_malformed_bytes_give_a_decode_error(body: bytes) -> None:
    """Nothing malformed passes, and nothing but DecodeError comes of it."""
    with pytest.raises(DecodeError):
        decode(schema.ForwardBackwardRequest, body)


def test_deep_nesting_in_unknown_fields_costs_no_stack() -> None:
    """A body nested a thousand levels deep is one unknown field, skipped at once."""
    body = b""
    for _ in range(1000):
        body = b"\x7a" + _varint(len(body)) + body

    assert schema.Tensor() == decode(schema.Tensor, body)


@pytest.mark.parametrize(
    "message",
    [
        schema.ForwardBackwardRequest(seq_id=2**31),
        schema.Tensor(shape=[2**63]),
        schema.TopkLogprobs(k=-1),
    ],
)
def test_a_number_too_large_for_its_field_is_refused(message: Message) -> None:
    """Nothing is truncated on its way out."""
    with pytest.raises(ValueError, match="does not fit"):
        encode(message)


def test_large_bytes_are_not_copied_and_small_ones_are_joined() -> None:
    """The buffers hold the caller's memory; everything between is one buffer each."""
    large = np.zeros(COPY_BELOW_BYTES, dtype=np.int32)
    csr = schema.SparseCsr(values=large.data.cast("B"), crow_indices=b"abc", col_indices=b"def")

    buffers = encode(schema.Tensor(sparse_csr=csr, dtype=2, shape=[1, 2]))
    assert [np.shares_memory(np.frombuffer(buffer, np.uint8), large) for buffer in buffers] == [
        False,
        True,
        False,
    ]
    assert csr == decode(schema.Tensor, b"".join(buffers)).sparse_csr


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_bytes_fields_are_views_of_the_body(wrap: type) -> None:
    """Any buffer can be decoded, and nothing in it is copied."""
    body = wrap(b"".join(encode(schema.SparseCsr(values=b"12345678"))))

    values = decode(schema.SparseCsr, body).values
    assert np.shares_memory(np.frombuffer(values, np.uint8), np.frombuffer(body, np.uint8))


def test_map_entries_keep_the_order_of_the_dict() -> None:
    """The same dict always gives the same bytes, in its own order."""
    body = b"".join(encode(schema.ForwardBackwardRequest(loss_fn_config={"b": 1.0, "a": 2.0})))

    assert body.index(b"b") < body.index(b"a")


def test_nothing_encodes_to_nothing_and_back() -> None:
    """An empty message is no buffers, and no bytes are an empty message."""
    assert encode(schema.Tensor()) == []
    assert schema.Tensor() == decode(schema.Tensor, b"")
