"""What an answer to `retrieve_future` says: not yet, failed, too big, or the result.

The rule: the envelope is looked at, the result is not. A JSON result that could be
mistaken for one of the others is one, since that is how every client of the service reads it.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from tinker_async.wire.json import decode, encode
from tinker_async.wire.table import Buffer, DecodeError

PROTOBUF = b"application/x-protobuf"
CATEGORIES = ("unknown", "server", "user")


class TryAgain(msgspec.Struct, frozen=True):
    """Not done yet.

    `queue_state` is `active`, `paused_capacity`, `paused_rate_limit`, or what a newer
    server wrote; None when it said nothing.
    """

    queue_state: str | None = None
    queue_state_reason: str | None = None
    detail: str | None = None
    """What a server says that answers by status and not by state."""


class Failed(msgspec.Struct, frozen=True):
    """The operation failed; `category` is `user`, `server` or `unknown`."""

    error: str
    category: str


class CompleteMetadata(msgspec.Struct, frozen=True):
    """Done, but too big to be sent unasked: repeat without `allow_metadata_only`."""

    size_bytes: int


class PromiseResult(msgspec.Struct, frozen=True):
    """Done: `body` is the result itself, not yet decoded."""

    body: Buffer
    is_protobuf: bool


PromiseAnswer: TypeAlias = TryAgain | Failed | CompleteMetadata | PromiseResult


class _Envelope(msgspec.Struct):
    """The keys that tell answers apart; each may be anything in a result."""

    type: Any = None
    status: Any = None
    error: Any = msgspec.UNSET
    category: Any = None
    queue_state: Any = None
    queue_state_reason: Any = None
    detail: Any = None
    response_payload_size: Any = None


def parse_promise_answer(body: Buffer, content_type: bytes | None) -> PromiseAnswer:
    """Return what a successful answer (2xx) to `retrieve_future` says.

    Args:
        body: The answer's body.
        content_type: Its `content-type` header.

    Raises:
        DecodeError: Neither protobuf nor a JSON object, or metadata without a size.
    """
    if PROTOBUF in (content_type or b"").lower():
        return PromiseResult(body, is_protobuf=True)
    found = decode(body, _Envelope)
    if found.type == "try_again":
        return _try_again(found)
    if found.status == "complete_metadata":
        size = found.response_payload_size
        if type(size) is not int or size < 0:
            raise DecodeError(f"response_payload_size is {size!r}, not a number of bytes")
        return CompleteMetadata(size)
    if found.error is not msgspec.UNSET:
        return Failed(
            error=found.error if isinstance(found.error, str) else encode(found.error).decode(),
            category=found.category if found.category in CATEGORIES else "unknown",
        )
    return PromiseResult(body, is_protobuf=False)


def parse_timeout_answer(body: Buffer) -> TryAgain:
    """Return what a 408 says, which is "not yet"; a body that cannot be read says no more."""
    try:
        return _try_again(decode(body, _Envelope))
    except DecodeError:
        return TryAgain()


def _try_again(found: _Envelope) -> TryAgain:
    return TryAgain(_text(found.queue_state), _text(found.queue_state_reason), _text(found.detail))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
