"""What each fault must come to, and why: the expectations of the matrix.

The rule: nothing here was read off the client. A fault says whether the request was certainly
not processed, perhaps, or certainly; a request says whether it may be sent again; the rest
follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import msgspec

from tinker_async import (
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    BillingError,
    ConfigError,
    ConflictError,
    ConnectError,
    GoneError,
    InternalServerError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    PromiseLostError,
    ProtocolError,
    RateLimitError,
    RequestFailedError,
    RequestTimeoutError,
    ResponseError,
    TinkerError,
    TransportError,
    UnprocessableEntityError,
)
from tinker_async.testing import faults
from tinker_async.testing.faults import Fault

ATTEMPTS = 3
"""`max_attempts` of the matrix."""
BILLING_PAUSE_S = 12.0

Group: TypeAlias = Literal[
    "slow",
    "unsent",
    "broken",
    "silent",
    "lost",
    "busy",
    "limited",
    "failing",
    "final",
    "refused",
    "asked again",
    "billing",
    "billing pause",
    "garbled",
    "queued",
    "fails",
    "corrupts",
    "ends",
]


class Case(msgspec.Struct, frozen=True):
    """One fault."""

    fault: Fault
    group: Group
    error: type[TinkerError] | None = None
    """What a request ends in that meets it and is not sent again; None: it is answered."""
    done: bool = False
    """Whether the work is done all the same."""
    label: str = ""

    @property
    def repeated(self) -> bool:
        """Whether the request is sent again."""
        return self.group in _REPEATED

    @property
    def in_doubt(self) -> bool:
        """Whether the client cannot know if the work was done."""
        return self.group in {"broken", "silent", "lost", "failing", "final", "garbled"}

    def __str__(self) -> str:
        return self.label or str(self.fault)


_REPEATED = frozenset(
    {
        "unsent",
        "broken",
        "silent",
        "lost",
        "busy",
        "limited",
        "failing",
        "asked again",
        "billing pause",
    }
)


def _status(status: int, group: Group, error: type[TinkerError], **facts: Any) -> Case:
    fault = faults.Status(status, **facts)
    said = "".join(f", {name}={value}" for name, value in facts.items())
    return Case(fault, group, error, fault.commit, f"Status({status}{said})")


_REFUSALS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    410: GoneError,
    418: APIStatusError,
    422: UnprocessableEntityError,
}

CASES: tuple[Case, ...] = (
    # Strange, and harmless.
    Case(faults.Trickle(chunk_bytes=16, pause_s=0.01), "slow", done=True),
    Case(faults.HugeBody(extra_bytes=1 << 16), "slow", done=True),
    Case(faults.GoAway(processed=True), "slow", done=True, label="GoAway(processed)"),
    Case(faults.Stall(seconds=4.0), "slow", done=True, label="Stall(4 s)"),
    Case(faults.Stall(seconds=4.0, commit=True), "slow", done=True, label="Stall(4 s, commit)"),
    # The request certainly did not arrive.
    Case(faults.Refuse(), "unsent", ConnectError),
    Case(faults.GoAway(processed=False), "unsent", ConnectError, label="GoAway(not processed)"),
    Case(faults.RstStream(code=7), "unsent", ConnectError, label="RstStream(7)"),
    # It may have arrived.
    Case(faults.Reset(when="before"), "broken", ProtocolError),
    Case(faults.Reset(when="within"), "broken", ProtocolError),
    Case(faults.Reset(when="after"), "broken", ProtocolError),
    Case(faults.RstStream(code=8), "broken", ProtocolError, label="RstStream(8)"),
    Case(faults.RstStream(code=2), "broken", ProtocolError, label="RstStream(2)"),
    Case(faults.DropReply(), "lost", ProtocolError, done=True),
    Case(faults.Truncate(keep=0.5), "lost", ProtocolError, done=True),
    Case(faults.FlowStall(), "silent", RequestTimeoutError),
    Case(faults.Stall(), "silent", RequestTimeoutError),
    Case(
        faults.Stall(commit=True), "silent", RequestTimeoutError, done=True, label="Stall(commit)"
    ),
    # "Not now."
    _status(408, "busy", OverloadedError),
    _status(425, "busy", OverloadedError),
    Case(faults.TooMany(2.0, form="ms"), "limited", RateLimitError),
    Case(faults.TooMany(2.0, form="seconds"), "limited", RateLimitError),
    Case(faults.TooMany(2.0, form="date"), "limited", RateLimitError),
    Case(faults.TooMany(form="absent"), "limited", RateLimitError),
    Case(faults.TooMany(form="garbage"), "limited", RateLimitError),
    # The server failed.
    _status(500, "failing", InternalServerError),
    _status(502, "failing", InternalServerError, commit=True),
    _status(503, "failing", InternalServerError, headers={"retry-after": "2"}),
    _status(529, "failing", InternalServerError),
    _status(500, "final", InternalServerError, should_retry=False),
    # "No."
    *(_status(status, "refused", error) for status, error in _REFUSALS.items()),
    _status(400, "asked again", BadRequestError, should_retry=True),
    _status(409, "asked again", ConflictError, should_retry=True),
    _status(402, "billing", BillingError),
    Case(faults.Status(402), "billing pause", BillingError, label="Status(402), billing_pause_s"),
    # An answer that is none.
    Case(faults.BadJson(), "garbled", ResponseError, done=True),
    Case(faults.BadProtobuf(), "garbled", ResponseError, done=True),
    Case(faults.WrongType(), "garbled", ResponseError, done=True),
    Case(faults.WrongContentType(), "garbled", ResponseError, done=True),
    # The work itself.
    Case(faults.QueueState("paused_capacity", "full"), "queued"),
    Case(faults.QueueState("paused_rate_limit", None, 408), "queued"),
    Case(faults.QueueState(None, None, 408), "queued"),
    Case(faults.OperationFails(), "fails", RequestFailedError),
    Case(faults.Corrupts(), "corrupts", RequestFailedError),
    Case(faults.EndsSession(), "ends", GoneError),
    # What has been left out of a list.
    Case(faults.Untold(), "slow", done=True),
)


def _one_of_each() -> Iterator[Case]:
    """One case of each group, and the answers that say that something is not there."""
    seen = set[str]()
    for case in CASES:
        if case.group not in seen or getattr(case.fault, "status", None) in {404, 410}:
            seen.add(case.group)
            yield case


ONE_OF_EACH = (*_one_of_each(),)

Kind: TypeAlias = Literal[
    "ask", "make", "delete", "lane", "save", "draw", "poll", "file", "quiet", "told"
]


class Stage(msgspec.Struct, frozen=True):
    """One kind of request that a call sends."""

    endpoint: str
    kind: Kind
    effect: str | None = None
    """The operation that the server then has carried out."""
    protobuf: bool = False
    """Whether the answer is protobuf."""
    of: Kind = "lane"
    """For polls: whose result."""
    more: int = 0
    """Further requests of this kind that follow when it goes well."""
    names_session: bool = True
    """Whether the server can see which session it is of."""


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What a cell must come to."""

    error: type[TinkerError] | None = None
    """None: the call's result."""
    sent: int | None = None
    """Requests of the stage; None where repetition is not by the policy's count."""
    effects: int | None = None
    """How often the operation is carried out at the server, however often it was sent."""
    poisoned: bool = False
    held: bool = False
    """Whether the call ends only with its own timeout."""
    told: int = 0
    """Cancellations that the server hears of: samples that nobody waits for any more."""
    again: Literal["works", "fails", "gone"] = "works"
    """What the same call does next, once the fault is over."""


