"""What a file's own header says of its length: the last guard where a server says nothing."""

from __future__ import annotations

from pathlib import Path

import msgspec

_MAX_HEADER_BYTES = 16 << 20
"""Longer ones are not looked at: a download's memory is bounded."""


class _Tensor(msgspec.Struct):
    data_offsets: tuple[int, int]


def fault_of(path: Path) -> str | None:
    """Return what is wrong with the length of a safetensors file; None if nothing, or another file.

    Blocks.
    """
    if path.suffix != ".safetensors":
        return None
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER_BYTES:
            return None
        header = file.read(length)
    return fault_of_header(length, header, path.stat().st_size)


def fault_of_header(length: int, header: bytes, size_bytes: int) -> str | None:
    """Compare a safetensors header with the file's size. Pure."""
    if len(header) < max(length, 2):
        return "it ends in its header"
    try:
        tensors = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        ends = [
            msgspec.json.decode(tensor, type=_Tensor).data_offsets[1]
            for name, tensor in tensors.items()
            if name != "__metadata__"
        ]
    except (msgspec.DecodeError, RecursionError) as error:
        return f"its header is malformed: {error}"
    expected = 8 + length + max(ends, default=0)
    if expected != size_bytes:
        return f"its header describes {expected} bytes, and it has {size_bytes}"
    return None
