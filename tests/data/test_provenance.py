"""Which sampled sequences a datum's tokens came from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinker_async.data.datum import Datum
from tinker_async.data.model_input import ModelInput
from tinker_async.data.provenance import PromptProvenanceSpan, SampledProvenanceSpan
from tinker_async.errors import InvalidInputError

DATUM = Datum(ModelInput.from_ints([1, 2, 3, 4]), {"target_tokens": [2, 3, 4, 5]})


def prompt(length: int, **fields: Any) -> PromptProvenanceSpan:
    return PromptProvenanceSpan(sequence_id="s1:sample:0:1:0", length=length, **fields)


def sampled(length: int, **fields: Any) -> SampledProvenanceSpan:
    return SampledProvenanceSpan(sequence_id="s1:sample:0:1:0", length=length, **fields)


def test_spans_that_cover_both_fields_are_kept_with_a_copy() -> None:
    """The datum itself stays as it was."""
    marked = DATUM.with_provenance([prompt(3), sampled(1)], [prompt(2, offset=1), sampled(2)])

    assert (prompt(3), sampled(1)) == marked.model_input_spans
    assert (prompt(2, offset=1), sampled(2)) == marked.loss_fn_input_spans
    assert DATUM.model_input_spans is None
    assert DATUM.loss_fn_inputs == marked.loss_fn_inputs
    assert DATUM.nbytes == marked.nbytes


@pytest.mark.parametrize(
    ("inputs", "targets", "field"),
    [
        ([prompt(3)], [sampled(4)], "model_input"),
        ([prompt(4)], [sampled(3)], "loss_fn_inputs"),
        ([], [sampled(4)], "model_input"),
        ([prompt(4), "x"], [sampled(4)], "model_input[1]"),
        ([prompt(4)], [None], "loss_fn_inputs[0]"),
    ],
)
def test_spans_that_do_not_cover_a_field_are_refused(inputs: Any, targets: Any, field: str) -> None:
    """The field is the argument that is wrong."""
    with pytest.raises(InvalidInputError) as caught:
        DATUM.with_provenance(inputs, targets)
    assert field == caught.value.field


def test_targets_of_two_dimensions_are_not_counted() -> None:
    """Their runs are the server's business."""
    datum = Datum(ModelInput.from_ints([1, 2]), {"target_tokens": np.array([[1, 2], [3, 4]])})

    assert (sampled(7),) == datum.with_provenance([prompt(2)], [sampled(7)]).loss_fn_input_spans


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"model_input_spans": [prompt(1)]}, "loss_fn_input_spans"),
        ({"loss_fn_input_spans": [prompt(1)]}, "model_input_spans"),
        ({"model_input_spans": [1], "loss_fn_input_spans": []}, "model_input_spans[0]"),
    ],
)
def test_provenance_is_of_both_fields_or_of_none(fields: Any, field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Datum(ModelInput.from_ints([1]), {}, **fields)
    assert field == caught.value.field


@pytest.mark.parametrize("kind", [PromptProvenanceSpan, SampledProvenanceSpan])
@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"sequence_id": ""}, "sequence_id"),
        ({"offset": -1}, "offset"),
        ({"length": -1}, "length"),
        ({"length": 2**63}, "length"),
    ],
)
def test_a_span_that_cannot_be_is_refused_when_it_is_made(
    kind: Any, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        kind(**{"sequence_id": "s", "length": 1} | fields)
    assert field == caught.value.field
