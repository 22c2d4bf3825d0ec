"""Waiting for promises: one held poll after another until the result is there.

A server answers most operations with a promise and holds `retrieve_future` until the
result exists or its patience ends. An empty-handed answer is normal and polled again
at once; one that came instantly is followed by a small, growing pause, so that a
server that does not hold polls is never hammered. A poll that is held for longer than we
listen means nothing by itself: only a server that answers nothing at all, to anybody in the
session, is silent. A poll whose connection breaks is a failure, which the policy counts.
"""

from __future__ import annotations

import anyio

from tinker_async.api.calls import PROTOBUF, Caller, Endpoint, Failures, error_of
from tinker_async.api.progress import Progress
from tinker_async.api.retry import RetryPolicy
from tinker_async.errors import (
    APIStatusError,
    GoneError,
    NotFoundError,
    PromiseLostError,
    RequestFailedError,
    RequestTimeoutError,
    ResponseError,
    TinkerError,
    TransportError,
)
from tinker_async.events import QueueStateChanged
from tinker_async.transport import Response, TrafficClass
from tinker_async.wire import json as wire_json
from tinker_async.wire.messages import RetrieveFutureRequest
from tinker_async.wire.promises import (
    Failed,
    PromiseAnswer,
    PromiseResult,
    TryAgain,
    parse_promise_answer,
    parse_timeout_answer,
)
from tinker_async.wire.protobuf import DecodeError

PATH = "/api/v1/retrieve_future"
RETRIEVE_JSON = Endpoint(PATH, traffic=TrafficClass.POLLING, silence_s=45.0)
RETRIEVE_ANY = Endpoint(PATH, traffic=TrafficClass.POLLING, accept=PROTOBUF, silence_s=45.0)

ACTIVE = "active"
_PAUSED = "paused"
_STILL_PENDING = (408, 425)
_INSTANT_S = 0.5
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 2.0
_LEAST_LISTENING_S = 1.0
"""A poll is given so much time to be answered, even when the silence limit is near."""


class _Patience:
    """The wait for one promise: what each poll's end means, and the pause that follows.

    Between empty answers there is none while the server holds polls, and a growing one when
    it does not. Polls that fail follow the policy; those that are held do not count.
    """

    __slots__ = (
        "_began",
        "_caller",
        "_failures",
        "_pause_s",
        "_policy",
        "_progress",
        "_request_id",
    )

    def __init__(
        self, caller: Caller, request_id: str, policy: RetryPolicy, progress: Progress
    ) -> None:
        self._caller = caller
        self._request_id = request_id
        self._policy = policy
        self._progress = progress
        self._pause_s = _FIRST_PAUSE_S
        self._began: float | None = None
        self._failures: Failures | None = None

    def listen_s(self, now: float) -> float | None:
        """For how long the next poll may go without an answer; None as long as it likes."""
        limit_s = self._caller.silence_limit_s
        if limit_s is None:
            return None
        left_s = self._silence_ends() - now
        return (
            left_s if left_s > _LEAST_LISTENING_S else max(left_s, min(_LEAST_LISTENING_S, limit_s))
        )

    def _silence_ends(self) -> float:
        contact = self._caller.last_contact
        if contact is None:
            if self._began is None:
                self._began = anyio.current_time()
            contact = self._began
        return contact + (self._caller.silence_limit_s or 0.0)

    def unanswered(self, error: TransportError) -> float:
        """Return the pause after a poll without an answer.

        Raises:
            RequestTimeoutError: The server has answered nothing for too long.
            TransportError: The connection broke, and the policy is used up.
        """
        limit_s, left_s = self._caller.silence_limit_s, float("inf")
        if limit_s is not None:
            left_s = self._silence_ends() - anyio.current_time()
            if left_s <= 0:
                raise RequestTimeoutError(
                    f"the server has answered nothing for {limit_s:g} s",
                    hint="the operation may still be under way; look at the server and the network",
                ) from error
        if isinstance(error, RequestTimeoutError):  # the server holds for longer than we listen
            self._tell(error, 0.0)
            return 0.0
        delay = self._failed(error)
        if delay is None:
            raise error
        return min(delay, left_s)

    def refused(self, error: APIStatusError) -> float:
        """Return the pause after a poll that was answered with an error.

        Raises:
            TinkerError: What it means for the operation, when it is not asked again.
        """
        delay = self._failed(error)
        if delay is not None:
            return delay
        final = _final(error, self._request_id)
        if final is error:
            raise error
        raise final from error

    def _failed(self, error: TinkerError) -> float | None:
        if self._failures is None:
            self._failures = Failures(self._policy, self._caller.billing)
        delay = self._failures.next_delay(error, self._progress.operation)
        self._tell(error, delay)
        return delay

    def _tell(self, error: TinkerError, delay: float | None) -> None:
        number = self._failures.number if self._failures is not None else 0
        self._caller.note_failure(error, RETRIEVE_JSON, self._progress.operation, number, delay)

    def answered(self) -> None:
        """Note a good answer: what failed before does not count any more."""
        self._failures = None
        self._caller.billing.note_accepted(PATH)

    def empty(self, answer: TryAgain, held_s: float) -> float:
        """Return the pause after an empty answer."""
        state, reason = answer.queue_state, answer.queue_state_reason
        if state is not None:
            _note_queue_state(self._caller, self._progress, self._request_id, state, reason)
        if held_s >= _INSTANT_S:
            self._pause_s = _FIRST_PAUSE_S
            return 0.0
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return pause_s


