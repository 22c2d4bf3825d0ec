"""A request body on its way out: handed over in pieces of any size.

Rule: small buffers are joined a stretch at a time, large ones are never copied here, so
neither thousands of parts nor one huge one cost more than their bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tinker_async.transport import Buffer

_STRETCH_BYTES = 256 << 10


def size_of(parts: Sequence[Buffer]) -> int:
    """Total size in bytes."""
    size = 0
    for part in parts:
        size += part.nbytes if isinstance(part, memoryview) else len(part)
    return size


class Upload:
    """A body of which pieces are taken from the front.

    Raises:
        BufferError: A part is not contiguous.
    """

    __slots__ = ("_next", "_parts", "_view", "left")

    def __init__(self, parts: Sequence[Buffer]) -> None:
        self._parts = parts
        self._next = 0
        self._view = memoryview(b"")
        self.left = size_of(parts)
        if not all(part.c_contiguous for part in parts if isinstance(part, memoryview)):
            raise BufferError("a part of the body is not contiguous")

    def take(self, size: int) -> list[Buffer]:
        """Return the next `size` bytes as views; `size` is at most `left`."""
        self.left -= size
        taken: list[Buffer] = []
        while size:
            if not self._view.nbytes:
                self._view = self._stretch()
            view = self._view[:size]
            self._view = self._view[size:]
            size -= view.nbytes
            taken.append(view)
        return taken

    def _stretch(self) -> memoryview:
        """Return the parts that come next as one piece, or the next alone if it is large."""
        start, size = self._next, 0
        while self._next < len(self._parts):
            part = self._parts[self._next]
            bytes_ = part.nbytes if isinstance(part, memoryview) else len(part)
            if size and size + bytes_ > _STRETCH_BYTES:
                break
            size += bytes_
            self._next += 1
        if size and self._next == start + 1:
            return memoryview(self._parts[start]).cast("B")
        return memoryview(b"".join(self._parts[start : self._next]))
