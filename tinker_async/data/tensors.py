"""Tensors on their way to and from the server: one flat buffer, a dtype and a shape.

A `TensorData` is a view of memory that belongs to numpy or torch. Data is copied
only where the dtype must change (float64 to float32, int32 to int64) or the source
is not contiguous.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeGuard

import msgspec
import numpy as np
import numpy.typing as npt

from tinker_async.data import given
from tinker_async.errors import InvalidInputError

if TYPE_CHECKING:
    import torch

DType: TypeAlias = Literal["int64", "float32"]
"""The two element types of the wire."""

TensorLike: TypeAlias = "TensorData | npt.NDArray[Any] | torch.Tensor | Sequence[Any]"
"""What may be given where a tensor is wanted."""

_INT64 = np.dtype(np.int64)
_FLOAT32 = np.dtype(np.float32)

_MOST_DIMENSIONS = 64
_MOST_BYTES = 2**63 - 1
"""numpy's limits."""
_ITEM_BYTES = 8
"""Of the larger element type."""

_LIST_DTYPES: dict[str, DType] = {
    "target_tokens": "int64",
    "weights": "float32",
    "advantages": "float32",
    "logprobs": "float32",
    "clip_low_threshold": "float32",
    "clip_high_threshold": "float32",
    "sequence_ratio_mask": "float32",
}
"""The dtype that a plain list gets, by its key in `loss_fn_inputs`."""

_SPARSE_KEYS = frozenset({"target_tokens", "weights"})
"""Keys under which a 2-D array travels as CSR where that is smaller: their padding is 0."""


