"""From messages to buffers.

A message is written back to front, so that the size of everything inside it is known
when its length prefix is written: one pass, nothing measured twice. For each message class one
function is generated from its table on first use, as `dataclasses` does.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from typing import Any, TypeAlias

from tinker_async.wire.table import LENGTH, Buffer, Field, Kind, Message, fields_of, wire_type

COPY_BELOW_BYTES = 512
"""Pieces up to this size are joined with their neighbours: cheaper than one more buffer."""

Writer: TypeAlias = Callable[[Any, list[Buffer]], int]
"""Appends a message's pieces, last first; returns their size in bytes."""

_RANGES: dict[Kind, tuple[int, int]] = {
    "bool": (0, 1),
    "int32": (-(1 << 31), (1 << 31) - 1),
    "enum": (-(1 << 31), (1 << 31) - 1),
    "int64": (-(1 << 63), (1 << 63) - 1),
    "uint32": (0, (1 << 32) - 1),
}


def joined(pieces: list[Buffer]) -> list[Buffer]:
    """Return pieces that were written last first in order, neighbouring small ones joined."""
    buffers: list[Buffer] = []
    small: list[Buffer] = []
    for piece in reversed(pieces):
        if len(piece) <= COPY_BELOW_BYTES:
            small.append(piece)
            continue
        if small:
            buffers.append(b"".join(small))
            small.clear()
        buffers.append(piece)
    if small:
        buffers.append(b"".join(small))
    return buffers


@functools.cache
def writer(message_type: type[Message]) -> Writer:
    """Return the function that writes messages of a class."""
    names: dict[str, Any] = {
        "prefix": _prefix,
        "number": _number,
        "packed": _packed,
        "double": struct.Struct("<d").pack,
        "write_pieces": _write_pieces,
    }
    lines = ["def write(message, out):", " size = 0"]
    table = fields_of(message_type).items()
    for name, (field, sub) in sorted(table, key=lambda item: -item[1][0].number):
        if sub is not None:
            names[f"write_{name}"] = writer(sub)
        lines += _field_lines(name, field)
    lines += [" return size"]
    exec("\n".join(lines), names)  # noqa: S102  # the text comes from our own tables alone
    write: Writer = names["write"]
    return write


def _field_lines(name: str, field: Field) -> list[str]:
    """Return the statements that write one field of `message` and add to `size`."""
    load = f" value = message.{name}"
    if field.label == "map":
        return [
            load,
            " for key, value in reversed(value.items()):",
            *(f"  {line}" for line in _value_lines(name, field.kind, 2)),
            "  entry = n",
            "  value = key",
            *(f"  {line}" for line in _value_lines(name, "string", 1)),
            "  entry += n",
            f"  piece = prefix({_tag(field.number)}, entry)",
            "  out.append(piece)",
            "  size += entry + len(piece)",
        ]
    if field.label == "repeated" and wire_type(field.kind) != LENGTH:
        return [
            load,
            " if value:",
            f"  piece = packed({_tag(field.number)}, {field.kind!r}, tuple(value))",
            "  out.append(piece)",
            "  size += len(piece)",
        ]
    has_presence = field.label == "optional" or field.oneof or field.kind == "message"
    test = "if value is not None:" if has_presence else "if value:"
    if field.label == "repeated":
        test = "for value in reversed(value):"
    lines = _value_lines(name, field.kind, field.number)
    return [load, f" {test}", *(f"  {line}" for line in lines), "  size += n"]


def _value_lines(name: str, kind: Kind, number: int) -> list[str]:
    """Return the statements that write `value` with its tag and set `n` to the size."""
    tag = number << 3 | wire_type(kind)
    content = {
        "message": [f"n = write_{name}(value, out)"],
        "bytes": ["n = write_pieces(value, out)"],
        "string": ["value = value.encode()", "out.append(value)", "n = len(value)"],
    }.get(kind)
    if content is not None:
        return [*content, f"piece = prefix({tag}, n)", "out.append(piece)", "n += len(piece)"]
    scalar = f"number({tag}, {kind!r}, value)"
    if kind == "double":
        scalar = f"{_varint(tag)!r} + double(value)"
    return [f"piece = {scalar}", "out.append(piece)", "n = len(piece)"]


def field_prefix(number: int, size_bytes: int) -> bytes:
    """Return what stands before the content of a field that has a length."""
    return _prefix(_tag(number), size_bytes)


def _tag(number: int) -> int:
    return number << 3 | LENGTH


def _write_pieces(value: Any, out: list[Buffer]) -> int:
    """Write the content of a `bytes` field: one buffer, or several in order."""
    if isinstance(value, (list, tuple)):
        out.extend(reversed(value))
        return sum(map(len, value))
    out.append(value)
    return len(value)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


@functools.lru_cache(maxsize=4096)
def _prefix(tag: int, size: int) -> bytes:
    return _varint(tag) + _varint(size)


@functools.lru_cache(maxsize=4096)
def _number(tag: int, kind: Kind, value: int) -> bytes:
    return _varint(tag) + _number_bytes(kind, value)


def _number_bytes(kind: Kind, value: int) -> bytes:
    low, high = _RANGES[kind]
    if not low <= value <= high:
        raise ValueError(f"{value} does not fit {kind}")
    return _varint(int(value) & 0xFFFF_FFFF_FFFF_FFFF)  # not a numpy integer


@functools.lru_cache(maxsize=1024)
def _packed(tag: int, kind: Kind, values: tuple[int, ...]) -> bytes:
    content = b"".join(_number_bytes(kind, value) for value in values)
    return _varint(tag) + _varint(len(content)) + content
