"""Answers that are sent in pieces from where the client wants to go on: ranges, tags, no buffers.

A source is opened before its size is promised and closed however the answer ends.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

PIECE_BYTES = 256 * 1024
_DIGITS = 19

T = TypeVar("T")


class Source(Protocol):
    """Bytes whose number is known, read from anywhere, in a thread."""

    size: int

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes from an offset."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class Readers:
    """The threads that read files for downloads."""

    def __init__(self, number: int = 2) -> None:
        self._limiter = anyio.CapacityLimiter(number)

    async def run(self, work: Callable[[], T]) -> T:
        """Do file work in one of them."""
        return await anyio.to_thread.run_sync(work, limiter=self._limiter)


async def serve(
    request: Request,
    readers: Readers,
    open_source: Callable[[], Source],
    *,
    tag: str,
    media_type: str,
    filename: str,
) -> Response:
    """Answer with a source, or the part of it that `Range` asks for.

    Args:
        request: A GET or HEAD.
        readers: Where files are read.
        open_source: Called in a thread.
        tag: Names this content and no other.
        media_type: Of the whole.
        filename: What it is to be saved as.
    """
    headers = {
        "etag": f'"{tag}"',
        "accept-ranges": "bytes",
        "content-disposition": f'attachment; filename="{filename}"',
    }
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    source = await readers.run(open_source)
    start, stop = 0, source.size
    status = 200
    wanted = request.headers.get("range")
    if wanted is not None and request.headers.get("if-range", headers["etag"]) == headers["etag"]:
        found = find_range(wanted, source.size)
        if found is not None and found[0] >= found[1]:
            source.close()
            headers["content-range"] = f"bytes */{source.size}"
            return Response(status_code=416, headers=headers)
        if found is not None:
            start, stop = found
            status = 206
            headers["content-range"] = f"bytes {start}-{stop - 1}/{source.size}"
    headers["content-length"] = str(stop - start)
    if request.method == "HEAD":
        source.close()
        return Response(status_code=status, headers=headers, media_type=media_type)
    return _Transfer(source, readers, start, stop, status, headers, media_type)


def find_range(header: str, size: int) -> tuple[int, int] | None:
    """Return the bytes that a `Range` header names, as start and stop.

    None: there is no single range in it, and it is to be ignored. Start not before stop: it
    names nothing that exists.
    """
    unit, _, text = header.partition("=")
    first, dash, last = text.strip().partition("-")
    if unit.strip().lower() != "bytes" or not dash or not _number_or_empty(first, last):
        return None
    if not first:  # the last so many
        return (max(0, size - int(last)), size) if int(last) else (size, size)
    stop = min(int(last) + 1, size) if last else size
    if last and int(last) < int(first):
        return None
    return int(first), stop


def _number_or_empty(first: str, last: str) -> bool:
    texts = [text for text in (first, last) if text]
    return bool(texts) and all(
        text.isascii() and text.isdigit() and len(text) < _DIGITS for text in texts
    )


class _Transfer(Response):
    """Sends a part of a source, piece by piece, and stops when nobody listens."""

    def __init__(
        self,
        source: Source,
        readers: Readers,
        start: int,
        stop: int,
        status: int,
        headers: dict[str, str],
        media_type: str,
    ) -> None:
        super().__init__(status_code=status, headers=headers, media_type=media_type)
        self._source = source
        self._readers = readers
        self._start = start
        self._stop = stop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # as ASGI has it
        """Send it; `scope` tells nothing that is not known."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._until_gone, receive, tasks.cancel_scope)
                await self._send(send)
                tasks.cancel_scope.cancel()
        finally:
            self._source.close()

    @staticmethod
    async def _until_gone(receive: Receive, sending: anyio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        sending.cancel()

    async def _send(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        offset = self._start
        while offset < self._stop:
            read = partial(self._source.read, offset, min(PIECE_BYTES, self._stop - offset))
            piece = await self._readers.run(read)
            offset += len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