class TensorData(msgspec.Struct, frozen=True, eq=False, omit_defaults=True, gc=False):
    """One tensor, dense or compressed sparse row (CSR).

    Args:
        data: Flat, contiguous elements in row-major order; for CSR the stored values.
        dtype: `int64` or `float32`; `data` has exactly this dtype.
        shape: The dense shape; None means one dimension.
        sparse_crow_indices: CSR row pointers, int64 `[rows + 1]`, or None when dense.
        sparse_col_indices: CSR column indices, int64 `[nnz]`, or None when dense.

    Raises:
        InvalidInputError: The parts do not fit together.
    """

    data: npt.NDArray[Any]
    dtype: DType
    shape: tuple[int, ...] | None = None
    sparse_crow_indices: npt.NDArray[np.int64] | None = None
    sparse_col_indices: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if self._is_plain():
            return
        if self.dtype not in ("int64", "float32"):
            raise InvalidInputError(f"dtype {self.dtype!r} is not int64 or float32", field="dtype")
        msgspec.structs.force_setattr(self, "data", _flat(self.data, self.dtype))
        if self.shape is not None:
            msgspec.structs.force_setattr(self, "shape", _sizes(self.shape))
            _check_sizes(self.shape)
        if self.is_sparse:
            self._check_csr()
        elif self.shape is not None and math.prod(self.shape) != self.data.size:
            raise InvalidInputError(
                f"shape {self.shape} needs {math.prod(self.shape)} elements, got {self.data.size}",
                field="shape",
            )

    def _is_plain(self) -> bool:
        """Whether this is one dense dimension as it should be: the common case, seen quickly."""
        data, shape = self.data, self.shape
        return (
            type(data) is np.ndarray
            and data.ndim == 1
            and data.dtype is _dtype(self.dtype)
            and (shape is None or (type(shape) is tuple and shape == data.shape))
            and data.flags.c_contiguous
            and not self.is_sparse
        )

    def _check_csr(self) -> None:
        crow, col = self.sparse_crow_indices, self.sparse_col_indices
        if crow is None or col is None:
            raise InvalidInputError(
                "a CSR tensor needs both index arrays", field="sparse_crow_indices"
            )
        crow, col = _indices(crow, "sparse_crow_indices"), _indices(col, "sparse_col_indices")
        msgspec.structs.force_setattr(self, "sparse_crow_indices", crow)
        msgspec.structs.force_setattr(self, "sparse_col_indices", col)
        if self.shape is None or len(self.shape) != 2:
            raise InvalidInputError("a CSR tensor needs a 2-D shape", field="shape")
        rows, cols = self.shape
        sound = (
            crow.size == rows + 1
            and crow[0] == 0
            and crow[-1] == col.size == self.data.size
            and bool((np.diff(crow) >= 0).all())
            and (col.size == 0 or bool(((col >= 0) & (col < cols)).all()))
        )
        if not sound:
            raise InvalidInputError(
                f"CSR indices do not describe a {rows} x {cols} tensor with {self.data.size} values",
                field="sparse_crow_indices",
            )

    @property
    def is_sparse(self) -> bool:
        """Whether the tensor is stored as CSR."""
        return self.sparse_crow_indices is not None or self.sparse_col_indices is not None

    @property
    def dense_shape(self) -> tuple[int, ...]:
        """The shape with None resolved to one dimension."""
        return (self.data.size,) if self.shape is None else self.shape

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, indices included."""
        size: int = self.data.nbytes
        if self.sparse_crow_indices is not None and self.sparse_col_indices is not None:
            size += self.sparse_crow_indices.nbytes + self.sparse_col_indices.nbytes
        return size

    @classmethod
    def from_numpy(cls, array: npt.NDArray[Any]) -> TensorData:
        """Wrap an array: floats become float32, signed integers int64; no copy if they are so.

        Raises:
            InvalidInputError: Any other kind (unsigned, bool, complex, object).
        """
        if not isinstance(array, (np.ndarray, np.generic)):
            raise given.wrong("array", f"must be a numpy array, got {given.shown(array)}")
        kind = array.dtype.kind
        if kind not in "fi":
            raise InvalidInputError(
                f"an array of {array.dtype} cannot travel",
                field="dtype",
                hint="convert it to float32 or int64 first",
            )
        dtype: DType = "float32" if kind == "f" else "int64"
        return cls(data=array, dtype=dtype, shape=tuple(array.shape))

    @classmethod
    def from_torch(cls, tensor: torch.Tensor) -> TensorData:
        """Wrap a tensor (detached, moved to the CPU); bfloat16 and float16 are widened.

        A tensor in torch's CSR layout stays sparse; in another sparse layout it becomes dense.
        """
        if not _is_torch(tensor):
            raise given.wrong("tensor", f"must be a torch tensor, got {given.shown(tensor)}")
        tensor = tensor.detach().cpu()
        if str(tensor.layout) not in {"torch.strided", "torch.sparse_csr"}:
            tensor = tensor.to_dense()
        if tensor.is_floating_point():
            tensor = tensor.float()
        if str(tensor.layout) == "torch.sparse_csr":
            values = cls.from_numpy(tensor.values().numpy())
            return cls(
                data=values.data,
                dtype=values.dtype,
                shape=tuple(tensor.shape),
                sparse_crow_indices=tensor.crow_indices().numpy(),
                sparse_col_indices=tensor.col_indices().numpy(),
            )
        return cls.from_numpy(tensor.numpy())

    @classmethod
    def from_torch_sparse(cls, tensor: torch.Tensor, pad_value: int = 0) -> TensorData:
        """Wrap a 2-D tensor as CSR where that has fewer elements; as `compressed`."""
        return cls.from_torch(tensor).compressed(pad_value)

    @classmethod
    def from_value(cls, key: str, value: TensorLike) -> TensorData:
        """Make the tensor for `loss_fn_inputs[key]` from whatever the user gave.

        Lists take the dtype that belongs to the key; 2-D arrays under `target_tokens`
        and `weights` become CSR where that is smaller.

        Raises:
            InvalidInputError: Ragged lists, lists under an unknown key, wrong dtypes.
        """
        if isinstance(value, TensorData):
            return value
        given.text(key, "key", hint="such as target_tokens")
        field = f"loss_fn_inputs[{key!r}]"
        if isinstance(value, np.ndarray):
            tensor = cls.from_numpy(value)
        elif _is_torch(value):
            tensor = cls.from_torch(value)
        else:
            dtype = _LIST_DTYPES.get(key)
            if dtype is None:
                raise InvalidInputError(
                    f"{field}: the dtype of a list under this key is unknown",
                    field=field,
                    hint="pass a numpy array, a torch tensor or a TensorData",
                )
            tensor = cls._from_list(value, dtype, field)
        return tensor.compressed() if key in _SPARSE_KEYS else tensor

    @classmethod
    def _from_list(cls, value: Any, dtype: DType, field: str) -> TensorData:
        try:
            array = np.asarray(value)
            if array.size == 0:
                array = array.astype(dtype)
        except (ValueError, TypeError) as error:
            raise InvalidInputError(
                f"{field}: lists must be rectangular and hold numbers", field=field
            ) from error
        if array.dtype.kind not in "fi" or (dtype == "int64" and array.dtype.kind == "f"):
            raise InvalidInputError(
                f"{field}: expected numbers of type {dtype}, got {array.dtype}", field=field
            )
        return cls(data=array, dtype=dtype, shape=tuple(array.shape))

    def compressed(self, pad_value: int = 0) -> TensorData:
        """Return the CSR form of a 2-D tensor where that has fewer elements, else self.

        Args:
            pad_value: What cells hold that are left out. The reader must know it: it is 0 for
                `target_tokens` and `weights`, and -1 for `target_prompt_logprobs`.
        """
        _check_pad(pad_value)
        if self.is_sparse or self.shape is None or len(self.shape) != 2:
            return self
        rows, cols = self.shape
        matrix = self.data.reshape(rows, cols)
        nonzero_rows, nonzero_cols = np.nonzero(matrix != pad_value if pad_value else matrix)
        if rows + 1 + 2 * nonzero_rows.size >= rows * cols:
            return self
        crow = np.zeros(rows + 1, dtype=np.int64)
        np.cumsum(np.bincount(nonzero_rows, minlength=rows), out=crow[1:])
        return TensorData(
            data=matrix[nonzero_rows, nonzero_cols],
            dtype=self.dtype,
            shape=self.shape,
            sparse_crow_indices=crow,
            sparse_col_indices=nonzero_cols.astype(np.int64),
        )

    def to_numpy(self, pad_value: int = 0) -> npt.NDArray[Any]:
        """Return the dense array in its shape; a view unless the tensor is CSR.

        Args:
            pad_value: For the cells that a CSR tensor leaves out.
        """
        _check_pad(pad_value)
        crow, col = self.sparse_crow_indices, self.sparse_col_indices
        if crow is None or col is None:
            return self.data.reshape(self.dense_shape)
        dense = np.full(self.dense_shape, pad_value, dtype=self.dtype)
        rows = np.repeat(np.arange(crow.size - 1), np.diff(crow))
        dense[rows, col] = self.data
        return dense

    def to_torch(self, pad_value: int = 0) -> torch.Tensor:
        """Return a dense torch tensor; it shares memory where that is writable.

        Args:
            pad_value: As for `to_numpy`.
        """
        import torch  # noqa: PLC0415  # an optional extra, loaded on use

        array = self.to_numpy(pad_value)
        return torch.from_numpy(array if array.flags.writeable else array.copy())

    def tolist(self, pad_value: int = 0) -> list[Any]:
        """Return nested lists in the tensor's shape; `pad_value` as for `to_numpy`."""
        return self.to_numpy(pad_value).tolist()  # type: ignore[no-any-return]  # numpy types it as Any

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorData):
            return NotImplemented
        return (
            self.dtype == other.dtype
            and self.dense_shape == other.dense_shape
            and self.is_sparse == other.is_sparse
            and np.array_equal(self.data, other.data, equal_nan=self.dtype == "float32")
            and _same(self.sparse_crow_indices, other.sparse_crow_indices)
            and _same(self.sparse_col_indices, other.sparse_col_indices)
        )

    __hash__ = None  # type: ignore[assignment]  # buffers can change: not hashable


