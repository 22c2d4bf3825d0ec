"""Waiting for promises: one held poll after another until the result is there.

A server answers most operations with a promise and holds `retrieve_future` until the
result exists or its patience ends. An empty-handed answer is normal and polled again
at once; one that came instantly is followed by a small, growing pause, so that a
server that does not hold polls is never hammered.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio

from tinker_async.api.calls import PROTOBUF, Caller, Endpoint, error_of
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
)
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

_STILL_PENDING = (408, 425)
_INSTANT_S = 0.5
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 2.0

QueueStateHook = Callable[[str, str | None], None]


class _Pace:
    """Pauses between empty answers: none while the server holds polls, growing when not."""

    def __init__(self) -> None:
        self._pause_s = _FIRST_PAUSE_S

    def after(self, held_s: float) -> float:
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
    policy: RetryPolicy,
    on_queue_state: QueueStateHook | None = None,
) -> PromiseResult:
    """Wait until a promise is fulfilled, for as long as the server says "not yet".

    Cancelling abandons the poll; the operation goes on at the server.

    Raises:
        RequestFailedError: The operation failed.
        PromiseLostError: The server does not know the promise (any more).
        APIStatusError, TransportError: The server could not be asked for longer than
            the policy allows.
        ResponseError: The answer was not understood.
    """
    body = (wire_json.encode(RetrieveFutureRequest(request_id=request_id)),)
    pace = _Pace()
    failures, failing_since = 0, 0.0
    while True:
        started = anyio.current_time()
        try:
            answer = _read(await caller.exchange(endpoint, body))
        except RequestTimeoutError:
            answer = TryAgain()  # the server holds longer than we listen: still pending
        except ResponseError:
            raise
        except TinkerError as error:
            now = anyio.current_time()
            failing_since = now if failures == 0 else failing_since
            failures += 1
            delay = policy.next_delay(error, attempt=failures, failing_for_s=now - failing_since)
            if delay is None:
                raise _final(error, request_id) from error
            await anyio.sleep(delay)
            continue
        failures = 0
        if isinstance(answer, PromiseResult):
            return answer
        if isinstance(answer, TryAgain):
            if on_queue_state is not None and answer.queue_state is not None:
                on_queue_state(answer.queue_state, answer.queue_state_reason)
            await anyio.sleep(pace.after(anyio.current_time() - started))
        elif isinstance(answer, Failed):
            raise RequestFailedError(answer.error, category=answer.category, request_id=request_id)
        else:
            raise ResponseError(
                "the server sent a result's size where the result was asked for", endpoint=PATH
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


def _final(error: TinkerError, request_id: str) -> TinkerError:
    """What a failure to retrieve means for the one who waits."""
    if isinstance(error, (NotFoundError, GoneError)):
        return PromiseLostError(
            f"the server no longer knows request {request_id}: {error.detail}",
            request_id=request_id,
        )
    if isinstance(error, APIStatusError) and error.status in (400, 409, 422):
        # Servers that report a failed operation by status instead of `error`.
        return RequestFailedError(
            error.detail or error.message, category="unknown", request_id=request_id
        )
    return error
