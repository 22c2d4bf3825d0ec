"""Chunks that are no text: images, pointers to them, and audio."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinker_async.data.media import (
    DmelChunk,
    ImageAssetPointerChunk,
    ImageChunk,
    container_shape,
)
from tinker_async.data.model_input import ModelInput
from tinker_async.errors import InvalidInputError

quick = settings(max_examples=50, deadline=None)

PICTURE = ImageChunk(b"\x89PNG1234", "png", 5)
UNCOUNTED = ImageChunk(b"\x89PNG1234", "png")
AUDIO = DmelChunk(bytes([254, 3, 2, 0x83, 1, 80]) + b"rows")


def test_inputs_are_built_of_text_and_images() -> None:
    """`from_ints`, `append` and `append_int` in any order; each gives a new input."""
    text = ModelInput.from_ints([1, 2])
    mixed = text.append(PICTURE).append_int(7).append(AUDIO)

    assert (2, 2 + 5 + 1 + 131) == (text.length, mixed.length)
    assert (2, -1) == (text.text_length, mixed.text_length)
    assert [2, 1] == [len(c.tokens) for c in mixed.chunks if hasattr(c, "tokens")]
    assert 2 * 4 + 8 + 4 + len(AUDIO.dmel) == mixed.nbytes


def test_an_image_without_a_number_of_tokens_leaves_the_length_open() -> None:
    """The error says what to do; for limits it counts as one token."""
    prompt = ModelInput.from_ints([1, 2]).append(UNCOUNTED)

    with pytest.raises(InvalidInputError, match="give the chunk its expected_tokens") as caught:
        _ = prompt.length
    assert caught.value.field == "expected_tokens"
    assert 3 == prompt.least_length
    assert 2 + 5 == ModelInput.from_ints([1, 2]).append(PICTURE).least_length


def test_only_text_has_token_ids() -> None:
    prompt = ModelInput.from_ints([1]).append(PICTURE)

    for read in (prompt.to_ints, prompt.to_numpy):
        with pytest.raises(InvalidInputError, match="ImageChunk") as caught:
            read()
        assert caught.value.field == "chunks"


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: ImageChunk(b"", "png"), "data"),
        (lambda: ImageChunk("text", "png"), "data"),  # type: ignore[arg-type]  # the mistake
        (lambda: ImageChunk(b"x", "gif"), "format"),  # type: ignore[arg-type]  # the mistake
        (lambda: ImageChunk(b"x", "png", -1), "expected_tokens"),
        (lambda: ImageChunk(b"x", "png", True), "expected_tokens"),
        (lambda: ImageChunk(b"x", "png", 2**31), "expected_tokens"),
        (lambda: ImageAssetPointerChunk("png", ""), "location"),
        (lambda: ImageAssetPointerChunk("", "l"), "format"),  # type: ignore[arg-type]  # the mistake
        (lambda: DmelChunk(b""), "dmel"),
        (lambda: ModelInput((b"x",)), "chunks[0]"),  # type: ignore[arg-type]  # the mistake
        (lambda: ModelInput.from_ints([1]).append([2]), "chunks[1]"),  # type: ignore[arg-type]  # the mistake
    ],
)
def test_what_is_no_chunk_is_refused_when_it_is_made(make: Any, field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        make()
    assert field == caught.value.field


@pytest.mark.parametrize("data", [bytearray(b"abc"), memoryview(b"abc")])
def test_a_file_may_be_given_as_any_kind_of_bytes(data: Any) -> None:
    assert ImageChunk(b"abc", "jpeg") == ImageChunk(data, "jpeg")


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


@quick
@given(
    shape=st.lists(st.integers(0, 2**62), max_size=4),
    constant=st.booleans(),
    dtype=st.integers(0, 7),
    rest=st.binary(max_size=4),
)
def test_the_header_of_a_container_is_read(
    shape: list[int], constant: bool, dtype: int, rest: bytes
) -> None:
    """Marker, dtype, number of dimensions, dimensions; then whatever comes."""
    header = (b"\xfe" if constant else b"") + bytes([dtype]) + _varint(len(shape))

    assert tuple(shape) == container_shape(header + b"".join(map(_varint, shape)) + rest)


@quick
@given(data=st.binary(min_size=1, max_size=20))
def test_lengths_of_audio_are_the_official_ones(data: bytes) -> None:
    """For any bytes: the same number, or an error of ours where the official client has one."""
    official_type = pytest.importorskip("tinker").types.DmelChunk
    try:
        expected = official_type(dmel=data).length
    except ValueError:
        with pytest.raises(InvalidInputError) as caught:
            _ = DmelChunk(data).length
        assert caught.value.field == "dmel"
    else:
        assert expected == DmelChunk(data).length


@pytest.mark.parametrize("shown", [repr(PICTURE), repr(AUDIO)])
def test_files_are_not_printed(shown: str) -> None:
    """A megabyte of an image in a log helps nobody."""
    assert "bytes" in shown
    assert "PNG1" not in shown
    assert "rows" not in shown
