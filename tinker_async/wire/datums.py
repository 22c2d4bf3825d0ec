"""Training data as bytes of the request: the one part of encoding that runs per tensor.

Everything around a tensor's memory depends on its key, dtype and shape only, so it is
encoded once by the message tables and kept as a frame. The rule: small tensors are
joined into one buffer with what surrounds them, large ones are sent from their own memory.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from tinker_async.data.datum import Datum
from tinker_async.data.model_input import EncodedTextChunk
from tinker_async.data.tensors import DType
from tinker_async.wire import schema
from tinker_async.wire.inputs import media_chunk, span_message
from tinker_async.wire.protobuf import Buffer, encode
from tinker_async.wire.table import fields_of
from tinker_async.wire.tensors import DTYPE_NUMBERS, little_endian, tensor_message
from tinker_async.wire.writer import field_prefix, writer

COPY_BELOW_BYTES = 8192
"""Tensors up to this size are copied: cheaper than sending one more buffer."""


class _Frame(NamedTuple):
    """A field of `schema.Datum` around the memory that belongs into it."""

    before: bytes
    after: bytes
    size_bytes: int
    """With the memory."""


class _Hole:
    """Stands for memory of a known size while the frame around it is written."""

    __slots__ = ("_size_bytes",)

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes

    def __len__(self) -> int:
        return self._size_bytes


def encode_data(data: Sequence[Datum], *, head: bytes, tail: bytes) -> list[Buffer]:
    """Return the field `data` of a `schema.ForwardBackwardRequest` between two other parts.

    Args:
        data: In order.
        head: The fields before it, encoded.
        tail: The fields after it, encoded.
    """
    buffers: list[Buffer] = []
    small: list[Any] = [head]
    number = _data_number()
    for datum in data:
        pieces, size_bytes, largest_bytes = _pieces(datum)
        small.append(field_prefix(number, size_bytes))
        if largest_bytes <= COPY_BELOW_BYTES:
            small += pieces
            continue
        for piece in pieces:
            memory = memoryview(piece)
            if memory.nbytes <= COPY_BELOW_BYTES:
                small.append(piece)
            else:
                buffers += (b"".join(small), memory.cast("B"))
                small = []
    small.append(tail)
    buffers.append(b"".join(small))
    return buffers


def _pieces(datum: Datum) -> tuple[list[Any], int, int]:
    """Return a datum's bytes as buffers (arrays among them), their size and the largest one's."""
    pieces: list[Any] = []
    size_bytes = largest_bytes = 0
    for chunk in datum.model_input.chunks:
        if type(chunk) is not EncodedTextChunk:
            largest_bytes = max(largest_bytes, chunk.nbytes)
            size_bytes += _add(pieces, schema.Datum(model_input=[media_chunk(chunk)]))
            continue
        array = little_endian(chunk.tokens)
        nbytes = array.nbytes
        before, after, total_bytes = _tokens_frame(nbytes)
        pieces += (before, array, after)
        size_bytes += total_bytes
        largest_bytes = max(largest_bytes, nbytes)
    for key, tensor in datum.loss_fn_inputs.items():
        if tensor.is_sparse:
            message = schema.Datum(loss_fn_inputs={key: tensor_message(tensor)})
            size_bytes += _add(pieces, message)
            largest_bytes = max(largest_bytes, tensor.nbytes)
            continue
        array = little_endian(tensor.data)
        nbytes = array.nbytes
        before, after, total_bytes = _tensor_frame(key, nbytes, tensor.dtype, tensor.shape)
        pieces += (before, array, after)
        size_bytes += total_bytes
        largest_bytes = max(largest_bytes, nbytes)
    if datum.model_input_spans is not None:
        size_bytes += _add(pieces, _spans(datum))
    return pieces, size_bytes, largest_bytes


def _add(pieces: list[Any], fields: schema.Datum) -> int:
    """Add fields to a datum's bytes by the message tables; return their size."""
    encoded = encode(fields)
    pieces += encoded
    return sum(map(len, encoded))


def _spans(datum: Datum) -> schema.Datum:
    return schema.Datum(
        model_input_spans=[span_message(span) for span in datum.model_input_spans or ()],
        loss_fn_input_spans=[span_message(span) for span in datum.loss_fn_input_spans or ()],
    )


@functools.cache
def _data_number() -> int:
    return fields_of(schema.ForwardBackwardRequest)["data"][0].number


@functools.lru_cache(maxsize=4096)
def _tokens_frame(nbytes: int) -> _Frame:
    tokens = schema.EncodedTextChunk(tokens=cast("Buffer", _Hole(nbytes)))
    return _frame(schema.Datum(model_input=[schema.Chunk(encoded_text=tokens)]))


@functools.lru_cache(maxsize=4096)
def _tensor_frame(key: str, nbytes: int, dtype: DType, shape: tuple[int, ...] | None) -> _Frame:
    tensor = schema.Tensor(
        dense=cast("Buffer", _Hole(nbytes)), dtype=DTYPE_NUMBERS[dtype], shape=shape or ()
    )
    return _frame(schema.Datum(loss_fn_inputs={key: tensor}))


def _frame(field: schema.Datum) -> _Frame:
    """Return what the message tables write around the hole in a field."""
    pieces: list[Any] = []
    size_bytes = writer(schema.Datum)(field, pieces)
    pieces.reverse()
    at = next((i for i, piece in enumerate(pieces) if type(piece) is _Hole), len(pieces))
    return _Frame(b"".join(pieces[:at]), b"".join(pieces[at + 1 :]), size_bytes)
