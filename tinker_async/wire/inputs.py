"""Chunks that are no text, and provenance spans, as protobuf messages and back.

The rule: files travel as their own memory; a decoded chunk holds a copy, since it outlives the
body it came in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from tinker_async.data.media import DmelChunk, ImageChunk, ImageFormat
from tinker_async.data.model_input import EncodedTextChunk, ModelInputChunk
from tinker_async.data.provenance import (
    PromptProvenanceSpan,
    ProvenanceSpan,
    SampledProvenanceSpan,
)
from tinker_async.errors import InvalidInputError
from tinker_async.wire import schema
from tinker_async.wire.protobuf import DecodeError
from tinker_async.wire.tensors import array_view


def media_chunk(chunk: ModelInputChunk) -> schema.Chunk:
    """Return the message of a chunk that is no text.

    Raises:
        InvalidInputError: A pointer to an image, which has no protobuf form.
    """
    if isinstance(chunk, ImageChunk):
        image = schema.ImageChunk(
            data=chunk.data, format=chunk.format, expected_tokens=chunk.expected_tokens
        )
        return schema.Chunk(image=image)
    if isinstance(chunk, DmelChunk):
        return schema.Chunk(dmel=schema.DmelChunk(dmel=chunk.dmel))
    raise InvalidInputError(
        "model_input: a pointer to an image cannot be trained on",
        field="model_input",
        hint="give the image itself, as ImageChunk",
    )


def chunk_of(message: schema.Chunk, where: str) -> ModelInputChunk:
    """Return the chunk in a message.

    Raises:
        DecodeError: Of an unknown kind, or malformed; `where` is in the message.
    """
    try:
        if message.encoded_text is not None:
            return EncodedTextChunk(array_view(message.encoded_text.tokens, "<i4", where))
        if message.image is not None:
            image = message.image
            image_format = cast("ImageFormat", image.format)
            return ImageChunk(bytes(image.data), image_format, image.expected_tokens)
        if message.dmel is not None:
            return DmelChunk(bytes(message.dmel.dmel))
    except InvalidInputError as error:
        raise DecodeError(f"{where}: {error}") from error
    raise DecodeError(f"{where}: a chunk of unknown kind")


def span_message(span: ProvenanceSpan) -> schema.ProvenanceSpan:
    """Return the message of a span."""
    fields: dict[str, Any] = {
        "sequence_id": span.sequence_id,
        "offset": span.offset,
        "length": span.length,
    }
    if isinstance(span, SampledProvenanceSpan):
        return schema.ProvenanceSpan(sampled_tokens=schema.SampledProvenanceSpan(**fields))
    return schema.ProvenanceSpan(prompt_tokens=schema.PromptProvenanceSpan(**fields))


def spans_of(messages: Sequence[schema.ProvenanceSpan], where: str) -> tuple[ProvenanceSpan, ...]:
    """Return the spans in messages.

    Raises:
        DecodeError: One is of an unknown kind, or malformed; `where` is in the message.
    """
    return tuple(_span(message, f"{where}[{i}]") for i, message in enumerate(messages))


def _span(message: schema.ProvenanceSpan, where: str) -> ProvenanceSpan:
    found = message.sampled_tokens or message.prompt_tokens
    if found is None:
        raise DecodeError(f"{where}: a span of unknown kind")
    kind = PromptProvenanceSpan if message.sampled_tokens is None else SampledProvenanceSpan
    try:
        return kind(sequence_id=found.sequence_id, offset=found.offset, length=found.length)
    except InvalidInputError as error:
        raise DecodeError(f"{where}: {error}") from error
