"""Provenance: which runs of a datum's tokens came from which sampled sequence.

Runs follow each other and cover a field without gaps; a run's place is given by the order alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import msgspec

from tinker_async.data import given
from tinker_async.errors import InvalidInputError

_INT64_MAX = 2**63 - 1


def _check_span(sequence_id: str, offset: int, length: int) -> None:
    if not isinstance(sequence_id, str) or not sequence_id:
        raise InvalidInputError(
            "sequence_id: must not be empty",
            field="sequence_id",
            hint="it is SampledSequence.sequence_id of the sample",
        )
    for field, value in (("offset", offset), ("length", length)):
        if not 0 <= given.whole(value, field) <= _INT64_MAX:
            raise InvalidInputError(
                f"{field}: must be a number of tokens that is not negative, got {value}",
                field=field,
            )


class PromptProvenanceSpan(msgspec.Struct, frozen=True, kw_only=True, tag="prompt_tokens"):
    """A run of tokens that was part of the prompt of a sample.

    Args:
        sequence_id: `SampledSequence.sequence_id` of a sequence that was drawn from the prompt.
        offset: Where the run begins in that prompt.
        length: Number of tokens.

    Raises:
        InvalidInputError: No sequence is named, or a number is negative.
    """

    sequence_id: str
    offset: int = 0
    length: int

    def __post_init__(self) -> None:
        _check_span(self.sequence_id, self.offset, self.length)


class SampledProvenanceSpan(msgspec.Struct, frozen=True, kw_only=True, tag="sampled_tokens"):
    """A run of tokens that was drawn; otherwise as `PromptProvenanceSpan`.

    Args:
        sequence_id: `SampledSequence.sequence_id` of the sequence.
        offset: Where the run begins among its tokens.
        length: Number of tokens.

    Raises:
        InvalidInputError: No sequence is named, or a number is negative.
    """

    sequence_id: str
    offset: int = 0
    length: int

    def __post_init__(self) -> None:
        _check_span(self.sequence_id, self.offset, self.length)


ProvenanceSpan: TypeAlias = PromptProvenanceSpan | SampledProvenanceSpan
ProvenanceSpans: TypeAlias = Sequence[ProvenanceSpan]
"""Consecutive runs that cover one field of a `Datum`."""


def spans_tuple(spans: Iterable[ProvenanceSpan], field: str) -> tuple[ProvenanceSpan, ...]:
    """Return spans as a tuple.

    Raises:
        InvalidInputError: Something else is among them; `field` is where.
    """
    if not isinstance(spans, (tuple, list)):
        raise given.wrong(field, f"must be a list of spans, got {given.shown(spans)}")
    found = tuple(spans)
    for index, span in enumerate(found):
        if not isinstance(span, (PromptProvenanceSpan, SampledProvenanceSpan)):
            where = f"{field}[{index}]"
            raise InvalidInputError(
                f"{where}: {type(span).__name__} is neither a PromptProvenanceSpan nor a "
                "SampledProvenanceSpan",
                field=where,
            )
    return found


def check_tiling(spans: Iterable[ProvenanceSpan], length: int, field: str) -> None:
    """Check that spans cover so many positions.

    Raises:
        InvalidInputError: They do not.
    """
    covered = sum(span.length for span in spans)
    if covered != length:
        raise InvalidInputError(
            f"{field}: the spans cover {covered} positions, but it has {length}",
            field=field,
            hint="every position belongs to exactly one span",
        )
