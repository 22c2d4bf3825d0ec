"""Waiting for promises: one held poll after another until the result is there.

A server answers most operations with a promise and holds `retrieve_future` until the
result exists or its patience ends. An empty-handed answer is normal and polled again
at once; one that came instantly is followed by a small, growing pause, so that a
server that does not hold polls is never hammered. A poll that is held for longer than we
listen means nothing by itself: only a server that answers nothing at all, to anybody in the
session, is silent. A poll whose connection breaks is a failure, which the policy counts.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

import anyio

from tinker_async.api.calls import PROTOBUF, Caller, Endpoint, Failures, error_of
from tinker_async.api.features import Feature
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
    CompleteMetadata,
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
_HELD_OUT, _TOO_EARLY = 408, 425
_OF_THE_POLL = (401, 402, 408, 425, 429)
"""Statuses that are about whoever asks, or about now. By any other 4xx some servers tell that the
operation failed (409 in vain waiting for its turn, 403 a checkpoint of somebody else, 413)."""
_ABOUT_ANOTHER = re.compile(r"\b(model|checkpoint|loss|adapter|tokenizer)\b", re.IGNORECASE)
"""What a 404 names that an operation has not found; any other is of the promise itself."""
_SIZED = "allow_metadata_only"
_INSTANT_S = 0.5
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 2.0
_LEAST_IN_A_ROW = 10
"""Explained refusals of one text, each at once, that are believed to be passing."""
_LEAST_LISTENING_S = 1.0
"""A poll is given so much time to be answered, even when the silence limit is near."""


class Room(Protocol):
    """How many bytes of results may be on their way at the same time."""

    async def acquire(self, amount: int = 1) -> None:
        """Wait for so many; cancelled, nothing is held."""

    def release(self, amount: int = 1) -> None:
        """Give them back."""


class _Patience:
    """The wait for one promise: what each poll's end means, and the pause that follows.

    Between empty answers there is none while the server holds polls, and a growing one when
    it does not. Polls that fail follow the policy; those that are held do not count.
    """

    __slots__ = (
        "_began",
        "_caller",
        "_failures",
        "_in_a_row",
        "_last_words",
        "_pause_s",
        "_policy",
        "_progress",
        "_request_id",
    )

    def __init__(
        self,
        caller: Caller,
        request_id: str,
        policy: RetryPolicy,
        progress: Progress,
        began: float,
    ) -> None:
        self._caller = caller
        self._request_id = request_id
        self._policy = policy
        self._progress = progress
        self._pause_s = _FIRST_PAUSE_S
        self._began = began
        self._failures: Failures | None = None
        self._last_words = ""
        self._in_a_row = 0

    def failed(self, error: TransportError | APIStatusError) -> float:
        """Return the pause after a poll that failed.

        Raises:
            TinkerError: It is not asked again.
        """
        if isinstance(error, TransportError):
            return self._unanswered(error)
        return self._refused(error)

    def _unanswered(self, error: TransportError) -> float:
        """Return the pause after a poll without an answer.

        Raises:
            RequestTimeoutError: The server has answered nothing for too long.
            TransportError: The connection broke, and the policy is used up.
        """
        limit_s, left_s = self._caller.silence_limit_s, float("inf")
        if limit_s is not None:
            left_s = _silence_ends(self._caller, self._began) - anyio.current_time()
            if left_s <= 0:
                raise RequestTimeoutError(
                    f"the server has answered nothing for {limit_s:g} s",
                    hint="the operation may still be under way; look at the server and the network",
                ) from error
        if isinstance(error, RequestTimeoutError):  # the server holds for longer than we listen
            self._tell(error, 0.0)
            return 0.0
        if self._failures is None:
            self._failures = Failures(self._policy, self._caller.billing)
        if self._failures.is_idle_end(error):
            self._tell(error, 0.0)
            return 0.0
        delay = self._next_delay(error)
        if delay is None:
            raise error
        return min(delay, left_s)

    def _refused(self, error: APIStatusError) -> float:
        """Return the pause after a poll that was answered with an error.

        Raises:
            TinkerError: What it means for the operation, when it is not asked again.
        """
        features = self._caller.features
        if (
            error.status in (400, 422)
            and _SIZED in error.detail
            and (Feature.SIZED_RESULTS not in features.missing)
        ):
            features.learn(Feature.SIZED_RESULTS, False, detail=error.message)
            return 0.0
        delay = self._next_delay(error)
        if delay is not None:
            return delay
        final = _final(error, self._request_id)
        if final is error:
            raise error
        raise final from error

    def _next_delay(self, error: TinkerError) -> float | None:
        if self._failures is None:
            self._failures = Failures(self._policy, self._caller.billing)
        delay = self._failures.next_delay(error, self._progress.operation)
        self._tell(error, delay)
        return delay

    def _tell(self, error: TinkerError, delay: float | None) -> None:
        number = self._failures.number if self._failures is not None else 0
        self._caller.note_failure(error, RETRIEVE_JSON, self._progress.operation, number, delay)

    def empty(self, given: PromiseAnswer, held_s: float) -> float:
        """Return the pause after an answer without a result.

        Raises:
            TinkerError: It is an answer after which there is nothing to wait for.
        """
        self._failures = None  # what failed before does not count any more
        self._caller.billing.note_accepted(PATH)
        answer = _not_yet(given, self._request_id)
        state, reason = answer.queue_state, answer.queue_state_reason
        if state is not None:
            _note_queue_state(self._caller, self._progress, self._request_id, state, reason)
        if held_s >= _INSTANT_S:
            self._pause_s = _FIRST_PAUSE_S
            self._in_a_row = 0
            return 0.0
        self._refuse_the_same_words(answer)
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return pause_s

    def _refuse_the_same_words(self, answer: TryAgain) -> None:
        """Give up on a "not yet" that comes at once, is explained, and never changes.

        Raises:
            RequestFailedError: Some servers keep a failure with the status of a passing one.
        """
        if not answer.detail or answer.queue_state is not None:
            self._in_a_row = 0
            return
        self._in_a_row = self._in_a_row + 1 if answer.detail == self._last_words else 1
        self._last_words = answer.detail
        if self._in_a_row >= max(self._policy.max_attempts, _LEAST_IN_A_ROW):
            raise RequestFailedError(
                f"the server answers nothing but: {answer.detail}",
                category="unknown",
                request_id=self._request_id,
            )


def poll(
    caller: Caller,
    request_id: str,
    endpoint: Endpoint,
    silence_s: float | None,
    *,
    sized: bool = False,
) -> Coroutine[Any, Any, Response]:
    """Ask for a promise once; the answer, or the error, is for `result_of` or `retrieve`.

    If `sized`, the server may say how large the result is instead of sending it.
    """
    sized = sized and Feature.SIZED_RESULTS not in caller.features.missing
    body = (wire_json.encode(RetrieveFutureRequest(request_id, allow_metadata_only=sized)),)
    return caller.begin(endpoint, body, silence_s=silence_s)


def result_of(
    caller: Caller, polled: Response | TransportError, endpoint: Endpoint, progress: Progress
) -> PromiseResult | None:
    """Return the result if that is what a poll gave, and `retrieve` has nothing to do."""
    if isinstance(polled, TransportError) or polled.status != 200 or progress.queue_state:
        return None
    try:
        answer = _read(caller.heard(polled, endpoint))
    except ResponseError:
        return None
    if not isinstance(answer, PromiseResult):
        return None
    progress.last_contact = caller.last_contact
    caller.billing.note_accepted(PATH)
    return answer


async def retrieve(  # noqa: C901, PLR0912  # thousands wait here: parts would be coroutines, too
    caller: Caller,
    request_id: str,
    *,
    endpoint: Endpoint,
    policy: RetryPolicy | None = None,
    progress: Progress | None = None,
    polled: Response | TransportError | None = None,
    room: Room | None = None,
    turn: Callable[[], Awaitable[bool]] | None = None,
) -> PromiseResult:
    """Wait until a promise is fulfilled, for as long as the server says "not yet".

    Cancelling abandons the poll; the operation goes on at the server.

    Args:
        caller: Asks.
        request_id: The promise.
        endpoint: Which form of result is wanted.
        policy: For polls that fail or are answered with an error; default the session's.
        progress: Where queue states go, and whose facts go into the error.
        polled: What came of a first poll, made already.
        room: What large results must have, before they are sent.
        turn: Waited for after each answer without a result; whether it was any wait.

    Raises:
        RequestFailedError: The operation failed.
        PromiseLostError: The server does not know the promise (any more).
        APIStatusError, ConnectError, ProtocolError: The server kept answering with errors, or
            the connection kept breaking, for longer than the policy allows.
        RequestTimeoutError: The server answered nothing at all for the silence limit.
        ResponseError: The answer was not understood.
    """
    progress = progress or Progress("retrieve_future")
    # Whoever was just given the promise need not look at the clock again.
    began = started = progress.last_contact or anyio.current_time()
    patience: _Patience | None = None  # most promises need none, and thousands are held
    reserved = 0
    try:
        while True:
            try:
                if polled is None:
                    silence_s = _listen_s(caller, began, started)
                    sized = room is not None and not reserved
                    polled = await poll(caller, request_id, endpoint, silence_s, sized=sized)
                elif isinstance(polled, TransportError):
                    raise polled
                response = caller.heard(polled, endpoint)
                progress.last_contact = caller.last_contact
                answer = _read(response)
                if isinstance(answer, PromiseResult):
                    caller.billing.note_accepted(PATH)
                    break
                if room is not None and isinstance(answer, CompleteMetadata) and not reserved:
                    await room.acquire(needed := max(1, answer.size_bytes))
                    polled, reserved = None, needed
                    continue
                failure = None
            except (TransportError, APIStatusError) as error:
                failure = error
            polled = None
            patience = patience or _Patience(
                caller, request_id, policy or caller.policy, progress, began
            )
            if failure is None:
                pause_s = patience.empty(answer, anyio.current_time() - started)
                if turn is not None and await turn():
                    pause_s = 0.0
            else:
                pause_s = patience.failed(failure)
                failure = None  # it knows this frame
            await anyio.sleep(pause_s)
            started = anyio.current_time()
    except TinkerError as error:
        if isinstance(error, RequestFailedError):
            _note_end(caller, progress, request_id)
        progress.describe(error)
        raise
    finally:
        if reserved and room is not None:
            room.release(reserved)  # who decodes it does so before anybody else runs
        if progress.queue_state is not None:
            caller.paused.discard(progress)
    _note_end(caller, progress, request_id)
    return answer


def _silence_ends(caller: Caller, began: float) -> float:
    contact = began if caller.last_contact is None else caller.last_contact
    return contact + (caller.silence_limit_s or 0.0)


def _listen_s(caller: Caller, began: float, now: float) -> float | None:
    """For how long a poll may go without an answer; None as long as it likes."""
    limit_s = caller.silence_limit_s
    if limit_s is None:
        return None
    left_s = _silence_ends(caller, began) - now
    return left_s if left_s > _LEAST_LISTENING_S else max(left_s, min(_LEAST_LISTENING_S, limit_s))


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
    if response.status == _TOO_EARLY:
        return TryAgain()
    if response.status == _HELD_OUT:
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
    lost = isinstance(error, NotFoundError) and (
        request_id in error.detail or _ABOUT_ANOTHER.search(error.detail) is None
    )
    if lost or isinstance(error, GoneError):
        return PromiseLostError(
            f"the server no longer knows request {request_id}: {error.detail}",
            request_id=request_id,
        )
    if 400 <= error.status < 500 and error.status not in _OF_THE_POLL:
        # Servers that report a failed operation by status instead of `error`.
        return RequestFailedError(
            error.detail or error.message, category="unknown", request_id=request_id
        )
    return error
