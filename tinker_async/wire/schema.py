"""The protobuf messages of the protocol, each described once.

A class is a message, an annotation one row of its table: number, kind, label. Names
and numbers are those of the service's `tinker_public.proto`. Fields that this library
has no use for are left out; the codec skips them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import field

from tinker_async.wire.protobuf import Buffer, Field, Message

STOP_REASON_STOP = 0
STOP_REASON_LENGTH = 1

DTYPE_FLOAT32 = 1
DTYPE_INT64 = 2
DTYPE_INT32 = 3
DTYPE_BFLOAT16 = 4


class EncodedTextChunk(Message):
    """`tokens` are int32."""

    tokens: Annotated[Buffer, Field(1, "bytes")] = b""


class ImageChunk(Message):
    """`data` is the encoded file."""

    data: Annotated[Buffer, Field(1, "bytes")] = b""
    format: Annotated[str, Field(2, "string")] = ""
    expected_tokens: Annotated[int | None, Field(3, "int32", "optional")] = None


class DmelChunk(Message):
    """`dmel` is a serialized TensorContainer."""

    dmel: Annotated[Buffer, Field(1, "bytes")] = b""


class Chunk(Message):
    """One part of a model's input."""

    encoded_text: Annotated[EncodedTextChunk | None, Field(1, "message", oneof="chunk")] = None
    image: Annotated[ImageChunk | None, Field(2, "message", oneof="chunk")] = None
    dmel: Annotated[DmelChunk | None, Field(3, "message", oneof="chunk")] = None


class SparseCsr(Message):
    """Values have the tensor's dtype, indices are int64."""

    values: Annotated[Buffer, Field(1, "bytes")] = b""
    crow_indices: Annotated[Buffer, Field(2, "bytes")] = b""
    col_indices: Annotated[Buffer, Field(3, "bytes")] = b""


class Tensor(Message):
    """An empty `shape` means one dimension."""

    dense: Annotated[Buffer | None, Field(1, "bytes", oneof="encoding")] = None
    sparse_csr: Annotated[SparseCsr | None, Field(2, "message", oneof="encoding")] = None
    dtype: Annotated[int, Field(3, "enum")] = 0
    shape: Annotated[Sequence[int], Field(4, "int64", "repeated")] = field(default_factory=list)


class PromptProvenanceSpan(Message):
    """A run of the prompt of a sample."""

    sequence_id: Annotated[str, Field(1, "string")] = ""
    offset: Annotated[int, Field(2, "int64")] = 0
    length: Annotated[int, Field(3, "int64")] = 0


class SampledProvenanceSpan(Message):
    """A run of a sample."""

    sequence_id: Annotated[str, Field(1, "string")] = ""
    offset: Annotated[int, Field(2, "int64")] = 0
    length: Annotated[int, Field(3, "int64")] = 0


class ProvenanceSpan(Message):
    """Where a run of tokens came from."""

    prompt_tokens: Annotated[PromptProvenanceSpan | None, Field(1, "message", oneof="span")] = None
    sampled_tokens: Annotated[SampledProvenanceSpan | None, Field(2, "message", oneof="span")] = (
        None
    )


class Datum(Message):
    """One training example."""

    model_input: Annotated[Sequence[Chunk], Field(1, "message", "repeated")] = field(
        default_factory=list
    )
    loss_fn_inputs: Annotated[dict[str, Tensor], Field(2, "message", "map")] = field(
        default_factory=dict
    )
    model_input_spans: Annotated[Sequence[ProvenanceSpan], Field(3, "message", "repeated")] = field(
        default_factory=list
    )
    loss_fn_input_spans: Annotated[Sequence[ProvenanceSpan], Field(4, "message", "repeated")] = (
        field(default_factory=list)
    )


class LossConfigValue(Message):
    """A number or a text."""

    number: Annotated[float | None, Field(1, "double", oneof="value")] = None
    text: Annotated[str | None, Field(2, "string", oneof="value")] = None


