"""The faults that the fake server can be told to have: each a small frozen value.

A fault says what becomes of one request. Which request, the script decides
(`FakeService.faults`). The rule: whether the work was done is never left open. A fault
that breaks the way to the server leaves the work undone; `DropReply`, `Truncate`,
`Trickle` and those that spoil an answer come after it was done; `Status` and `Stall`
have `commit` to choose.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, ClassVar, Literal

import msgspec

from tinker_async.testing.answers import PROTOBUF, Answer, Pairs, json_answer, refused
from tinker_async.wire import json as wire_json
from tinker_async.wire.messages import RetrieveFuturesResponse

__all__ = (
    "BadJson",
    "BadProtobuf",
    "Corrupts",
    "DropReply",
    "EndsSession",
    "Fault",
    "FlowStall",
    "GoAway",
    "HugeBody",
    "OperationFails",
    "QueueState",
    "Random",
    "Refuse",
    "Reset",
    "RstStream",
    "Stall",
    "Status",
    "TlsDrop",
    "TooMany",
    "Trickle",
    "Truncate",
    "Untold",
    "WrongContentType",
    "WrongType",
)

OPERATIONS = frozenset(
    {
        "asample",
        "create_model",
        "forward",
        "forward_backward",
        "load_weights",
        "optim_step",
        "save_weights",
        "save_weights_for_sampler",
    }
)
"""Endpoints that answer with a promise."""


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all faults. `str()` of one is its name, as the ledger shows it."""

    harmless: ClassVar[bool] = False
    """Whether a client still gets the genuine answer."""

    def fits(self, endpoint: str) -> bool:
        """Whether the fault makes sense at an endpoint; where not, it does not happen."""
        return endpoint != "connect"

    def chosen(self, endpoint: str, occurrence: int) -> Fault | None:
        """Return the fault for the `occurrence`-th request of an endpoint (from 1)."""
        del occurrence
        return self if self.fits(endpoint) else None

    def instead(self, request_id: str | None) -> Answer | None:
        """Return what is answered without doing the work, or None to do it."""
        del request_id
        return None

    def spoiled(self, answer: Answer) -> Answer:
        """Return what is made of the genuine answer."""
        return answer

    def __str__(self) -> str:
        return type(self).__name__


# The way to the server


class Refuse(Fault, frozen=True):
    """No connection; certainly nothing was processed.

    At `connect` the connection is closed as soon as it was made. At an endpoint: HTTP/2
    refuses the stream (REFUSED_STREAM), HTTP/1.1 closes without an answer.
    """

    def fits(self, endpoint: str) -> bool:
        """Everywhere."""
        return bool(endpoint)


class TlsDrop(Fault, frozen=True):
    """The connection ends during the TLS handshake. For `connect` only."""

    def fits(self, endpoint: str) -> bool:
        """At `connect`."""
        return endpoint == "connect"


class Reset(Fault, frozen=True):
    """The connection is reset (TCP RST) and the work not done.

    `when`: `before` the request's body is read, `within` it, or `after` it. With HTTP/2
    all other requests of the connection are hit as well.
    """

    when: Literal["before", "within", "after"] = "after"

    def __str__(self) -> str:
        return f"Reset({self.when})"


class FlowStall(Fault, frozen=True):
    """The server takes no body: HTTP/2 gives no window, HTTP/1.1 stops reading after the head."""


class RstStream(Fault, frozen=True):
    """HTTP/2 ends the stream with an error code, the work not done; HTTP/1.1 resets the connection.

    `code`: 7 is REFUSED_STREAM (certainly not processed), 8 is CANCEL, 2 INTERNAL_ERROR.
    """

    code: int = 8


class GoAway(Fault, frozen=True):
    """The server ends the connection politely.

    `processed` True: this request is answered, and the connection takes no other.
    False: GOAWAY names this request as not processed (HTTP/1.1 just closes).
    """

    harmless: ClassVar[bool] = True

    processed: bool = False


class Stall(Fault, frozen=True):
    """The request is read and not answered; after `seconds` (None: never) it is, as usual.

    `commit`: the work is done before the wait.
    """

    harmless: ClassVar[bool] = True

    seconds: float | None = None
    commit: bool = False


# The way back


