"""Bodies on their way out: the same bytes in the same order, however they are cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinker_async.transport import Buffer
from tinker_async.transport.uploads import Upload, size_of


def part(size: int, kind: int) -> Buffer:
    data = bytes((size + at) % 251 for at in range(min(size, 50))) * (size // 50 + 1)
    data = data[:size]
    if kind == 0:
        return data
    if kind == 1:
        return bytearray(data)
    if kind == 2:
        return memoryview(data)
    return np.frombuffer(data[: size // 4 * 4], np.float32).data


sizes = st.sampled_from([0, 1, 3, 50, 4096, 262_143, 262_144, 262_145, 600_000])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(sizes, st.integers(0, 3)), max_size=12),
    st.lists(st.sampled_from([3000, 7777, 16_384, 131_072, 300_000]), min_size=1),
)
def test_what_is_taken_is_what_was_given(parts: list[tuple[int, int]], takes: list[int]) -> None:
    """Parts of any size and type, pieces of any size."""
    given_parts = [part(size, kind) for size, kind in parts]
    whole = b"".join(given_parts)
    upload = Upload(given_parts)
    assert len(whole) == upload.left == size_of(given_parts)
    out = bytearray()
    turn = 0
    while upload.left:
        size = min(takes[turn % len(takes)], upload.left)
        pieces = upload.take(size)
        assert size == size_of(pieces)
        out += b"".join(pieces)
        turn += 1
    assert whole == bytes(out)


def test_thousands_of_small_parts_leave_in_few_pieces() -> None:
    """They are joined by the stretch."""
    upload = Upload([b"x" * 1000] * 2000)
    pieces = [piece for _ in range(20) for piece in upload.take(100_000)]
    assert 0 == upload.left
    assert len(pieces) < 40


def test_a_large_part_is_not_copied() -> None:
    """Its pieces are views of it."""
    large = bytearray(1 << 20)
    pieces = Upload([large]).take(1000)
    large[:5] = b"later"
    assert [b"later"] == [bytes(piece[:5]) for piece in pieces]


def test_a_part_with_gaps_is_refused_at_once() -> None:
    """Not in the middle of a connection's work."""
    with pytest.raises(BufferError):
        Upload([memoryview(b"abcdef")[::2]])