async def retrieve(
    caller: Caller,
    request_id: str,
    *,
    endpoint: Endpoint,
    policy: RetryPolicy | None = None,
    progress: Progress | None = None,
) -> PromiseResult:
    """Wait until a promise is fulfilled, for as long as the server says "not yet".

    Cancelling abandons the poll; the operation goes on at the server.

    Args:
        caller: Asks.
        request_id: The promise.
        endpoint: Which form of result is wanted.
        policy: For polls that fail or are answered with an error; default the session's.
        progress: Where queue states go, and whose facts go into the error.

    Raises:
        RequestFailedError: The operation failed.
        PromiseLostError: The server does not know the promise (any more).
        APIStatusError, ConnectError, ProtocolError: The server kept answering with errors, or
            the connection kept breaking, for longer than the policy allows.
        RequestTimeoutError: The server answered nothing at all for the silence limit.
        ResponseError: The answer was not understood.
    """
    progress = progress or Progress("retrieve_future")
    patience = _Patience(caller, request_id, policy or caller.policy, progress)
    try:
        result = await _poll(caller, request_id, endpoint, patience, progress)
    except TinkerError as error:
        if isinstance(error, RequestFailedError):
            _note_end(caller, progress, request_id)
        progress.describe(error)
        raise
    finally:
        if progress.queue_state is not None:
            caller.paused.discard(progress)
    _note_end(caller, progress, request_id)
    return result


async def _poll(
    caller: Caller,
    request_id: str,
    endpoint: Endpoint,
    patience: _Patience,
    progress: Progress,
) -> PromiseResult:
    body = (wire_json.encode(RetrieveFutureRequest(request_id=request_id)),)
    # Whoever was just given the promise need not look at the clock again.
    started = progress.last_contact or anyio.current_time()
    while True:
        try:
            response = await caller.exchange(endpoint, body, silence_s=patience.listen_s(started))
            progress.last_contact = caller.last_contact
            answer = _read(response)
        except TransportError as error:
            pause_s = patience.unanswered(error)
        except APIStatusError as error:
            pause_s = patience.refused(error)
        else:
            patience.answered()
            if isinstance(answer, PromiseResult):
                return answer
            pause_s = patience.empty(_not_yet(answer, request_id), anyio.current_time() - started)
        await anyio.sleep(pause_s)
        started = anyio.current_time()


def _not_yet(answer: PromiseAnswer, request_id: str) -> TryAgain:
    if isinstance(answer, TryAgain):
        return answer
    if isinstance(answer, Failed):
        raise RequestFailedError(answer.error, category=answer.category, request_id=request_id)
    raise ResponseError(
        "the server sent a result's size where the result was asked for", endpoint=PATH
    )


def _note_end(caller: Caller, progress: Progress, request_id: str) -> None:
    if progress.queue_state is not None:
        _note_queue_state(caller, progress, request_id, ACTIVE, None)


def _note_queue_state(
    caller: Caller, progress: Progress, request_id: str, state: str, reason: str | None
) -> None:
    """Tell of an operation's place in its queue, once per change."""
    if not progress.note_queue_state(state, reason):
        return
    if state.startswith(_PAUSED):
        caller.paused.add(progress)
    else:
        caller.paused.discard(progress)
    caller.events.emit(
        QueueStateChanged(
            operation=progress.operation,
            request_id=request_id,
            state=state,
            reason=reason,
            since=progress.queue_state_since or 0.0,
        )
    )


def _read(response: Response) -> PromiseAnswer:
    if response.status in _STILL_PENDING:
        return parse_timeout_answer(response.body)
    if not 200 <= response.status < 300:
        raise error_of(response, PATH)
    try:
        return parse_promise_answer(response.body, response.header(b"content-type"))
    except DecodeError as error:
        raise ResponseError(
            f"{PATH} answered in an unknown form: {error}", endpoint=PATH
        ) from error


def _final(error: APIStatusError, request_id: str) -> TinkerError:
    """What a failure to retrieve means for the one who waits."""
    if isinstance(error, (NotFoundError, GoneError)):
        return PromiseLostError(
            f"the server no longer knows request {request_id}: {error.detail}",
            request_id=request_id,
        )
    if error.status in (400, 409, 422):
        # Servers that report a failed operation by status instead of `error`.
        return RequestFailedError(
            error.detail or error.message, category="unknown", request_id=request_id
        )
    return error
