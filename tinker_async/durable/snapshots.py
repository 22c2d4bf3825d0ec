"""Training data as they were when they were given: the caller's own, or kept apart from them.

The rule: what a repetition sends is what was sent the first time, bit for bit. A copy costs what
sending them costs, so usually the caller's arrays are kept, and data that were changed in place
since are not repeated.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from tinker_async.data.datum import Datum
from tinker_async.data.model_input import EncodedTextChunk, ModelInput, ModelInputChunk
from tinker_async.data.tensors import TensorData
from tinker_async.errors import InvalidInputError
from tinker_async.wire.training import decode_forward_backward, encode_forward_backward


def _arrays(datum: Datum) -> Iterator[npt.NDArray[Any]]:
    """Yield all memory of a datum that somebody could write to, in one order."""
    for chunk in datum.model_input.chunks:
        if type(chunk) is EncodedTextChunk:
            yield chunk.tokens
    for tensor in datum.loss_fn_inputs.values():
        yield tensor.data
        crow, col = tensor.sparse_crow_indices, tensor.sparse_col_indices
        if crow is not None and col is not None:
            yield crow
            yield col


def _file_bytes(datum: Datum) -> int:
    """Return the size of the files in a datum, which nobody can write to."""
    chunks = datum.model_input.chunks
    return sum(chunk.nbytes for chunk in chunks if type(chunk) is not EncodedTextChunk)


def _memory(data: Sequence[Datum]) -> bytes:
    """Return a copy of all memory in the data that somebody could write to."""
    arrays: list[Any] = [array for datum in data for array in _arrays(datum)]
    return b"".join(arrays)


class Snapshot:
    """Data at the moment of its making.

    Args:
        data: Kept by reference, beside one copy of their memory: that costs the least now, and
            nothing else where the snapshot is never needed.
    """

    __slots__ = ("_bytes", "_data", "nbytes")

    def __init__(self, data: Sequence[Datum]) -> None:
        self._data = tuple(data)
        self._bytes = _memory(self._data)
        self.nbytes = 2 * len(self._bytes) + sum(map(_file_bytes, self._data))
        """Memory that it keeps alive, about."""

    def data(self) -> tuple[Datum, ...]:
        """Return the data as they were: the caller's own while they are unchanged."""
        if _memory(self._data) == self._bytes:
            return self._data
        reader = _Reader(self._bytes)
        return tuple(_as_it_was(datum, reader) for datum in self._data)