def expected(stage: Stage, case: Case, *, always: bool) -> Expected:
    """Return what a call must come to that meets a fault in one of its requests.

    Args:
        stage: The request.
        case: The fault.
        always: Whether every such request meets it, or the first alone.
    """
    gone = case.group == "ends" and stage.names_session
    if stage.kind == "quiet":  # what is nice to know is no reason to fail
        found = Expected(effects=1)
    elif stage.kind == "poll":
        found = _polled(stage, case, always=always)
    elif stage.kind == "told":  # without it every sample asks for itself
        found = Expected(error=GoneError if case.group == "ends" else None, effects=1)
    elif stage.kind == "file":
        found = _fetched(case, always=always)
    else:
        found = _submitted(stage, case, always=always)
    if found.error is None and found.sent is not None:
        found = msgspec.structs.replace(found, sent=found.sent + stage.more)
    return msgspec.structs.replace(found, again="gone") if gone else found


def understood(stage: Stage, case: Case) -> bool:
    """Whether an answer that is none does not matter to this request."""
    if case.group != "garbled":
        return False
    if stage.kind == "delete":
        return True  # its status says all
    # A label only tells the two forms of a result apart.
    return isinstance(case.fault, faults.WrongContentType) and not stage.protobuf


def _submitted(stage: Stage, case: Case, *, always: bool) -> Expected:
    if case.error is None or understood(stage, case):
        return Expected(sent=1, effects=1)
    if case.group == "fails":
        return Expected(error=case.error, sent=1, effects=1)
    if case.group == "corrupts":
        # A model that is made anew is another one.
        again: Literal["works", "fails"] = "works" if stage.kind == "make" else "fails"
        return Expected(error=case.error, sent=1, effects=1, again=again)
    sent = 1
    if case.repeated:
        sent = ATTEMPTS if always else 2
        if case.group == "billing pause" and always:
            sent = 4  # after 0, 5, 10 and 12 seconds
        if not always:
            return Expected(sent=sent, effects=1)
    if case.done and stage.kind == "save":
        return Expected(sent=sent, effects=1)  # it is looked up, and there
    return Expected(
        error=case.error,
        sent=sent,
        effects=int(case.done),
        poisoned=case.in_doubt and stage.kind in {"lane", "save"},
    )


