"""What the model reads: chunks, in order. Text tokens are one int32 array for each chunk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, cast

import msgspec
import numpy as np
import numpy.typing as npt

from tinker_async.data import given
from tinker_async.data.media import DmelChunk, ImageAssetPointerChunk, ImageChunk
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

    @property
    def nbytes(self) -> int:
        """Size in bytes: 4 a token."""
        return int(self.tokens.nbytes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EncodedTextChunk):
            return NotImplemented
        return np.array_equal(self.tokens, other.tokens)

    __hash__ = None  # type: ignore[assignment]  # buffers can change: not hashable


ModelInputChunk: TypeAlias = EncodedTextChunk | ImageChunk | ImageAssetPointerChunk | DmelChunk
"""One part of an input; each has a `length` in tokens and `nbytes`."""

_CHUNKS = (EncodedTextChunk, ImageChunk, ImageAssetPointerChunk, DmelChunk)


class ModelInput(msgspec.Struct, frozen=True, gc=False):
    """A prompt or training input: chunks in order.

    `ModelInput.from_ints(tokens)` makes one of text; images and audio are added with
    `append`: `ModelInput.from_ints(before).append(ImageChunk(data, "png")).append_int(after)`.

    Raises:
        InvalidInputError: Something among the chunks is none.
    """

    chunks: tuple[ModelInputChunk, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.chunks, (tuple, list)):
            raise given.wrong(
                "chunks",
                f"must be a list of chunks, got {given.shown(self.chunks)}",
                "ModelInput.from_ints(tokens) makes an input of tokens",
            )
        chunks = tuple(self.chunks)
        for index, chunk in enumerate(chunks):
            if type(chunk) is not EncodedTextChunk and not isinstance(chunk, _CHUNKS):
                raise InvalidInputError(
                    f"chunks[{index}]: {type(chunk).__name__} is no chunk",
                    field=f"chunks[{index}]",
                    hint="tokens go in as EncodedTextChunk; ModelInput.from_ints makes one",
                )
        msgspec.structs.force_setattr(self, "chunks", chunks)

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
        return self.append(EncodedTextChunk(token_array([given.whole(token, "token")])))

    @property
    def length(self) -> int:
        """Number of tokens of all chunks.

        Raises:
            InvalidInputError: An image does not say how many it is expected to be.
        """
        chunks = self.chunks
        if len(chunks) == 1:
            return chunks[0].length
        return sum([chunk.length for chunk in chunks])

    @property
    def text_length(self) -> int:
        """Number of tokens where all chunks are text, else -1."""
        length = 0
        for chunk in self.chunks:
            if type(chunk) is not EncodedTextChunk:
                return -1
            length += chunk.tokens.size
        return int(length)

    @property
    def least_length(self) -> int:
        """Number of tokens that it has at least: an image that does not say counts as one."""
        return sum(
            1 if getattr(chunk, "expected_tokens", 1) is None else chunk.length
            for chunk in self.chunks
        )

    @property
    def nbytes(self) -> int:
        """Estimated size on the wire in bytes: 4 a token, and files as large as they are."""
        length = self.text_length
        return 4 * length if length >= 0 else sum(chunk.nbytes for chunk in self.chunks)

    def to_numpy(self) -> npt.NDArray[np.int32]:
        """Return all token ids, int32 `[length]`; a view when there is one chunk.

        Raises:
            InvalidInputError: There are other chunks than text.
        """
        arrays = []
        for chunk in self.chunks:
            if not isinstance(chunk, EncodedTextChunk):
                raise InvalidInputError(
                    f"chunks: {type(chunk).__name__} has no token ids here, only text has",
                    field="chunks",
                )
            arrays.append(chunk.tokens)
        return arrays[0] if len(arrays) == 1 else concatenate(arrays)

    def to_ints(self) -> list[int]:
        """Return all token ids as a list.

        Raises:
            InvalidInputError: There are other chunks than text.
        """
        return [int(token) for token in self.to_numpy()]


def concatenate(arrays: Iterable[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
    """Join token arrays; the empty join is an empty array."""
    parts = list(arrays)
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