class Reference:
    """Data that are the caller's, who is to leave them as they are: kept for next to nothing.

    Args:
        data: Kept by reference, beside a few of their numbers, by which a change shows.
    """

    __slots__ = ("_data", "_numbers", "nbytes")

    def __init__(self, data: Sequence[Datum]) -> None:
        self._data = tuple(data)
        looked_at = self._looked_at()
        arrays = [array for datum in looked_at for array in _arrays(datum)]
        self._numbers = _numbers(arrays)
        nbytes = sum(array.nbytes for array in arrays) + sum(map(_file_bytes, looked_at))
        self.nbytes = nbytes * len(self._data) // max(len(looked_at), 1)
        """Memory that it keeps alive, about."""

    def data(self) -> tuple[Datum, ...]:
        """Return the data.

        Raises:
            InvalidInputError: They were changed in place.
        """
        arrays = [array for datum in self._looked_at() for array in _arrays(datum)]
        if _numbers(arrays) != self._numbers:
            raise InvalidInputError(
                "data: were changed in place after the call, so it cannot be repeated",
                field="data",
                hint="make new arrays for each batch, or give RecoveryPolicy(copy_data=True)",
            )
        return self._data

    def _looked_at(self) -> tuple[Datum, ...]:
        return self._data[:: -(-len(self._data) // _MOST_LOOKED_AT)]


_MOST_LOOKED_AT = 16
"""Data of a batch whose sizes and numbers stand for those of all."""
_MOST_ARRAYS = 8


def _numbers(arrays: Sequence[npt.NDArray[Any]]) -> bytes:
    """Return a few numbers of some arrays: first ones, last ones, and some between."""
    chosen = arrays[:: -(-len(arrays) // _MOST_ARRAYS) or 1]
    return b"".join(array[:: -(-array.size // 4) or 1].tobytes() for array in chosen)


class _Reader:
    """Hands out arrays like given ones, from memory in which they follow each other."""

    def __init__(self, memory: bytes) -> None:
        self._memory = memory
        self._at = 0

    def like(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        start, self._at = self._at, self._at + array.nbytes
        return np.frombuffer(self._memory, array.dtype, array.size, start)


def _as_it_was(datum: Datum, reader: _Reader) -> Datum:
    chunks: tuple[ModelInputChunk, ...] = tuple(
        EncodedTextChunk(reader.like(chunk.tokens)) if type(chunk) is EncodedTextChunk else chunk
        for chunk in datum.model_input.chunks
    )
    inputs = {key: _tensor(tensor, reader) for key, tensor in datum.loss_fn_inputs.items()}
    return Datum(ModelInput(chunks), inputs, datum.model_input_spans, datum.loss_fn_input_spans)


def _tensor(tensor: TensorData, reader: _Reader) -> TensorData:
    data = reader.like(tensor.data)
    crow, col = tensor.sparse_crow_indices, tensor.sparse_col_indices
    if crow is None or col is None:
        return msgspec.structs.replace(tensor, data=data)
    indices = {"sparse_crow_indices": reader.like(crow), "sparse_col_indices": reader.like(col)}
    return msgspec.structs.replace(tensor, data=data, **indices)


# On disk


def write_data(file: IO[bytes], data: Sequence[Datum]) -> int | None:
    """Write data where a file stands (an unbuffered one), in the form in which they travel.

    Returns:
        The number of bytes; None where they have no such form, and nothing was written.

    Raises:
        OSError: They cannot be written.
    """
    if any(_has_no_dimension(datum) for datum in data):
        return None
    try:
        buffers = encode_forward_backward(
            model_id="",
            seq_id=0,
            data=data,
            loss_fn="",
            loss_fn_config=None,
            forward_only=False,
        )
    except InvalidInputError:
        return None
    views = [memoryview(buffer).cast("B") for buffer in buffers]
    return sum(
        _written(file, views[at : at + _MOST_AT_ONCE]) for at in range(0, len(views), _MOST_AT_ONCE)
    )


_MOST_AT_ONCE = 512
"""Buffers that are handed to the system in one call: less than any system's limit."""


def _written(file: IO[bytes], views: list[memoryview]) -> int:
    """Write all of some buffers to a file that may take less at a time."""
    size_bytes = sum(view.nbytes for view in views)
    taken = os.writev(file.fileno(), views) if hasattr(os, "writev") else 0
    for view in views:
        left = view[taken:]
        taken = max(taken - view.nbytes, 0)
        while left.nbytes:
            left = left[file.write(left) :]
    return size_bytes


def _has_no_dimension(datum: Datum) -> bool:
    """Whether a tensor is a bare number: it travels as one of length 1."""
    return any(tensor.shape == () for tensor in datum.loss_fn_inputs.values())


def read_data(file: IO[bytes], offset: int, nbytes: int) -> tuple[Datum, ...]:
    """Return the data that `write_data` wrote there, equal to those it was given.

    Raises:
        OSError: They cannot be read.
    """
    file.seek(offset)
    body = bytearray()
    while len(body) < nbytes:
        piece = file.read(nbytes - len(body))
        if not piece:
            raise OSError(f"the journal's file ends after {offset + len(body)} bytes")
        body += piece
    return tuple(decode_forward_backward(bytes(body)).data)


class SpillFile:
    """A nameless file with the data of the calls between two marks."""

    def __init__(self, folder: Path, segment: int) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(  # noqa: SIM115  # closed by `leave`
            dir=folder, buffering=0
        )
        self._turn = threading.Lock()  # a repetition reads in a worker thread
        self.segment = segment
        self.nbytes = 0
        self.users = 0

    def add(self, data: Sequence[Datum]) -> Place | None:
        """Write data; None where they have no form in which to travel."""
        with self._turn:
            self._file.seek(self.nbytes)
            nbytes = write_data(self._file, data)
        if nbytes is None:
            return None
        place = Place(self, self.nbytes, nbytes)
        self.nbytes += nbytes
        self.users += 1
        return place

    def read(self, offset: int, nbytes: int) -> tuple[Datum, ...]:
        """Return data that were added."""
        with self._turn:
            return read_data(self._file, offset, nbytes)

    def leave(self) -> None:
        """Let go of one call's data; the last one closes the file."""
        self.users -= 1
        if self.users == 0:
            self.close()

    def close(self) -> None:
        """Close the file, which removes it."""
        self._file.close()


class Place(NamedTuple):
    """Where a call's data are."""

    file: SpillFile
    offset: int
    nbytes: int
