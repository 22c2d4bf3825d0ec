"""The session poller: one held request tells which of a sampler's samples are done.

Whoever is told, or gets its turn to ask, asks for its own result as without a poller, so
that failures, repetitions and lost promises mean what they always do. Rule: the poller can fail
in any way and costs no result: without it every sample asks for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import anyio
import anyio.abc

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller, decode_json, error_of
from tinker_async.api.features import Feature, says_no_endpoint
from tinker_async.background.roll import Roll
from tinker_async.errors import (
    APIStatusError,
    BadRequestError,
    BillingError,
    RequestTimeoutError,
    ResponseError,
    TinkerError,
    TransportError,
)
from tinker_async.logs import log
from tinker_async.transport.waiting import Waiter
from tinker_async.wire import json as wire_json
from tinker_async.wire.messages import (
    FuturesTarget,
    RetrieveFuturesRequest,
    RetrieveFuturesResponse,
)

_OPERATION = "sample"
_PAUSE_S = 1.0
"""Between polls that fail."""
_MOST_FAILURES = 3
_REST_S = 30.0
_LONGEST_REST_S = 600.0
"""After so many failures, samples ask for themselves for so long; twice as long the next time."""
_PERIOD_S = 0.02
"""From poll to poll at least, unless they tell of many: what is done meanwhile comes at once."""
_MANY = 8
_INSTANT_S = 0.5
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 2.0
_WORTH_TELLING = 64
"""Fetched results of which the server is told by a request of its own, when nobody waits."""
_LATER = (408, 409, 425, 429)
CLIENT_STRETCH = 1_000_000_000
"""Numbers of one client of a sampler. By the protocol, `seq_id // CLIENT_STRETCH` says which."""


class Pollers:
    """What the pollers of a session share: whether there are any, and where they run."""

    def __init__(
        self, caller: Caller, *, wanted: bool, on_missing: Callable[[], None] | None = None
    ) -> None:
        self._caller = caller
        self._wanted = wanted
        self._on_missing = on_missing
        self._tasks: anyio.abc.TaskGroup | None = None
        if wanted:
            caller.features.learn(Feature.SESSION_POLLER, True, learned_from="config")

    def open(self, tasks: anyio.abc.TaskGroup) -> None:
        """Let pollers run: in `tasks`, until `close`."""
        self._tasks = tasks

    def close(self) -> None:
        """Start no more."""
        self._tasks = None

    def of(self, sampling_session_id: str, first_seq_id: int) -> SessionPoller | None:
        """Return the poller of a new client of a sampler; None if the server wants none."""
        if not self._wanted or Feature.SESSION_POLLER in self._caller.features.missing:
            return None
        target = FuturesTarget(sampling_session_id, first_seq_id // CLIENT_STRETCH)
        return SessionPoller(self._caller, target, self)

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Run a poller; return whether the session lets it."""
        if self._tasks is None:
            return False
        self._tasks.start_soon(work)
        return True

    def missing(self, error: APIStatusError) -> None:
        """Note that the server has no such endpoint after all."""
        self._caller.features.learn(Feature.SESSION_POLLER, False, detail=error.message)
        if self._on_missing is not None:
            self._on_missing()