def _polled(stage: Stage, case: Case, *, always: bool) -> Expected:
    """Whatever becomes of its polls: the operation is accepted, and carried out once."""
    if always and isinstance(case.fault, faults.Status) and case.fault.status == 408:
        # The same words each time, at once: a failure that is kept with the status of "not yet".
        return Expected(error=RequestFailedError, effects=1)
    if case.group in {"queued", "busy", "silent"}:  # "still queued", or held
        return Expected(
            error=RequestTimeoutError if always else None,
            effects=1,
            held=always,
            told=int(always and stage.of == "draw"),
        )
    if case.error is None or understood(stage, case) or (case.repeated and not always):
        return Expected(sent=2 if case.repeated else 1, effects=1)
    error = meaning(case)
    if stage.of == "draw" and error is PromiseLostError:
        return _drawn_again(case, always=always)
    if case.group == "ends":
        return Expected(error=error, effects=1)
    sent = ATTEMPTS if case.repeated else 1
    return Expected(
        error=error,
        sent=4 if case.group == "billing pause" else sent,
        effects=1,
        told=int(stage.of == "draw" and issubclass(error, (TransportError, APIStatusError))),
    )


def _drawn_again(case: Case, *, always: bool) -> Expected:
    """A sample whose promise is lost is a new sample, within the same count of attempts."""
    if case.group == "ends":
        return Expected(error=GoneError, effects=1)  # the new one is refused
    times = ATTEMPTS if always else 2
    return Expected(error=PromiseLostError if always else None, sent=times, effects=times)


def meaning(case: Case) -> type[TinkerError]:
    """What a refusal to give a result says of the operation."""
    if case.error in {NotFoundError, GoneError}:
        return PromiseLostError
    if case.error in _BY_STATUS:
        return RequestFailedError
    return case.error or TinkerError


_BY_STATUS = {
    *(BadRequestError, ConflictError, UnprocessableEntityError, PermissionDeniedError),
    APIStatusError,
}
"""What is not about whoever asks, nor about now: some servers tell a failed operation so."""


def _fetched(case: Case, *, always: bool) -> Expected:
    """A file that other places have, too: a server that answers without it is not asked again."""
    if isinstance(case.fault, faults.HugeBody):
        return Expected(error=ResponseError, sent=1)  # a file has no room for what is unknown
    if case.error is None or isinstance(case.fault, faults.WrongContentType):
        return Expected(sent=1)
    if case.group == "garbled":
        return Expected(error=ResponseError, sent=1)
    if issubclass(case.error, APIStatusError):
        return Expected(error=ConfigError, sent=1)
    return Expected(error=case.error if always else None, sent=ATTEMPTS if always else 2)
