"""Frames around tensors: the same bytes as the message tables write, in fewer buffers."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from tinker_async.data.datum import Datum
from tinker_async.data.media import DmelChunk, ImageChunk
from tinker_async.data.model_input import EncodedTextChunk, ModelInput
from tinker_async.data.provenance import PromptProvenanceSpan
from tinker_async.data.tensors import TensorData
from tinker_async.wire import schema
from tinker_async.wire.datums import COPY_BELOW_BYTES, encode_data
from tinker_async.wire.inputs import media_chunk, span_message
from tinker_async.wire.protobuf import Buffer, encode
from tinker_async.wire.tensors import array_bytes, tensor_message

EDGE = COPY_BELOW_BYTES // 8
"""Elements of the largest int64 tensor that is copied."""


def by_the_tables(data: list[Datum]) -> bytes:
    """The same message, written by the codec alone."""
    messages = [
        schema.Datum(
            model_input=[
                schema.Chunk(encoded_text=schema.EncodedTextChunk(tokens=array_bytes(chunk.tokens)))
                if isinstance(chunk, EncodedTextChunk)
                else media_chunk(chunk)
                for chunk in datum.model_input.chunks
            ],
            loss_fn_inputs={key: tensor_message(t) for key, t in datum.loss_fn_inputs.items()},
            model_input_spans=[span_message(one) for one in datum.model_input_spans or ()],
            loss_fn_input_spans=[span_message(one) for one in datum.loss_fn_input_spans or ()],
        )
        for datum in data
    ]
    return b"".join(encode(schema.ForwardBackwardRequest(data=messages)))


def chunk(tokens: int) -> EncodedTextChunk:
    return EncodedTextChunk(np.arange(tokens, dtype=np.int32))


def datum(tokens: int, target: TensorData | np.ndarray | None = None) -> Datum:
    values = np.arange(tokens)
    return Datum(
        ModelInput.from_ints(values),
        {
            "target_tokens": values if target is None else target,
            "weights": np.linspace(0, 1, tokens, dtype=np.float32),
        },
    )


def image(size: int) -> ImageChunk:
    return ImageChunk(b"y" * size, "png", size)


SPANS = (PromptProvenanceSpan(sequence_id="s", length=1),)
SPARSE = np.zeros((40, 30), np.int64)
SPARSE[::7, 3] = 5


@pytest.mark.parametrize(
    "data",
    [
        [],
        [datum(1)],
        [datum(3), datum(3), datum(200)],
        [datum(EDGE - 1), datum(EDGE), datum(EDGE + 1), datum(2)],
        [datum(4 * EDGE), datum(1), datum(4 * EDGE)],
        [Datum(ModelInput.empty(), {})],
        [Datum(ModelInput.from_ints([]), {"weights": np.zeros(0, np.float32)})],
        [Datum(ModelInput((chunk(3), chunk(9000))), {})],
        [datum(2), Datum(ModelInput((chunk(3), image(20_000), chunk(1), image(5))), {}), datum(2)],
        [Datum(ModelInput((DmelChunk(b"x" * 9000),)), {"w": np.ones(4000)}, SPANS, SPANS)],
        [datum(40, SPARSE), datum(2)],
        [datum(40, TensorData(SPARSE.reshape(-1), "int64", (40, 30)))],
        [datum(6, TensorData(np.arange(6), "int64"))],
        [
            Datum(
                ModelInput.from_ints([1]), {"ü": TensorData(np.arange(12.0), "float32", (2, 3, 2))}
            )
        ],
    ],
)
def test_the_bytes_are_those_of_the_message_tables(data: list[Datum]) -> None:
    """For every kind of tensor, on both sides of the size from which memory is not copied."""
    found = encode_data(data, head=b"<", tail=b">")

    assert b"<" + by_the_tables(data) + b">" == b"".join(found)


def test_small_tensors_share_a_buffer_and_large_ones_are_their_own_memory() -> None:
    """One buffer for many small data; a large tensor is never copied."""
    small, large = datum(EDGE), datum(EDGE + 1)
    assert 1 == len(encode_data([small] * 100, head=b"", tail=b""))

    buffers: list[Buffer] = encode_data([small, large, small], head=b"", tail=b"")
    (view,) = [buffer for buffer in buffers if type(buffer) is memoryview]
    assert np.shares_memory(np.asarray(view), large.loss_fn_inputs["target_tokens"].data)
    assert 3 == len(buffers)


def test_data_are_no_work_for_the_garbage_collector() -> None:
    """A batch of thousands of data would make it stall the event loop for tens of ms."""
    one = datum(3)

    assert not any(
        gc.is_tracked(part)
        for part in (one, one.model_input, one.model_input.chunks[0], *one.loss_fn_inputs.values())
    )
