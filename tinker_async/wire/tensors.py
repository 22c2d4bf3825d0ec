"""Between arrays and the `bytes` fields that hold them: little-endian, no header, no padding.

The rule: arrays share memory with the buffers they came from and go to, except where
the element type has no place in `TensorData` (int32 and bfloat16 are widened).
"""

from __future__ import annotations

import sys
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tinker_async.data.tensors import DType, TensorData
from tinker_async.errors import InvalidInputError
from tinker_async.wire import schema
from tinker_async.wire.protobuf import Buffer, DecodeError

_IS_LITTLE = sys.byteorder == "little"

ElementType = Literal["<i4", "<f4", "<i8", "<u2"]

DTYPE_NUMBERS: dict[DType, int] = {
    "float32": schema.DTYPE_FLOAT32,
    "int64": schema.DTYPE_INT64,
}
ELEMENT_TYPES: dict[int, ElementType] = {
    schema.DTYPE_FLOAT32: "<f4",
    schema.DTYPE_INT64: "<i8",
    schema.DTYPE_INT32: "<i4",
    schema.DTYPE_BFLOAT16: "<u2",
}
"""How the elements of each wire dtype lie in memory."""


def array_bytes(array: npt.NDArray[Any]) -> Buffer:
    """Return a contiguous array's memory as bytes, without a copy."""
    if array.size == 0:
        return b""
    return little_endian(array).data.cast("B")


def little_endian(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array whose memory is as it travels; itself on most machines."""
    return array if _IS_LITTLE else array.byteswap()


def array_view(data: Buffer, element: ElementType, name: str) -> npt.NDArray[Any]:
    """Return the elements in `data` as a flat array that shares its memory.

    Raises:
        DecodeError: Not a whole number of elements; `name` is in the message.
    """
    if len(data) % int(element[2]):
        raise DecodeError(f"{name}: {len(data)} bytes are not whole elements of {element}")
    return np.frombuffer(data, dtype=element)


def widened(array: npt.NDArray[Any], dtype_number: int) -> tuple[npt.NDArray[Any], DType]:
    """Return an array of the wire dtype as one that `TensorData` can hold, and its dtype.

    A bfloat16 is the upper half of a float32.
    """
    if dtype_number == schema.DTYPE_BFLOAT16:
        return (array.astype(np.uint32) << 16).view(np.float32), "float32"
    if dtype_number == schema.DTYPE_INT32:
        return array.astype(np.int64), "int64"
    return array, "float32" if dtype_number == schema.DTYPE_FLOAT32 else "int64"


def element_type(dtype_number: int, name: str) -> ElementType:
    """Return the memory form of a wire dtype.

    Raises:
        DecodeError: Unknown or unset.
    """
    element = ELEMENT_TYPES.get(dtype_number)
    if element is None:
        raise DecodeError(f"{name}: dtype number {dtype_number} is unknown")
    return element


def tensor_message(tensor: TensorData) -> schema.Tensor:
    """Return the message of a tensor, dense or CSR, whose fields are the tensor's memory."""
    message = schema.Tensor(dtype=DTYPE_NUMBERS[tensor.dtype], shape=tensor.shape or ())
    crow, col = tensor.sparse_crow_indices, tensor.sparse_col_indices
    if crow is None or col is None:
        message.dense = array_bytes(tensor.data)
    else:
        message.sparse_csr = schema.SparseCsr(
            values=array_bytes(tensor.data),
            crow_indices=array_bytes(crow),
            col_indices=array_bytes(col),
        )
    return message


def tensor_data(message: schema.Tensor, name: str) -> TensorData:
    """Return the tensor in a message; float32 and int64 elements are views.

    Raises:
        DecodeError: Unknown dtype, or parts that do not fit together; `name` is in the
            message.
    """
    element = element_type(message.dtype, name)
    csr = message.sparse_csr
    raw = array_view((message.dense or b"") if csr is None else csr.values, element, name)
    data, dtype = widened(raw, message.dtype)
    try:
        return TensorData(
            data=data,
            dtype=dtype,
            shape=tuple(message.shape) or None,
            sparse_crow_indices=None if csr is None else _indices(csr.crow_indices, name),
            sparse_col_indices=None if csr is None else _indices(csr.col_indices, name),
        )
    except InvalidInputError as error:
        raise DecodeError(f"{name}: {error}") from error


def _indices(data: Buffer, name: str) -> npt.NDArray[np.int64]:
    return array_view(data, "<i8", f"{name}: CSR indices")
