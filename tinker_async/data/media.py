"""Chunks of an input that are no text: images, pointers to images, and audio as DMel tokens.

Their bytes travel as they are; the server makes tokens of them. The rule: what is wrong with a
chunk is said when it is made, except for its length, which is said when it is needed.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from tinker_async.errors import InvalidInputError

ImageFormat: TypeAlias = Literal["png", "jpeg"]

_FORMATS = ("png", "jpeg")
_MOST_TOKENS = 2**31 - 1
"""`expected_tokens` is an int32 on the wire."""

_CONSTANT_MARKER = 254
_LAST_DTYPE = 7
_VARINT_BITS = 63
_MOST_DIMENSIONS = 64


class ImageChunk(msgspec.Struct, frozen=True, omit_defaults=True, tag="image", gc=False):
    """An image.

    Args:
        data: The encoded file's bytes.
        format: `png` or `jpeg`.
        expected_tokens: How many tokens it is expected to be. The server counts itself, and may
            refuse early when this is wrong; needed where a length is.

    Raises:
        InvalidInputError: No bytes, another format, or no possible number of tokens.
    """

    data: bytes
    format: ImageFormat
    expected_tokens: int | None = None

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "data", _file_bytes(self.data, "data"))
        _check_image(self.format, self.expected_tokens)

    @property
    def length(self) -> int:
        """Number of tokens: `expected_tokens`.

        Raises:
            InvalidInputError: It was not given.
        """
        return _expected(self.expected_tokens, "image")

    @property
    def nbytes(self) -> int:
        """Size of the file in bytes."""
        return len(self.data)

    def __repr__(self) -> str:
        return (
            f"ImageChunk(<{len(self.data)} bytes of {self.format}>, "
            f"expected_tokens={self.expected_tokens})"
        )


class ImageAssetPointerChunk(
    msgspec.Struct, frozen=True, omit_defaults=True, tag="image_asset_pointer", gc=False
):
    """An image that the server fetches itself. For sampling only: it cannot be trained on.

    Args:
        format: `png` or `jpeg`.
        location: Path or URL of the image, as the server understands it.
        expected_tokens: As for `ImageChunk`.

    Raises:
        InvalidInputError: No location, another format, or no possible number of tokens.
    """

    format: ImageFormat
    location: str
    expected_tokens: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.location, str) or not self.location:
            raise InvalidInputError(
                "location: must be the path or URL of an image", field="location"
            )
        _check_image(self.format, self.expected_tokens)

    @property
    def length(self) -> int:
        """Number of tokens: `expected_tokens`.

        Raises:
            InvalidInputError: It was not given.
        """
        return _expected(self.expected_tokens, "image_asset_pointer")

    @property
    def nbytes(self) -> int:
        """Size of the location, which is all that travels, in characters."""
        return len(self.location)


class DmelChunk(msgspec.Struct, frozen=True, tag="dmel", gc=False):
    """Audio as DMel tokens: the bytes of a serialized TensorContainer, one row for each token.

    Raises:
        InvalidInputError: No bytes.
    """

    dmel: bytes

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "dmel", _file_bytes(self.dmel, "dmel"))

    @property
    def length(self) -> int:
        """Number of tokens: the container's first dimension.

        Raises:
            InvalidInputError: The bytes do not begin as a TensorContainer does.
        """
        shape = container_shape(self.dmel)
        if not shape:
            raise InvalidInputError("dmel: the tensor in it has no dimension", field="dmel")
        return shape[0]

    @property
    def nbytes(self) -> int:
        """Size of the container in bytes."""
        return len(self.dmel)

    def __repr__(self) -> str:
        return f"DmelChunk(<{len(self.dmel)} bytes>)"


def container_shape(data: bytes) -> tuple[int, ...]:
    """Return the shape that the header of a TensorContainer gives.

    Raises:
        InvalidInputError: It is no such header; the field is `dmel`.
    """
    at = 1 if data[:1] == bytes([_CONSTANT_MARKER]) else 0
    if at >= len(data):
        raise _no_container("it ends within the header")
    if data[at] > _LAST_DTYPE:
        raise _no_container(f"dtype {data[at]} is unknown")
    dimensions, at = _varint(data, at + 1)
    if dimensions > _MOST_DIMENSIONS:
        raise _no_container(f"{dimensions} dimensions are too many")
    shape = []
    for _ in range(dimensions):
        size, at = _varint(data, at)
        shape.append(size)
    return tuple(shape)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the LEB128 number at a place, and the place after it."""
    value = shift = 0
    while True:
        if at >= len(data):
            raise _no_container("it ends within the header")
        if shift > _VARINT_BITS:
            raise _no_container("a number in its header is too long")
        value |= (data[at] & 0x7F) << shift
        if data[at] < 0x80:
            return value, at + 1
        at, shift = at + 1, shift + 7


def _no_container(why: str) -> InvalidInputError:
    return InvalidInputError(
        f"dmel: not the bytes of a TensorContainer: {why}",
        field="dmel",
        hint="pass on the serialized tensor as it is, without a frame around it",
    )


def _file_bytes(data: object, field: str) -> bytes:
    if isinstance(data, (bytearray, memoryview)):
        data = bytes(data)
    if not isinstance(data, bytes) or not data:
        kind = "no bytes at all" if isinstance(data, bytes) else type(data).__name__
        raise InvalidInputError(
            f"{field}: expected the bytes of a file, got {kind}",
            field=field,
            hint="read it with Path(...).read_bytes()",
        )
    return data


def _check_image(image_format: str, expected_tokens: int | None) -> None:
    if image_format not in _FORMATS:
        raise InvalidInputError(
            f"format: must be png or jpeg, got {image_format!r}", field="format"
        )
    if expected_tokens is None:
        return
    if type(expected_tokens) is not int or not 0 <= expected_tokens <= _MOST_TOKENS:
        raise InvalidInputError(
            f"expected_tokens: must be a number of tokens, got {expected_tokens!r}",
            field="expected_tokens",
        )


def _expected(expected_tokens: int | None, kind: str) -> int:
    if expected_tokens is None:
        raise InvalidInputError(
            f"expected_tokens: the length of a chunk of kind {kind} is not known",
            field="expected_tokens",
            hint="give the chunk its expected_tokens",
        )
    return expected_tokens
