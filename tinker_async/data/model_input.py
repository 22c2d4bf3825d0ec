"""What the model reads: chunks of tokens, as one int32 array each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, cast

import msgspec
import numpy as np
import numpy.typing as npt

from tinker_async.errors import InvalidInputError

TokensLike: TypeAlias = "Sequence[int] | npt.NDArray[Any] | memoryview | Any"
"""Token ids as a list, an array, a torch tensor, a memoryview or an `array.array`."""

_INT32_MAX = 2**31 - 1


def token_array(tokens: TokensLike, *, field: str = "tokens") -> npt.NDArray[np.int32]:
    """Return token ids as a flat contiguous int32 array; no copy if they are one.

    Raises:
        InvalidInputError: Not integers, not one-dimensional, negative or above int32.
    """
    if type(tokens).__module__.startswith("torch"):
        tokens = cast("Any", tokens).detach().cpu().numpy()
    try:
        array = np.asarray(tokens)
    except (ValueError, TypeError) as error:
        raise InvalidInputError(f"{field}: not a flat list of integers", field=field) from error
    if array.size == 0:
        return np.zeros(0, dtype=np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InvalidInputError(
            f"{field}: expected integers in one dimension, got {array.dtype} of shape {array.shape}",
            field=field,
        )
    if int(array.min()) < 0 or int(array.max()) > _INT32_MAX:
        raise InvalidInputError(
            f"{field}: token ids must be between 0 and {_INT32_MAX}, "
            f"got {int(array.min())} to {int(array.max())}",
            field=field,
        )
    return np.ascontiguousarray(array, dtype=np.int32)


class EncodedTextChunk(msgspec.Struct, frozen=True, eq=False, tag="encoded_text", gc=False):
    """A run of text tokens, int32 `[length]`."""

    tokens: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "tokens", token_array(self.tokens))

    @property
    def length(self) -> int:
        """Number of tokens."""
        return int(self.tokens.size)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EncodedTextChunk):
            return NotImplemented
        return np.array_equal(self.tokens, other.tokens)

    __hash__ = None  # type: ignore[assignment]  # buffers can change: not hashable


ModelInputChunk: TypeAlias = EncodedTextChunk


class ModelInput(msgspec.Struct, frozen=True, gc=False):
    """A prompt or training input: chunks in order."""

    chunks: tuple[ModelInputChunk, ...]

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "chunks", tuple(self.chunks))

    @classmethod
    def from_ints(cls, tokens: TokensLike) -> ModelInput:
        """Make an input of one text chunk. Arrays are wrapped, lists converted once."""
        return cls(chunks=(EncodedTextChunk(token_array(tokens)),))

    @classmethod
    def empty(cls) -> ModelInput:
        """Make an input without chunks, to append to."""
        return cls(chunks=())

    def append(self, chunk: ModelInputChunk) -> ModelInput:
        """Return a new input with the chunk at its end."""
        return ModelInput(chunks=(*self.chunks, chunk))

    def append_int(self, token: int) -> ModelInput:
        """Return a new input with one more token at its end."""
        return self.append(EncodedTextChunk(token_array([token])))

    @property
    def length(self) -> int:
        """Number of tokens of all chunks."""
        chunks = self.chunks
        if len(chunks) == 1:
            return chunks[0].length
        return sum([chunk.length for chunk in chunks])

    def to_numpy(self) -> npt.NDArray[np.int32]:
        """Return all token ids, int32 `[length]`; a view when there is one chunk."""
        if len(self.chunks) == 1:
            return self.chunks[0].tokens
        return concatenate(chunk.tokens for chunk in self.chunks)

    def to_ints(self) -> list[int]:
        """Return all token ids as a list."""
        return [int(token) for token in self.to_numpy()]


def concatenate(arrays: Iterable[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
    """Join token arrays; the empty join is an empty array."""
    parts = list(arrays)
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