class DropReply(Fault, frozen=True):
    """The work is done, and the connection reset instead of an answer."""


class Truncate(Fault, frozen=True):
    """The answer announces its whole length and ends after the share `keep` of its body."""

    keep: float = 0.5


class Trickle(Fault, frozen=True):
    """The answer's body comes in pieces of `chunk_bytes`, with `pause_s` seconds after each."""

    harmless: ClassVar[bool] = True

    chunk_bytes: int = 1
    pause_s: float = 0.0


# What is answered


class Status(Fault, frozen=True):
    """An error status instead of the answer.

    Args:
        status: The HTTP status.
        detail: Its text.
        headers: More headers, such as `{"retry-after": "2"}`.
        should_retry: For the header `x-should-retry`; None leaves it out.
        body: Instead of `{"detail": ...}`.
        commit: The work is done all the same.
    """

    status: int
    detail: str = "scripted fault"
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    should_retry: bool | None = None
    body: bytes | None = None
    commit: bool = False

    def instead(self, request_id: str | None) -> Answer | None:
        """Answer, unless the work comes first."""
        del request_id
        return None if self.commit else self._answer()

    def spoiled(self, answer: Answer) -> Answer:
        """Replace the answer."""
        del answer
        return self._answer()

    def _answer(self) -> Answer:
        pairs: Pairs = tuple(
            (name.lower().encode(), value.encode()) for name, value in self.headers.items()
        )
        if self.should_retry is not None:
            pairs = (*pairs, (b"x-should-retry", str(self.should_retry).lower().encode()))
        if self.body is not None:
            return Answer(self.status, self.body, headers=pairs)
        return refused(self.status, self.detail, pairs)

    def __str__(self) -> str:
        return f"Status({self.status})"


class TooMany(Fault, frozen=True):
    """429 with `Retry-After` in one of its forms; `garbage` is one that cannot be read."""

    retry_after_s: float = 1.0
    form: Literal["ms", "seconds", "date", "absent", "garbage"] = "seconds"

    def instead(self, request_id: str | None) -> Answer:
        """Answer 429."""
        del request_id
        when = datetime.now(UTC) + timedelta(seconds=self.retry_after_s)
        pairs: Pairs = {
            "ms": ((b"retry-after-ms", f"{1000 * self.retry_after_s:g}".encode()),),
            "seconds": ((b"retry-after", f"{self.retry_after_s:g}".encode()),),
            "date": ((b"retry-after", format_datetime(when, usegmt=True).encode()),),
            "absent": (),
            "garbage": ((b"retry-after", b"when it suits"), (b"retry-after-ms", b"soon")),
        }[self.form]
        return refused(429, "too many requests", pairs)

    def __str__(self) -> str:
        return f"TooMany({self.form})"


class QueueState(Fault, frozen=True):
    """Not done yet, and why: `try_again`, or with `status` 408 a time-out that tells its state.

    `state` None leaves a 408 without a body. Changes no work.
    """

    state: str | None = "paused_capacity"
    reason: str | None = None
    status: Literal[200, 408] = 200

    def fits(self, endpoint: str) -> bool:
        """Where results are fetched."""
        return endpoint == "retrieve_future"

    def instead(self, request_id: str | None) -> Answer:
        """Answer that it takes longer."""
        if self.status == 408 and self.state is None:
            return Answer(408)
        body = {"queue_state": self.state or "active"}
        if self.reason is not None:
            body["queue_state_reason"] = self.reason
        if self.status == 200:
            body = {"type": "try_again", "request_id": request_id or "", **body}
        return json_answer(body, status=self.status)

    def __str__(self) -> str:
        return f"QueueState({self.status}, {self.state})"


class BadJson(Fault, frozen=True):
    """The answer is cut in the middle of its JSON, under a length that is right."""

    def spoiled(self, answer: Answer) -> Answer:
        """Break it."""
        return msgspec.structs.replace(
            answer, body=b'{"request_id": "r', content_type=b"application/json"
        )


class BadProtobuf(Fault, frozen=True):
    """The answer says it is protobuf and is none."""

    def spoiled(self, answer: Answer) -> Answer:
        """Break it."""
        return msgspec.structs.replace(answer, body=b"\x0a\xff\xff\xff", content_type=PROTOBUF)


