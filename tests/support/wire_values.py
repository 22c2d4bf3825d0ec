"""Generated values of the wire layer's nouns, and their official counterparts."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tinker_async.data.datum import Datum
from tinker_async.data.media import DmelChunk, ImageAssetPointerChunk, ImageChunk
from tinker_async.data.model_input import EncodedTextChunk, ModelInput
from tinker_async.data.provenance import PromptProvenanceSpan, SampledProvenanceSpan
from tinker_async.data.results import (
    ForwardBackwardOutput,
    PromptAltTokens,
    SampledSequence,
    SampleResponse,
    TopkLogprobs,
)
from tinker_async.data.tensors import TensorData

quick = settings(max_examples=50, deadline=None)

finite = st.floats(allow_nan=False, allow_infinity=False)
int64s = st.integers(-(2**63), 2**63 - 1)
int32s = st.integers(-(2**31), 2**31 - 1)
texts = st.text(max_size=12)
shapes = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)


def float_arrays(shape: Any = shapes) -> st.SearchStrategy[Any]:
    return hnp.arrays(np.float32, shape, elements=st.floats(width=32))


def int_arrays(shape: Any = shapes) -> st.SearchStrategy[Any]:
    return hnp.arrays(np.int64, shape, elements=int64s)


def _sparse(matrix: Any) -> TensorData:
    """Return the CSR form of a matrix, whether it is smaller or not."""
    rows, cols = np.nonzero(matrix)
    crow = np.searchsorted(rows, np.arange(matrix.shape[0] + 1))
    return TensorData(
        data=matrix[rows, cols],
        dtype="float32" if matrix.dtype.kind == "f" else "int64",
        shape=matrix.shape,
        sparse_crow_indices=crow,
        sparse_col_indices=cols,
    )


dense_tensors = (float_arrays() | int_arrays()).map(TensorData.from_numpy)
unshaped_tensors = float_arrays((5,)).map(lambda a: TensorData(data=a, dtype="float32"))
sparse_tensors = hnp.arrays(
    st.sampled_from([np.float32, np.int64]),
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=5),
    elements=st.integers(0, 2),
).map(_sparse)
tensors = dense_tensors | unshaped_tensors | sparse_tensors
finite_tensors = (
    int_arrays().map(TensorData.from_numpy)
    | sparse_tensors
    | hnp.arrays(
        np.float32, shapes, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    ).map(TensorData.from_numpy)
)

chunks = st.lists(st.integers(0, 2**31 - 1), max_size=6).map(
    lambda tokens: EncodedTextChunk(np.array(tokens, dtype=np.int32))
)
inputs = st.lists(chunks, max_size=3).map(lambda parts: ModelInput(tuple(parts)))
datums = st.builds(
    Datum, model_input=inputs, loss_fn_inputs=st.dictionaries(texts, tensors, max_size=3)
)
finite_datums = st.builds(
    Datum, model_input=inputs, loss_fn_inputs=st.dictionaries(texts, finite_tensors, max_size=3)
)
_numbers = st.none() | st.integers(0, 2**31 - 1)
_formats = st.sampled_from(["png", "jpeg"])
_files = st.binary(min_size=1, max_size=40)
images = st.builds(ImageChunk, data=_files, format=_formats, expected_tokens=_numbers)
pointers = st.builds(
    ImageAssetPointerChunk,
    format=_formats,
    location=st.text(min_size=1, max_size=12),
    expected_tokens=_numbers,
)
dmels = st.builds(DmelChunk, dmel=_files)
mixed_inputs = st.lists(chunks | images | dmels, max_size=4).map(
    lambda parts: ModelInput(tuple(parts))
)
prompts = st.lists(chunks | images | dmels | pointers, max_size=4).map(
    lambda parts: ModelInput(tuple(parts))
)
_span_fields = {
    "sequence_id": st.text(min_size=1, max_size=8),
    "offset": st.integers(0, 2**63 - 1),
    "length": st.integers(0, 2**63 - 1),
}
spans = st.builds(PromptProvenanceSpan, **_span_fields) | st.builds(
    SampledProvenanceSpan, **_span_fields
)
_some_spans = st.lists(spans, min_size=1, max_size=3).map(tuple)
mixed_datums = st.builds(
    Datum, model_input=mixed_inputs, loss_fn_inputs=st.dictionaries(texts, tensors, max_size=2)
) | st.builds(
    Datum,
    model_input=mixed_inputs,
    loss_fn_inputs=st.dictionaries(texts, tensors, max_size=2),
    model_input_spans=_some_spans,
    loss_fn_input_spans=_some_spans,
)
requests: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "model_id": texts,
        "seq_id": int32s,
        "data": st.lists(datums | mixed_datums, max_size=3),
        "loss_fn": texts,
        "loss_fn_config": st.none() | st.dictionaries(texts, finite | texts, max_size=4),
        "forward_only": st.booleans(),
    }
)


def _output_tensors(name: str) -> st.SearchStrategy[TensorData]:
    """A field of outputs: leading sizes vary, the rest is ragged for `b` alone."""
    trailing = {"a": st.just(()), "b": st.sampled_from([(2,), (3,), (1, 2)])}.get(name, st.just(()))
    shape = st.tuples(st.integers(0, 4), trailing).map(lambda s: (s[0], *s[1]))
    return (float_arrays(shape) | int_arrays(shape)).map(TensorData.from_numpy)


@st.composite
def outputs(draw: st.DrawFn) -> ForwardBackwardOutput:
    names = draw(st.lists(st.sampled_from(["a", "b", "ü:x"]), unique=True))
    datum = st.fixed_dictionaries({name: _output_tensors(name) for name in names})
    return ForwardBackwardOutput(
        loss_fn_output_type=draw(st.sampled_from(["ArrayRecord", "scalar"])),
        loss_fn_outputs=draw(st.lists(datum, max_size=5)),
        metrics=draw(st.dictionaries(texts, finite, max_size=3)),
    )


def _logprobs(length: int) -> st.SearchStrategy[Any]:
    return float_arrays((length,))


@st.composite
def topks(draw: st.DrawFn) -> TopkLogprobs:
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 3)))
    return TopkLogprobs(
        token_ids=draw(hnp.arrays(np.int32, shape, elements=st.integers(0, 9))),
        logprobs=draw(
            hnp.arrays(np.float32, shape, elements=st.sampled_from([-99999.0, -1.5, 0.0]))
        ),
    )


@st.composite
def sequences(draw: st.DrawFn) -> SampledSequence:
    length = draw(st.integers(0, 5))
    return SampledSequence(
        tokens=draw(hnp.arrays(np.int32, length, elements=st.integers(0, 2**31 - 1))),
        logprobs=draw(st.none() | _logprobs(length)) if length else None,
        stop_reason=draw(st.sampled_from(["stop", "length"])),
        topk_logprobs=draw(st.none() | topks()),
    )


_matrix = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=4)
alt_tokens = st.builds(
    PromptAltTokens,
    tokens=int_arrays(_matrix).map(TensorData.from_numpy),
    logprobs=float_arrays(_matrix).map(TensorData.from_numpy),
)
samples = st.builds(
    SampleResponse,
    sequences=st.lists(sequences(), max_size=3),
    prompt_logprobs=st.none() | st.integers(1, 5).flatmap(_logprobs),
    topk_prompt_logprobs=st.none() | topks(),
    target_prompt_logprobs=st.none() | dense_tensors | sparse_tensors,
    prompt_cache_hit_tokens=st.integers(0, 2**31 - 1),
    prompt_alt_tokens=st.none() | alt_tokens,
)


def official_tensor(tensor: TensorData) -> Any:
    from tinker import types

    crow, col = tensor.sparse_crow_indices, tensor.sparse_col_indices
    return types.TensorData(
        data=tensor.data,
        dtype=tensor.dtype,
        shape=None if tensor.shape is None else list(tensor.shape),
        sparse_crow_indices=None if crow is None else crow.tolist(),
        sparse_col_indices=None if col is None else col.tolist(),
    )


def official_chunk(chunk: Any) -> Any:
    from tinker import types

    if isinstance(chunk, ImageChunk):
        return types.ImageChunk(
            data=chunk.data, format=chunk.format, expected_tokens=chunk.expected_tokens
        )
    if isinstance(chunk, ImageAssetPointerChunk):
        return types.ImageAssetPointerChunk(
            format=chunk.format, location=chunk.location, expected_tokens=chunk.expected_tokens
        )
    if isinstance(chunk, DmelChunk):
        return types.DmelChunk(dmel=chunk.dmel)
    return types.EncodedTextChunk(tokens=chunk.tokens.tolist())


def official_input(model_input: ModelInput) -> Any:
    from tinker import types

    return types.ModelInput(chunks=[official_chunk(chunk) for chunk in model_input.chunks])


def official_span(span: Any) -> Any:
    from tinker import types

    kind = getattr(types, type(span).__name__)
    return kind(sequence_id=span.sequence_id, offset=span.offset, length=span.length)


def official_datum(datum: Datum) -> Any:
    from tinker import types

    inputs, targets = datum.model_input_spans, datum.loss_fn_input_spans
    return types.Datum(
        model_input=official_input(datum.model_input),
        loss_fn_inputs={key: official_tensor(t) for key, t in datum.loss_fn_inputs.items()},
        model_input_spans=None if inputs is None else [official_span(one) for one in inputs],
        loss_fn_input_spans=None if targets is None else [official_span(one) for one in targets],
    )


def same_tensor(official: Any, ours: TensorData) -> bool:
    """Whether an official TensorData has the values of ours."""
    theirs = TensorData(
        data=official._numpy,
        dtype=official.dtype,
        shape=official.shape,
        sparse_crow_indices=official.sparse_crow_indices,
        sparse_col_indices=official.sparse_col_indices,
    )
    return theirs == ours
