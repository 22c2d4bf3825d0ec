"""TensorData: views, conversions, CSR, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tinker_async.data.tensors import TensorData
from tinker_async.errors import InvalidInputError

quick = settings(max_examples=50, deadline=None)


@pytest.mark.parametrize("dtype", ["int64", "float32"])
def test_arrays_of_the_right_type_are_wrapped_not_copied(dtype: str) -> None:
    """The tensor, and what is read back from it, is the caller's memory."""
    array = np.arange(6, dtype=dtype).reshape(2, 3)

    tensor = TensorData.from_numpy(array)
    assert np.shares_memory(array, tensor.data)
    assert np.shares_memory(array, tensor.to_numpy())
    assert (tensor.data.shape, tensor.to_numpy().shape) == ((6,), (2, 3))


@pytest.mark.parametrize(
    ("source", "dtype"),
    [("float64", "float32"), ("float16", "float32"), (">f4", "float32"), ("int8", "int64")],
)
def test_other_widths_become_the_dtype_of_the_wire(source: str, dtype: str) -> None:
    """Any float becomes float32 and any signed integer int64, by value."""
    tensor = TensorData.from_numpy(np.array([1, -2], dtype=source))

    assert (dtype, np.dtype(dtype)) == (tensor.dtype, tensor.data.dtype)
    assert tensor.tolist() == [1, -2]


def test_a_strided_array_is_made_contiguous() -> None:
    """Row-major elements of the view that was given, not of its base."""
    array = np.arange(6, dtype=np.int64).reshape(2, 3).T

    assert TensorData.from_numpy(array).tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize("dtype", ["uint8", "bool", "complex64", "object", "<U3"])
def test_arrays_of_other_kinds_are_refused(dtype: str) -> None:
    """What has no exact place on the wire is not guessed."""
    with pytest.raises(InvalidInputError) as caught:
        TensorData.from_numpy(np.zeros(2, dtype=dtype))
    assert caught.value.field == "dtype"


def test_torch_tensors_share_memory_both_ways() -> None:
    """float32 and int64 tensors are wrapped, and come back on the same memory."""
    torch = pytest.importorskip("torch")
    source = torch.arange(4, dtype=torch.float32, requires_grad=True)

    tensor = TensorData.from_torch(source)
    assert source.data_ptr() == tensor.data.ctypes.data
    assert source.data_ptr() == tensor.to_torch().data_ptr()


def test_narrow_torch_floats_are_widened_exactly() -> None:
    """bfloat16 becomes float32 of the same value."""
    torch = pytest.importorskip("torch")

    assert TensorData.from_torch(torch.tensor([1.5, -2.0]).bfloat16()).tolist() == [1.5, -2.0]


