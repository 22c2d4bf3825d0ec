"""Cutting a batch into requests the server accepts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tinker_async.data.datum import Datum


def chunk_data(data: Sequence[Datum], *, max_len: int, max_bytes: int) -> Iterator[Sequence[Datum]]:
    """Cut data greedily, in order.

    A chunk ends before a datum that would take it over `max_bytes`, and at `max_len`
    data. One datum above the limit makes a chunk of its own.
    """
    start, size_bytes = 0, 0
    for index, datum in enumerate(data):
        nbytes = datum.nbytes
        count = index - start
        if count and (count >= max_len or size_bytes + nbytes > max_bytes):
            yield data[start:index]
            start, size_bytes = index, 0
        size_bytes += nbytes
    if start < len(data):
        yield data[start:]
