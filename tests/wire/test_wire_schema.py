"""The tables against the official descriptor."""

from __future__ import annotations

from typing import Any, cast

import pytest
from tinker.proto import tinker_public_pb2 as pb

from tinker_async.wire import schema
from tinker_async.wire.table import Field, Kind, Label, Message, fields_of

MESSAGES = [
    value
    for value in vars(schema).values()
    if isinstance(value, type) and issubclass(value, Message) and value is not Message
]
KINDS = {1: "double", 3: "int64", 5: "int32", 8: "bool", 9: "string", 11: "message"}
KINDS |= {12: "bytes", 13: "uint32", 14: "enum"}


def _official_row(field: Any) -> tuple[Field, str | None]:
    """Describe a field of the official descriptor as a row of ours, and its message's name."""
    sub = field.message_type
    is_map = sub is not None and sub.GetOptions().map_entry
    value = sub.fields_by_name["value"] if is_map else field
    named = value.message_type.name if value.message_type is not None else None
    oneof = field.containing_oneof
    label = "map" if is_map else "repeated" if field.is_repeated else "singular"
    if oneof is not None and oneof.name.startswith("_"):  # how descriptors show `optional`
        label, oneof = "optional", None
    row = Field(field.number, cast("Kind", KINDS[value.type]), cast("Label", label))
    return row._replace(oneof=oneof.name if oneof else None), named


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: m.__name__)
def test_every_row_of_a_table_is_the_official_one(message: type[Message]) -> None:
    """Number, kind, label, oneof and message type of each field are the service's."""
    official = pb.DESCRIPTOR.message_types_by_name[message.__name__]
    ours = {name: (row, sub and sub.__name__) for name, (row, sub) in fields_of(message).items()}

    assert {name: _official_row(official.fields_by_name[name]) for name in ours} == ours


def test_only_fields_without_use_here_are_left_out() -> None:
    """What the tables leave out of the official messages is exactly this."""
    left_out = {
        f"{message.__name__}.{field.name}"
        for message in MESSAGES
        for field in pb.DESCRIPTOR.message_types_by_name[message.__name__].fields
        if field.name not in fields_of(message)
    }

    expected = {"ImageChunk.override_dimensions", "ArrayRecord.type_tag"}
    assert expected == left_out


def test_enum_numbers_are_the_official_ones() -> None:
    """DType and StopReason have the service's numbers."""
    for name in ("FLOAT32", "INT64", "INT32", "BFLOAT16"):
        assert pb.DType.Value(f"DTYPE_{name}") == getattr(schema, f"DTYPE_{name}")
    for name in ("STOP", "LENGTH"):
        assert pb.StopReason.Value(f"STOP_REASON_{name}") == getattr(schema, f"STOP_REASON_{name}")
