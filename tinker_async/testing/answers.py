"""Answers of the fake server, and refusals as an exception: plain data, no I/O."""

from __future__ import annotations

from typing import Any

import msgspec

from tinker_async.wire import json as wire_json

JSON = b"application/json"
PROTOBUF = b"application/x-protobuf"

Pairs = tuple[tuple[bytes, bytes], ...]
"""Header names (lower case) and values."""


class Answer(msgspec.Struct, frozen=True):
    """What a request is answered; the length of the body is the front's to say."""

    status: int
    body: bytes = b""
    content_type: bytes = JSON
    headers: Pairs = ()
    closes: bool = False
    """Whether an HTTP/1.1 connection is closed after it without a word."""


class Refusal(Exception):  # noqa: N818  # an answer, not a failure of ours
    """Ends a request with an error status and `{"detail": ...}`."""

    def __init__(self, status: int, detail: Any) -> None:
        super().__init__(str(detail))
        self.answer = refused(status, detail)


def json_answer(value: Any, *, status: int = 200) -> Answer:
    """Return an answer with a JSON body."""
    return Answer(status, wire_json.encode(value))


def refused(status: int, detail: Any, headers: Pairs = ()) -> Answer:
    """Return an error answer."""
    return Answer(status, wire_json.encode({"detail": detail}), headers=headers)