def test_a_read_only_tensor_is_copied_for_torch() -> None:
    """torch cannot hold memory that must not change, such as a received body."""
    pytest.importorskip("torch")
    array = np.frombuffer(np.ones(3, np.float32).tobytes(), np.float32)

    assert TensorData.from_numpy(array).to_torch().tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("key", "value", "dtype", "expected"),
    [
        ("target_tokens", [1, 2], "int64", [1, 2]),
        ("weights", [1, 0], "float32", [1.0, 0.0]),
        ("advantages", [[1, 2.5], [3, 4]], "float32", [[1.0, 2.5], [3.0, 4.0]]),
        ("logprobs", [], "float32", []),
        ("target_tokens", [], "int64", []),
    ],
)
def test_a_list_takes_the_dtype_of_its_key(
    key: str, value: list[Any], dtype: str, expected: list[Any]
) -> None:
    """The key decides, not the values."""
    tensor = TensorData.from_value(key, value)

    assert (dtype, expected) == (tensor.dtype, tensor.tolist())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mine", [1.0]),
        ("weights", [[1.0], [2.0, 3.0]]),
        ("weights", ["1.0"]),
        ("weights", [None]),
        ("target_tokens", [1.5]),
        ("target_tokens", [2**70]),
        ("target_tokens", [True]),
    ],
)
def test_lists_that_cannot_be_meant_are_refused_by_key(key: str, value: list[Any]) -> None:
    """The field names the entry of `loss_fn_inputs`."""
    with pytest.raises(InvalidInputError) as caught:
        TensorData.from_value(key, value)
    assert caught.value.field == f"loss_fn_inputs['{key}']"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"data": [1], "dtype": "int8"}, "dtype"),
        ({"data": [1.5], "dtype": "int64"}, "data"),
        ({"data": ["a"], "dtype": "float32"}, "data"),
        ({"data": [[1], [2, 3]], "dtype": "float32"}, "data"),
        ({"data": [2**64 - 1], "dtype": "int64"}, "data"),
        ({"data": [1, 2, 3], "dtype": "int64", "shape": (2,)}, "shape"),
        ({"data": [1], "dtype": "int64", "shape": (-1, -1)}, "shape"),
    ],
)
def test_parts_that_do_not_fit_are_refused_by_name(fields: dict[str, Any], field: str) -> None:
    """Nothing is cast with loss, nothing reshaped by force."""
    with pytest.raises(InvalidInputError) as caught:
        TensorData(**fields)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("shape", "crow", "col", "field"),
    [
        (None, [0, 1], [0], "shape"),
        ((2,), [0, 1], [0], "shape"),
        ((1, 2), [0, 1], None, "sparse_crow_indices"),
        ((1, 2), None, [0], "sparse_crow_indices"),
        ((-1, 2), [], [0], "shape"),
        ((2, 2), [0, 1], [0], "sparse_crow_indices"),
        ((1, 2), [1, 1], [0], "sparse_crow_indices"),
        ((1, 2), [0, 2], [0], "sparse_crow_indices"),
        ((2, 2), [0, 2, 1], [0], "sparse_crow_indices"),
        ((1, 2), [0, 1], [2], "sparse_crow_indices"),
        ((1, 2), [0, 1], [-1], "sparse_crow_indices"),
        ((1, 2), [0, 1], [0, 1], "sparse_crow_indices"),
    ],
)
def test_csr_indices_that_describe_no_matrix_are_refused(
    shape: tuple[int, ...] | None, crow: list[int] | None, col: list[int] | None, field: str
) -> None:
    """Pointers rise from 0 to the number of values, columns lie inside."""
    with pytest.raises(InvalidInputError) as caught:
        TensorData(
            data=np.ones(1, np.float32),
            dtype="float32",
            shape=shape,
            sparse_crow_indices=None if crow is None else np.array(crow, np.int64),
            sparse_col_indices=None if col is None else np.array(col, np.int64),
        )
    assert caught.value.field == field


@quick
@given(
    matrix=hnp.arrays(
        st.sampled_from([np.int64, np.float32]),
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=8),
        elements=st.integers(0, 1),
    )
)
def test_compression_keeps_the_values_and_never_grows(matrix: Any) -> None:
    """CSR is chosen exactly where it has fewer elements, and reads back as the same matrix."""
    tensor = TensorData.from_value("weights", matrix)

    np.testing.assert_array_equal(matrix, tensor.to_numpy())
    csr_elements = matrix.shape[0] + 1 + 2 * np.count_nonzero(matrix)
    assert (csr_elements < matrix.size) == tensor.is_sparse


def test_only_keys_padded_with_zero_are_compressed() -> None:
    """Elsewhere a zero is a value like any other."""
    matrix = np.eye(9, dtype=np.float32)

    assert TensorData.from_value("target_tokens", matrix.astype(int)).is_sparse
    assert not TensorData.from_value("advantages", matrix).is_sparse


def test_sparse_size_counts_the_indices() -> None:
    """`nbytes` is what travels: values and both index arrays."""
    tensor = TensorData.from_value("weights", np.eye(9, dtype=np.float32))

    assert tensor.nbytes == 9 * 4 + 10 * 8 + 9 * 8
    assert TensorData.from_value("weights", [1.0, 2.0]).nbytes == 8


def test_equality_is_of_values_and_shape_not_of_memory() -> None:
    """NaN equals NaN; no shape is one dimension; dtype, shape and layout matter."""
    one = TensorData(data=np.array([1, np.nan], np.float32), dtype="float32")

    assert one == TensorData.from_numpy(np.array([1, np.nan], np.float32))
    assert one != TensorData.from_numpy(np.array([[1, np.nan]], np.float32))
    assert TensorData.from_numpy(np.array([1.0])) != TensorData.from_numpy(np.array([1]))
    sparse = TensorData.from_value("weights", np.eye(9, dtype=np.float32))
    assert sparse != TensorData.from_numpy(np.eye(9, dtype=np.float32))
    with pytest.raises(TypeError):
        hash(one)
