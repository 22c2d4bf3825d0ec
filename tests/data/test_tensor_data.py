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


def test_a_tensor_of_a_class_of_ones_own_is_a_tensor() -> None:
    """Wherever its class is from; and not all that is in torch is one."""
    torch = pytest.importorskip("torch")
    own = torch.tensor([1.5, -2.0]).as_subclass(type("Own", (torch.Tensor,), {}))

    assert TensorData.from_torch(own).tolist() == [1.5, -2.0]
    assert TensorData.from_value("any key", own).tolist() == [1.5, -2.0]
    for none in (torch.float32, torch.nn.Identity()):
        with pytest.raises(InvalidInputError, match="must be a torch tensor"):
            TensorData.from_torch(none)


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


@pytest.mark.parametrize("key", ["target_tokens", "weights"])
@pytest.mark.parametrize("dtype", ["int64", "float32", "bfloat16", "float64"])
@quick
@given(
    matrix=hnp.arrays(
        np.int64,
        hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=6),
        elements=st.integers(-1, 1),
    )
)
def test_torch_tensors_become_what_the_official_client_makes_of_them(
    key: str, dtype: str, matrix: Any
) -> None:
    """Widened, and CSR exactly where it makes CSR: 2-D, and smaller."""
    torch = pytest.importorskip("torch")
    types = pytest.importorskip("tinker").types
    source = torch.from_numpy(matrix).to(getattr(torch, dtype))
    known = source
    if dtype in ("float64", "bfloat16") and matrix.ndim == 2:
        known = source.float()  # the official client fails to make CSR of the others

    official = types.Datum(types.ModelInput.empty(), {key: known}).loss_fn_inputs[key]
    ours = TensorData.from_value(key, source)
    _assert_as_official(official, ours)


def _assert_as_official(official: Any, ours: TensorData) -> None:
    assert (official.dtype, official.shape) == (ours.dtype, list(ours.shape or ()))
    assert official.data == ours.data.tolist()
    crow, col = ours.sparse_crow_indices, ours.sparse_col_indices
    assert official.sparse_crow_indices == (None if crow is None else crow.tolist())
    assert official.sparse_col_indices == (None if col is None else col.tolist())


@pytest.mark.parametrize("pad_value", [0, -1, 7])
@quick
@given(
    matrix=hnp.arrays(
        np.int64,
        hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=8),
        elements=st.sampled_from([-1, -1, -1, 0, 7]),
    )
)
def test_any_number_may_be_the_one_that_is_left_out(pad_value: int, matrix: Any) -> None:
    """As the official `from_torch_sparse`; what is read back with it is what went in."""
    torch = pytest.importorskip("torch")
    types = pytest.importorskip("tinker").types
    source = torch.from_numpy(matrix)

    ours = TensorData.from_torch_sparse(source, pad_value)
    _assert_as_official(types.TensorData.from_torch_sparse(source, pad_value), ours)
    np.testing.assert_array_equal(matrix, ours.to_numpy(pad_value))
    assert matrix.tolist() == ours.tolist(pad_value) == ours.to_torch(pad_value).tolist()


@pytest.mark.parametrize("pad_value", [True, 0.5, None])
def test_what_is_left_out_is_a_whole_number(pad_value: Any) -> None:
    tensor = TensorData.from_value("weights", np.eye(9, dtype=np.float32))

    for use in (tensor.compressed, tensor.to_numpy, tensor.tolist):
        with pytest.raises(InvalidInputError) as caught:
            use(pad_value)
        assert caught.value.field == "pad_value"


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_a_sparse_torch_tensor_stays_sparse() -> None:
    """Its values and indices are taken as they are."""
    torch = pytest.importorskip("torch")
    matrix = torch.tensor([[0.0, 1.5], [0.0, 0.0]])

    tensor = TensorData.from_torch(matrix.to_sparse_csr())
    assert ([1.5], [0, 1, 1], [1]) == (
        tensor.data.tolist(),
        list(tensor.sparse_crow_indices),  # type: ignore[arg-type]  # it is sparse
        list(tensor.sparse_col_indices),  # type: ignore[arg-type]  # it is sparse
    )
    assert matrix.tolist() == tensor.tolist()


def test_lists_and_arrays_become_what_the_official_client_makes_of_them() -> None:
    """By key; where ours are CSR the values are the same."""
    types = pytest.importorskip("tinker").types
    for key, value in (
        ("target_tokens", [1, 2]),
        ("weights", [[0, 1], [1, 0]]),
        ("sequence_ratio_mask", [1.0, 0.0]),
        ("clip_low_threshold", [1]),
        ("anything", np.array([1.0, 2.0])),
        ("anything", np.array([[1], [2]], np.int8)),
    ):
        official = types.Datum(types.ModelInput.empty(), {key: value}).loss_fn_inputs[key]
        _assert_as_official(official, TensorData.from_value(key, value))
