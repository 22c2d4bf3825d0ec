"""A small proto3 codec, driven by the message tables of `wire.schema`.

Encoding gives a list of buffers: large `bytes` fields are handed on as they are,
everything between them is joined. Decoding gives `bytes` fields as views of the body.
The rule: tensor memory is never copied here.
"""

from __future__ import annotations

from typing import TypeVar

from tinker_async.wire.reader import merge
from tinker_async.wire.table import Buffer, DecodeError, Field, Message
from tinker_async.wire.writer import joined, writer

__all__ = ("Buffer", "DecodeError", "Field", "Message", "decode", "encode")

M = TypeVar("M", bound=Message)


def encode(message: Message) -> list[Buffer]:
    """Return the message's bytes as buffers to be sent in order.

    Fields come in the order of their numbers, map entries in that of the dict. Large `bytes`
    values are in the list themselves, not as copies: do not change them until they
    are sent.

    Raises:
        ValueError: A number does not fit its field.
    """
    pieces: list[Buffer] = []
    writer(type(message))(message, pieces)
    return joined(pieces)


def decode(message_type: type[M], body: Buffer) -> M:
    """Return the message in `body`; its `bytes` fields are views that keep `body` alive.

    Unknown fields are skipped. As protobuf has it, the last value of a repeated singular
    field wins, and repeated singular messages are merged.

    Raises:
        DecodeError: Truncated or malformed, or a known field has the wrong wire type.
    """
    message = message_type()
    view = memoryview(body)
    if view.nbytes:
        view = view.cast("B")
        merge(message, view, 0, len(view))
    return message
