"""What a protobuf message table is made of: the vocabulary of `wire.schema`.

A message is a class, a field an annotation with a `Field` row. The rule: everything
the codec knows about a message comes from these rows.
"""

from __future__ import annotations

import typing
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

Buffer: TypeAlias = bytes | bytearray | memoryview
"""One contiguous run of bytes."""

Kind: TypeAlias = Literal[
    "bool", "int32", "int64", "uint32", "enum", "double", "string", "bytes", "message"
]
Label: TypeAlias = Literal["singular", "optional", "repeated", "map"]

VARINT, FIXED64, LENGTH, GROUP_START, GROUP_END, FIXED32 = range(6)
"""The wire types."""


class DecodeError(ValueError):
    """The bytes are not the message they should be."""


class Field(NamedTuple):
    """One row of a message table.

    A `singular` number, text or `bytes` is left out when it is 0 or empty. An `optional`
    field, a member of a `oneof` and a message are None when absent. A `map` has text
    keys, and `kind` is that of its values.
    """

    number: int
    kind: Kind
    label: Label = "singular"
    oneof: str | None = None


class Message(msgspec.Struct, gc=False):
    """Base of the messages: each field is `Annotated[type, Field(...)]` with a default."""


def fields_of(message_type: type[Message]) -> dict[str, tuple[Field, type[Message] | None]]:
    """Return a message's table: for each attribute its row and, for messages, their class."""
    hints = typing.get_type_hints(message_type, include_extras=True)
    return {name: (hint.__metadata__[0], _message_in(hint)) for name, hint in hints.items()}


def wire_type(kind: Kind) -> int:
    """Return how one unpacked value of the kind travels."""
    if kind in ("message", "bytes", "string"):
        return LENGTH
    return FIXED64 if kind == "double" else VARINT


def _message_in(hint: Any) -> type[Message] | None:
    """Return the message class inside a field's type, such as `dict[str, Tensor]`."""
    if typing.get_origin(hint) is None:
        return hint if isinstance(hint, type) and issubclass(hint, Message) else None
    found = (_message_in(part) for part in typing.get_args(hint))
    return next((message for message in found if message), None)
