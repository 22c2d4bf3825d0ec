"""How the toy model reads an input: every chunk becomes token ids, text or not.

The rule: the same file gives the same tokens everywhere, so that what is learnt of an image is
there again when it is sampled from.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from tinker_async.data.media import DmelChunk, ImageAssetPointerChunk, ImageChunk
from tinker_async.data.model_input import ModelInput, ModelInputChunk

IMAGE_TOKENS = 4
"""Of an image that does not say how many it is expected to be."""


def toy_tokens(model_input: ModelInput) -> npt.NDArray[np.int32]:
    """Return the tokens of an input, int32 `[length]`.

    Raises:
        InvalidInputError: An audio chunk is damaged.
    """
    if model_input.text_length >= 0:
        return model_input.to_numpy()
    return np.concatenate([_tokens(chunk) for chunk in model_input.chunks])


def _tokens(chunk: ModelInputChunk) -> npt.NDArray[np.int32]:
    if isinstance(chunk, ImageChunk):
        return _drawn_from(chunk.data, chunk.expected_tokens)
    if isinstance(chunk, ImageAssetPointerChunk):
        return _drawn_from(chunk.location.encode(), chunk.expected_tokens)
    if isinstance(chunk, DmelChunk):
        return _drawn_from(chunk.dmel, chunk.length)
    return chunk.tokens


def _drawn_from(data: bytes, tokens: int | None) -> npt.NDArray[np.int32]:
    start = zlib.crc32(data)
    number = IMAGE_TOKENS if tokens is None else tokens
    return ((start + 2654435761 * np.arange(number, dtype=np.int64)) % 251).astype(np.int32)