class SessionPoller:
    """The poller of one client of a sampler. Its task runs only while samples wait."""

    def __init__(self, caller: Caller, target: FuturesTarget, pollers: Pollers) -> None:
        self._caller = caller
        self._target = target
        self._pollers = pollers
        self._roll = Roll()
        self._cursor = 0
        self._fetched: set[str] = set()
        """Of which the server is still to be told."""
        self._running = self._used = False
        self._polling: anyio.CancelScope | None = None
        self._failures = 0
        self._strange = 0
        self._resumes_at = 0.0
        self._rest_s = _REST_S
        self._pause_s = _FIRST_PAUSE_S

    # What a sample does

    def join(self, request_id: str) -> Waiter | None:
        """Add a sample that has its promise: it is to `leave`, whatever becomes of it.

        Returns:
            What to wait for until it is done, or may ask for itself; None: it may at once.
        """
        if (
            self._caller.features.missing
            and self._caller.features.known(Feature.SESSION_POLLER) is False
        ):
            self._roll.all_ask()
        elif self._resumes_at and anyio.current_time() >= self._resumes_at:
            self._resumes_at = 0.0
            self._roll.some_ask()
        waiter = self._roll.join(request_id)
        if waiter is not None:
            self._start()
        return waiter

    async def wait_again(self, request_id: str) -> bool:
        """Wait as after `join`, for a sample that has asked in vain; whether that was any wait."""
        waiter = self._roll.join_again(request_id, anyio.current_time())
        if waiter is None:
            return False
        self._start()
        await waiter
        return True

    def _start(self) -> None:
        if not self._running:
            self._running = self._pollers.start(self._run)
            self._used = True
            if not self._running:
                self._roll.all_ask()

    def size_of(self, request_id: str) -> int:
        """Return how many bytes the result is said to have; 0 if that is not known."""
        return self._roll.size_of(request_id)

    def leave(self, request_id: str, *, fetched: bool) -> None:
        """Note that nobody waits for a sample any more.

        Args:
            request_id: Its promise.
            fetched: Its result is here, or its failure: the server may forget it.
        """
        roll = self._roll
        if fetched:
            if roll.had_waited(request_id):
                roll.found(request_id, anyio.current_time())
            if self._used and not self._resumes_at:
                self._fetched.add(request_id)
        roll.leave(request_id)
        if roll.idle and self._used:
            self._all_done()

    def _all_done(self) -> None:
        """End the poll that nobody needs, and let the server forget what was fetched."""
        if self._polling is not None:
            self._polling.cancel()
        if len(self._fetched) >= _WORTH_TELLING and not self._resumes_at:
            fetched, self._fetched = sorted(self._fetched), set()
            self._pollers.start(partial(self._tell_fetched, fetched))

    # The task

    async def _run(self) -> None:
        try:
            while self._roll.waiting:
                with anyio.CancelScope() as self._polling:  # ended with the last sample
                    await anyio.sleep(await self._round(anyio.current_time()))
                self._polling = None
        except BaseException:
            self._roll.all_ask()  # the session ends, and with it whatever they ask
            raise
        finally:
            self._running, self._polling = False, None

    async def _round(self, began: float) -> float:
        """Poll once; return the pause that follows."""
        try:
            told = await self._poll()
        except RequestTimeoutError as error:
            return self._unanswered(error, began)
        except (TransportError, APIStatusError, ResponseError) as error:
            return self._failed(error)
        self._failures = self._strange = 0
        self._rest_s = _REST_S
        self._caller.billing.note_accepted(endpoints.RETRIEVE_FUTURES.path)
        return self._take_in(told, began, anyio.current_time())

    async def _poll(self) -> RetrieveFuturesResponse:
        fetched = sorted(self._fetched)
        body = RetrieveFuturesRequest(self._target, self._cursor, fetched)
        endpoint = endpoints.RETRIEVE_FUTURES
        response = await self._caller.exchange(endpoint, (wire_json.encode(body),))
        if not 200 <= response.status < 300:
            raise error_of(response, endpoint.path)
        told = decode_json(response.body, RetrieveFuturesResponse, endpoint.path)
        self._fetched.difference_update(fetched)
        return told

    def _take_in(self, told: RetrieveFuturesResponse, began: float, now: float) -> float:
        before, self._cursor = self._cursor, told.cursor
        woken = self._roll.tell(told.completions, now)
        if told.cursor < before:  # a list of a server that was started anew
            self._roll.ask_once(now)
        if woken or told.cursor != before or now - began >= _INSTANT_S:
            self._pause_s = _FIRST_PAUSE_S
            return 0.0 if woken >= _MANY else max(0.0, began + _PERIOD_S - now)
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return pause_s

    def _unanswered(self, error: RequestTimeoutError, began: float) -> float:
        """Return the pause after a poll that was held for longer than we listen."""
        contact = self._caller.last_contact
        self._failures += 1
        if contact is None or contact < began or self._failures == _MOST_FAILURES:
            self._rest(error)
            return 0.0
        self._tell(error, 0.0)
        self._roll.nothing_told(anyio.current_time())
        return 0.0

    def _failed(self, error: TransportError | APIStatusError | ResponseError) -> float:
        """Return the pause after a poll that failed."""
        pause_s: float | None = _PAUSE_S
        if isinstance(error, BillingError):
            pause_s = self._caller.billing.next_delay(error, _OPERATION)
        elif isinstance(error, (BadRequestError, ResponseError)):
            self._strange += 1
            if self._strange == _MOST_FAILURES:
                return self._give_up(error)
        elif isinstance(error, APIStatusError) and not _later(error):
            return self._give_up(error)
        else:
            self._failures += 1
            if isinstance(error, APIStatusError) and error.retry_after_s is not None:
                most_s = self._caller.policy.max_server_s
                pause_s = max(_PAUSE_S, min(error.retry_after_s, most_s))
        if pause_s is None or self._failures == _MOST_FAILURES:
            self._rest(error)
            return 0.0
        self._tell(error, pause_s)
        self._roll.nothing_told(anyio.current_time())
        return pause_s

    def _rest(self, error: TinkerError) -> None:
        """Let all samples ask for themselves for a while."""
        self._failures = 0
        self._tell(error, None)
        self._resumes_at = anyio.current_time() + self._rest_s
        self._rest_s = min(2 * self._rest_s, _LONGEST_REST_S)
        self._roll.all_ask()

    def _give_up(self, error: APIStatusError | ResponseError) -> float:
        """Let all samples ask for themselves from now on."""
        if isinstance(error, APIStatusError) and says_no_endpoint(error):
            self._pollers.missing(error)
        log.info("session_poller_given_up", error=type(error).__name__)
        self._tell(error, None)
        self._resumes_at = float("inf")
        self._roll.all_ask()
        return 0.0

    def _tell(self, error: TinkerError, delay_s: float | None) -> None:
        number = self._failures or self._strange or 1
        self._caller.note_failure(error, endpoints.RETRIEVE_FUTURES, _OPERATION, number, delay_s)

    async def _tell_fetched(self, fetched: list[str]) -> None:
        """Tell the server what was fetched, when no more is waited for. Failures do not matter."""
        body = RetrieveFuturesRequest(self._target, self._cursor, fetched, timeout=0)
        try:
            await self._caller.once(endpoints.RETRIEVED_FUTURES, (wire_json.encode(body),))
        except TinkerError as error:
            log.debug("fetched_not_told", error=type(error).__name__)


def _later(error: APIStatusError) -> bool:
    return error.status in _LATER or error.status >= 500 or error.should_retry is True