class WrongContentType(Fault, frozen=True):
    """The answer under another content type."""

    content_type: str = "text/html"

    def spoiled(self, answer: Answer) -> Answer:
        """Relabel it."""
        return msgspec.structs.replace(answer, content_type=self.content_type.encode())


class WrongType(Fault, frozen=True):
    """The JSON answer with one field replaced by a value of another type.

    Without `field` it is the first one. What is not a JSON object becomes a list.
    """

    field: str | None = None
    value: Any = msgspec.field(default_factory=lambda: [17])

    def spoiled(self, answer: Answer) -> Answer:
        """Replace the field."""
        try:
            found = msgspec.json.decode(answer.body)
        except msgspec.DecodeError:
            found = None
        if isinstance(found, dict):
            name = self.field or next(iter(found), "request_id")
            found = {**found, name: self.value}
        else:
            found = [17]
        return msgspec.structs.replace(
            answer, body=wire_json.encode(found), content_type=b"application/json"
        )


class HugeBody(Fault, frozen=True):
    """The answer with `extra_bytes` more in a field that nobody knows."""

    harmless: ClassVar[bool] = True

    extra_bytes: int = 8 << 20

    def spoiled(self, answer: Answer) -> Answer:
        """Enlarge it; the meaning stays."""
        if answer.content_type == PROTOBUF:
            head = _varint(1000 << 3 | 2) + _varint(self.extra_bytes)
            return msgspec.structs.replace(
                answer, body=answer.body + head + bytes(self.extra_bytes)
            )
        comma = b"" if answer.body in {b"{}", b""} else b","
        padding = b'"padding":"' + b"x" * self.extra_bytes + b'"'
        rest = answer.body[1:] or b"}"
        return msgspec.structs.replace(answer, body=b"{" + padding + comma + rest)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)


# What the work comes to


class OperationFails(Fault, frozen=True):
    """The operation is accepted and then fails; its number is used up, the model unchanged.

    At `retrieve_future` only this answer says so.
    """

    error: str = "scripted failure"
    category: Literal["user", "server", "unknown"] = "server"

    def fits(self, endpoint: str) -> bool:
        """At operations, and where their results are fetched."""
        return endpoint in OPERATIONS or endpoint == "retrieve_future"

    def instead(self, request_id: str | None) -> Answer | None:
        """Answer for a fetched result."""
        if request_id is None:
            return None
        return json_answer({"error": self.error, "category": self.category})


class Corrupts(Fault, frozen=True):
    """The model breaks before this operation: it and all later ones fail, and its run says so."""

    def fits(self, endpoint: str) -> bool:
        """At a model's own operations."""
        return endpoint in OPERATIONS - {"asample", "create_model"}


class Untold(Fault, frozen=True):
    """The session poller is told of nothing, and never will be of what is done by now."""

    def fits(self, endpoint: str) -> bool:
        """At the session poller."""
        return endpoint == "retrieve_futures"

    def spoiled(self, answer: Answer) -> Answer:
        """Leave out what is done; the cursor passes it."""
        if answer.status != 200:
            return answer
        told = wire_json.decode(answer.body, RetrieveFuturesResponse)
        told = RetrieveFuturesResponse([], told.cursor)
        return msgspec.structs.replace(answer, body=wire_json.encode(told))


class EndsSession(Fault, frozen=True):
    """The session ends: this request and all later ones of the session are answered 410."""


class Random(Fault, frozen=True):
    """One of `kinds` with probability `rate`, drawn anew for each request.

    The n-th request of an endpoint always meets the same fate, however requests of
    other endpoints fall in between.
    """

    rate: float
    kinds: Sequence[Fault]
    seed: int = 0

    def fits(self, endpoint: str) -> bool:
        """Where one of the kinds does."""
        return any(kind.fits(endpoint) for kind in self.kinds)

    def chosen(self, endpoint: str, occurrence: int) -> Fault | None:
        """Draw."""
        dice = random.Random(f"{self.seed}/{endpoint}/{occurrence}")  # noqa: S311  # repeatable
        if dice.random() >= self.rate:
            return None
        return dice.choice(list(self.kinds)).chosen(endpoint, occurrence)