class ForwardBackwardRequest(Message):
    """Body of `forward_backward`; `loss_fn_config_v2` supersedes `loss_fn_config`."""

    model_id: Annotated[str, Field(1, "string")] = ""
    seq_id: Annotated[int, Field(2, "int32")] = 0
    data: Annotated[Sequence[Datum], Field(3, "message", "repeated")] = field(default_factory=list)
    loss_fn: Annotated[str, Field(4, "string")] = ""
    loss_fn_config: Annotated[dict[str, float], Field(5, "double", "map")] = field(
        default_factory=dict
    )
    forward_only: Annotated[bool, Field(6, "bool")] = False
    loss_fn_config_v2: Annotated[dict[str, LossConfigValue], Field(7, "message", "map")] = field(
        default_factory=dict
    )


class BatchedTensor(Message):
    """The tensors of many datums, end to end; `offsets` are int64 byte offsets."""

    data: Annotated[Buffer | Sequence[Buffer], Field(1, "bytes")] = b""
    """May be given in pieces; decoded it is one view."""
    offsets: Annotated[Buffer, Field(2, "bytes")] = b""
    dtype: Annotated[int, Field(3, "enum")] = 0
    trailing_shape: Annotated[Sequence[int], Field(4, "int64", "repeated")] = field(
        default_factory=list
    )


class ArrayRecord(Message):
    """Outputs of some datums, field by field."""

    fields: Annotated[dict[str, BatchedTensor], Field(2, "message", "map")] = field(
        default_factory=dict
    )
    num_datums: Annotated[int, Field(3, "int64")] = 0


class ForwardBackwardOutput(Message):
    """Result of `forward_backward`; the records follow each other."""

    loss_fn_output_type: Annotated[str, Field(1, "string")] = ""
    loss_fn_outputs: Annotated[Sequence[ArrayRecord], Field(2, "message", "repeated")] = field(
        default_factory=list
    )
    metrics: Annotated[dict[str, float], Field(3, "double", "map")] = field(default_factory=dict)


class TopkLogprobs(Message):
    """int32 ids and float32 log-probs, `[length, k]` in row-major order."""

    token_ids: Annotated[Buffer, Field(1, "bytes")] = b""
    logprobs: Annotated[Buffer, Field(2, "bytes")] = b""
    k: Annotated[int, Field(3, "uint32")] = 0
    length: Annotated[int, Field(4, "uint32")] = 0


class SampledSequence(Message):
    """int32 tokens, float32 log-probs."""

    stop_reason: Annotated[int, Field(1, "enum")] = STOP_REASON_STOP
    tokens: Annotated[Buffer, Field(2, "bytes")] = b""
    logprobs: Annotated[Buffer | None, Field(3, "bytes", "optional")] = None
    topk_sampled_logprobs: Annotated[TopkLogprobs | None, Field(4, "message", "optional")] = None


class PromptAltTokens(Message):
    """Draws and their log-probs, `[len(prompt) - 1, k]` each."""

    tokens: Annotated[Tensor | None, Field(1, "message")] = None
    logprobs: Annotated[Tensor | None, Field(2, "message")] = None


class SampleResponse(Message):
    """Result of `sample`; prompt log-probs are float32, NaN where there is none."""

    sequences: Annotated[Sequence[SampledSequence], Field(1, "message", "repeated")] = field(
        default_factory=list
    )
    prompt_logprobs: Annotated[Buffer | None, Field(2, "bytes", "optional")] = None
    topk_prompt_logprobs: Annotated[TopkLogprobs | None, Field(3, "message", "optional")] = None
    prompt_cache_hit_tokens: Annotated[int, Field(4, "int32")] = 0
    target_prompt_logprobs: Annotated[Tensor | None, Field(5, "message", "optional")] = None
    prompt_alt_tokens: Annotated[PromptAltTokens | None, Field(6, "message", "optional")] = None
