"""Cutting batches."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tinker_async import Datum, ModelInput
from tinker_async.plan.chunks import chunk_data


def datum(tokens: int) -> Datum:
    return Datum(
        ModelInput.from_ints(np.arange(tokens, dtype=np.int32)),
        {"target_tokens": np.arange(tokens, dtype=np.int64)},
    )


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 50), max_size=30),
    max_len=st.integers(1, 8),
    max_bytes=st.integers(1, 1000),
)
def test_chunks_keep_order_and_limits(sizes: list[int], max_len: int, max_bytes: int) -> None:
    """Joined, the chunks are the batch; each is within the limits or a single datum."""
    data = [datum(size) for size in sizes]
    chunks = list(chunk_data(data, max_len=max_len, max_bytes=max_bytes))

    assert data == [item for chunk in chunks for item in chunk]
    assert all(chunks)
    for chunk in chunks:
        assert len(chunk) <= max_len
        assert len(chunk) == 1 or sum(item.nbytes for item in chunk) <= max_bytes


def test_chunks_are_as_large_as_the_limits_allow() -> None:
    """A chunk ends only where the next datum would not fit."""
    data = [datum(10)] * 5  # 120 bytes each

    assert [len(c) for c in chunk_data(data, max_len=9, max_bytes=240)] == [2, 2, 1]
    assert [len(c) for c in chunk_data(data, max_len=3, max_bytes=10_000)] == [3, 2]
