"""Compressing training data for servers that ask for it, with zstd (extra `zstd`).

The rule: it happens in one worker thread a session, since a request takes as long as
several stalls of the event loop; and where the library is missing, data go as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import anyio.to_thread

from tinker_async.logs import log
from tinker_async.transport import Buffer

LEAST_BYTES = 16_384
"""Below this the way to the thread costs more than the bytes that are saved."""
_LEVEL = 1
"""Realistic data come out no larger than with level 3, the library's own choice, in less time."""


class Compression:
    """Compresses request bodies, one at a time.

    Args:
        zstandard: The module.
        least_bytes: Bodies below this size are left as they are.
    """

    def __init__(self, zstandard: Any, *, least_bytes: int = LEAST_BYTES) -> None:
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self._least_bytes = least_bytes
        self.threads = anyio.CapacityLimiter(1)
        """For the worker thread; a compressor serves one body at a time."""

    async def compressed(self, body: Sequence[Buffer]) -> tuple[Buffer, ...] | None:
        """Return a body in zstd, or None for one that is better left as it is.

        Cancelling waits for the thread, some milliseconds.
        """
        size_bytes = sum(map(len, body))
        if size_bytes < self._least_bytes:
            return None
        return await anyio.to_thread.run_sync(
            self._compress, body, size_bytes, limiter=self.threads
        )

    def _compress(self, body: Sequence[Buffer], size_bytes: int) -> tuple[Buffer, ...]:
        # With its size in the frame, since some servers decompress in one go.
        stream = self._compressor.compressobj(size=size_bytes)
        parts = [stream.compress(buffer) for buffer in body]
        return tuple(part for part in (*parts, stream.flush()) if part)


def compression_if(wanted: bool) -> Compression | None:
    """Return what compresses, if the server wants that and it can be done here."""
    if not wanted:
        return None
    try:
        import zstandard  # noqa: PLC0415  # an optional extra, for servers that ask
    except ImportError:
        log.info("zstd_not_installed", hint="pip install 'tinker-async[zstd]'")
        return None
    return Compression(zstandard)
