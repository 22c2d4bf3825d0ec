"""From bytes to messages.

The rule: nothing is copied that can be a view, and malformed bytes give `DecodeError`
whatever they are. A known field with a wire type it cannot have is malformed; unknown
fields are skipped. The tables nest a fixed few levels, and groups are refused, so no body
can make this recurse deeper than that.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import msgspec

from tinker_async.wire.table import (
    FIXED32,
    FIXED64,
    LENGTH,
    VARINT,
    DecodeError,
    Field,
    Kind,
    Message,
    fields_of,
    wire_type,
)

_Read: TypeAlias = Callable[[Any, memoryview, int, int], int]
"""Reads a value at a position into a message, up to a limit; returns the position after it."""
_Scalar: TypeAlias = Callable[[memoryview, int, int], tuple[Any, int]]
"""Reads a number at a position, up to a limit; returns it and the position after it."""


class _Plan(NamedTuple):
    by_tag: dict[int, _Read]
    """A tag is the field number and the wire type in one."""
    numbers: frozenset[int]


def merge(message: Message, view: memoryview, pos: int, end: int) -> None:
    """Read the fields between two positions into a message.

    Raises:
        DecodeError: Malformed.
    """
    by_tag, numbers = _plan(type(message))
    while pos < end:
        tag, pos = _read_varint(view, pos, end)
        read = by_tag.get(tag)
        if read is not None:
            pos = read(message, view, pos, end)
        elif tag >> 3 in numbers:
            raise DecodeError(
                f"{type(message).__name__}: field {tag >> 3} cannot have wire type {tag & 7}"
            )
        else:
            pos = _skip(tag, view, pos, end)


@functools.cache
def _plan(message_type: type[Message]) -> _Plan:
    table = fields_of(message_type)
    by_tag: dict[int, _Read] = {}
    for name, (field, sub) in table.items():
        siblings = tuple(
            other
            for other, (row, _) in table.items()
            if field.oneof and row.oneof == field.oneof and other != name
        )
        by_tag |= _field_readers(name, field, sub, siblings)
    return _Plan(by_tag, frozenset(field.number for field, _ in table.values()))


def _field_readers(
    name: str, field: Field, sub: type[Message] | None, siblings: tuple[str, ...]
) -> dict[int, _Read]:
    """Return the readers of a field by tag; reading it clears its `oneof` siblings."""
    length_tag = field.number << 3 | LENGTH
    if field.label == "map":
        return {length_tag: _map_reader(name, field, sub)}
    if sub is not None:
        return {length_tag: _message_reader(name, field, sub, siblings)}
    if wire_type(field.kind) == LENGTH:
        return {length_tag: _bytes_reader(name, text=field.kind == "string", clears=siblings)}
    tag = field.number << 3 | wire_type(field.kind)
    read_scalar = _scalar_reader(field.kind)
    if field.label == "repeated":
        append, append_packed = _repeated_scalar_readers(name, read_scalar)
        return {tag: append, length_tag: append_packed}

    def read(message: Any, view: memoryview, pos: int, end: int) -> int:
        value, pos = read_scalar(view, pos, end)
        for sibling in siblings:
            setattr(message, sibling, None)
        setattr(message, name, value)
        return pos

    return {tag: read}


def _repeated_scalar_readers(name: str, read_scalar: _Scalar) -> tuple[_Read, _Read]:
    def append(message: Any, view: memoryview, pos: int, end: int) -> int:
        value, pos = read_scalar(view, pos, end)
        getattr(message, name).append(value)
        return pos

    def append_packed(message: Any, view: memoryview, pos: int, end: int) -> int:
        pos, stop = _read_length(view, pos, end)
        while pos < stop:
            pos = append(message, view, pos, stop)
        return stop

    return append, append_packed


def _bytes_reader(name: str, *, text: bool, clears: tuple[str, ...]) -> _Read:
    def read(message: Any, view: memoryview, pos: int, end: int) -> int:
        start, stop = _read_length(view, pos, end)
        for sibling in clears:
            setattr(message, sibling, None)
        setattr(message, name, _read_text(view, start, stop) if text else view[start:stop])
        return stop

    return read


def _message_reader(name: str, field: Field, sub: type[Message], clears: tuple[str, ...]) -> _Read:
    def append(message: Any, view: memoryview, pos: int, end: int) -> int:
        start, stop = _read_length(view, pos, end)
        value = sub()
        merge(value, view, start, stop)
        getattr(message, name).append(value)
        return stop

    def merge_into(message: Any, view: memoryview, pos: int, end: int) -> int:
        start, stop = _read_length(view, pos, end)
        value = getattr(message, name)
        if value is None:
            value = sub()
            setattr(message, name, value)
        for sibling in clears:
            setattr(message, sibling, None)
        merge(value, view, start, stop)
        return stop

    return append if field.label == "repeated" else merge_into


def _map_reader(name: str, field: Field, sub: type[Message] | None) -> _Read:
    """Return the reader of an entry, which is a message: field 1 the key, 2 the value."""
    readers = {1 << 3 | LENGTH: _bytes_reader("key", text=True, clears=())}
    readers |= _field_readers("value", Field(2, field.kind), sub, ())

    def read(message: Any, view: memoryview, pos: int, end: int) -> int:
        pos, stop = _read_length(view, pos, end)
        entry = _Entry("", sub() if sub else 0.0)
        while pos < stop:
            tag, pos = _read_varint(view, pos, stop)
            read_part = readers.get(tag)
            if read_part is not None:
                pos = read_part(entry, view, pos, stop)
            elif tag >> 3 in (1, 2):
                raise DecodeError(f"{name}: field {tag >> 3} cannot have wire type {tag & 7}")
            else:
                pos = _skip(tag, view, pos, stop)
        getattr(message, name)[entry.key] = entry.value
        return stop

    return read


class _Entry(msgspec.Struct):
    key: str
    value: Any


def _skip(tag: int, view: memoryview, pos: int, end: int) -> int:
    if not 0 < tag >> 3 < 1 << 29:
        raise DecodeError(f"field number {tag >> 3} before byte {pos} cannot be")
    kind = tag & 7
    if kind == VARINT:
        return _read_varint(view, pos, end)[1]
    if kind == LENGTH:
        return _read_length(view, pos, end)[1]
    if kind not in (FIXED64, FIXED32):
        raise DecodeError(f"wire type {kind} before byte {pos} is not supported")
    stop = pos + (8 if kind == FIXED64 else 4)
    if stop > end:
        raise DecodeError(f"truncated number at byte {pos}")
    return stop


def _read_varint(view: memoryview, pos: int, end: int) -> tuple[int, int]:
    if pos < end and view[pos] < 0x80:  # most are one byte
        return view[pos], pos + 1
    value = shift = 0
    for at in range(pos, min(end, pos + 10)):
        byte = view[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, at + 1
        shift += 7
    problem = "overlong" if end - pos >= 10 or value >> 64 else "truncated"
    raise DecodeError(f"{problem} number at byte {pos}")


def _read_length(view: memoryview, pos: int, end: int) -> tuple[int, int]:
    """Return where the content starts and where it stops."""
    size, pos = _read_varint(view, pos, end)
    if size > end - pos:
        raise DecodeError(f"{size} bytes announced at byte {pos}, {end - pos} left")
    return pos, pos + size


def _read_text(view: memoryview, start: int, stop: int) -> str:
    try:
        return str(view[start:stop], "utf-8")
    except UnicodeDecodeError as error:
        raise DecodeError(f"text at byte {start} is not UTF-8") from error


_DOUBLE = struct.Struct("<d")


def _read_double(view: memoryview, pos: int, end: int) -> tuple[float, int]:
    if end - pos < 8:
        raise DecodeError(f"truncated number at byte {pos}")
    return _DOUBLE.unpack_from(view, pos)[0], pos + 8


def _signed(bits: int) -> Callable[[int], int]:
    span, half = 1 << bits, 1 << (bits - 1)

    def convert(value: int) -> int:
        value &= span - 1
        return value - span if value >= half else value

    return convert


_FROM_VARINT: dict[Kind, Callable[[int], int]] = {
    "bool": bool,
    "int32": _signed(32),
    "enum": _signed(32),
    "int64": _signed(64),
    "uint32": lambda value: value & 0xFFFF_FFFF,
}


def _scalar_reader(kind: Kind) -> _Scalar:
    if kind == "double":
        return _read_double
    convert = _FROM_VARINT[kind]

    def read(view: memoryview, pos: int, end: int) -> tuple[int, int]:
        value, pos = _read_varint(view, pos, end)
        return convert(value), pos

    return read