def _is_torch(value: object) -> TypeGuard[torch.Tensor]:
    torch = sys.modules.get("torch")  # whoever has a tensor has loaded it
    return isinstance(value, getattr(torch, "Tensor", ()))


def _check_pad(pad_value: int) -> None:
    if isinstance(pad_value, bool) or not isinstance(pad_value, (int, np.integer)):
        raise InvalidInputError(
            f"pad_value: must be a whole number, got {pad_value!r}", field="pad_value"
        )


def _dtype(name: object) -> np.dtype[Any] | None:
    if name == "int64":
        return _INT64
    return _FLOAT32 if name == "float32" else None


def _sizes(shape: object) -> tuple[int, ...]:
    if not isinstance(shape, (tuple, list)):
        raise given.wrong("shape", f"must be sizes, got {given.shown(shape)}", "such as (2, 3)")
    return tuple(given.whole(size, "shape") for size in shape)


def _indices(given_indices: object, field: str) -> npt.NDArray[np.int64]:
    try:
        return np.ascontiguousarray(given_indices, dtype=np.int64).reshape(-1)
    except (ValueError, TypeError, OverflowError):
        says = f"must be whole numbers, got {given.shown(given_indices)}"
        raise given.wrong(field, says) from None


def _check_sizes(shape: tuple[int, ...]) -> None:
    """Refuse what no array can have, also where a size of 0 makes it an empty one."""
    if min(shape, default=0) < 0:
        raise InvalidInputError(f"shape {shape} has a negative size", field="shape")
    cells = math.prod(size for size in shape if size)
    if len(shape) > _MOST_DIMENSIONS or cells * _ITEM_BYTES > _MOST_BYTES:
        raise InvalidInputError(f"no array can have the shape {shape}", field="shape")


def _flat(data: Any, dtype: DType) -> npt.NDArray[Any]:
    """Return the elements in one contiguous dimension; a view unless the dtype must change.

    What float32 cannot hold becomes infinite. Floats never become integers.
    """
    try:
        array = np.asarray(data)
    except (ValueError, TypeError) as error:
        raise InvalidInputError("data: not a flat list of numbers", field="data") from error
    if array.ndim == 0 and not isinstance(data, (np.ndarray, np.generic)):
        raise given.wrong("data", f"must be an array of numbers, got {given.shown(data)}")
    if array.dtype != dtype:
        if array.size and array.dtype.kind not in ("i" if dtype == "int64" else "fi"):
            raise InvalidInputError(f"data: {array.dtype} is not {dtype}", field="data")
        with np.errstate(over="ignore"):
            array = array.astype(dtype)
    return np.ascontiguousarray(array).reshape(-1)


def _same(left: npt.NDArray[Any] | None, right: npt.NDArray[Any] | None) -> bool:
    if left is None or right is None:
        return left is right
    return np.array_equal(left, right)
