"""Telling the server of samples that nobody waits for any more.

Each is told once, or again where the connection broke before the answer. A request whose
cancellation met it on the wire has no id yet: it is sent again under its own number, which makes
the server say the id, and then cancelled. Rule: none of this holds up a user's task, nor the
session's end for long; it runs in the session's own, bounded in number and time.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller, decode_json
from tinker_async.api.features import Feature, says_no_endpoint
from tinker_async.api.retry import RetryPolicy
from tinker_async.errors import (
    APIStatusError,
    RateLimitError,
    RequestTimeoutError,
    TinkerError,
)
from tinker_async.logs import log
from tinker_async.wire import json as wire_json
from tinker_async.wire.messages import RetrieveFutureRequest, UntypedAPIFuture

if TYPE_CHECKING:
    from tinker_async.background.sampling_pool import SamplingPool

_MOST_KNOWN = 10_000
_MOST_UNKNOWN = 1_000
_PATIENCE_S = 10.0
"""For all that is told at once."""
LAST_WORDS_S = 3.0
"""For all of it, from the end of the session's block on."""
_ASK_AGAIN = RetryPolicy(max_attempts=3, window_s=_PATIENCE_S, base_s=0.2)
_ANSWERED_OR_SILENT = (APIStatusError, RequestTimeoutError)


class Recalls:
    """The abandoned samples of a session."""

    def __init__(self, caller: Caller, pool: SamplingPool) -> None:
        self._caller = caller
        self._pool = pool
        self._enabled = False
        self._at_once = 1
        self._absent = False
        """Whether it has turned out to have no endpoint for that."""
        self._known: deque[str] = deque(maxlen=_MOST_KNOWN)
        self._unknown: deque[tuple[bytes, int]] = deque(maxlen=_MOST_UNKNOWN)
        self._wake = anyio.Event()
        self._telling = anyio.CancelScope()
        """Around what is being told."""
        self._ends_at = math.inf

    def __len__(self) -> int:
        return len(self._known) + len(self._unknown)

    def switch(self, *, enabled: bool, at_once: int) -> None:
        """Take in what the server says: whether it wants to hear of them, and of how many at once.

        What it does not want to hear of is forgotten.
        """
        self._enabled = enabled
        self._at_once = max(1, at_once)
        if not enabled:
            self._known.clear()
            self._unknown.clear()

    def add(self, request_id: str) -> None:
        """Add a sample by its id."""
        if self._enabled and not self._absent:
            self._known.append(request_id)
            self._wake.set()

    def add_unknown(self, body: bytes, nbytes: int) -> None:
        """Add a sample by its request, which was perhaps sent; `nbytes` is its dispatch size."""
        if self._enabled and not self._absent:
            self._unknown.append((body, nbytes))
            self._wake.set()

    async def run(self) -> None:
        """Tell the server, until cancelled: what is being told then is finished first."""
        while True:
            if not self:
                self._wake = anyio.Event()
                await self._wake.wait()
            with anyio.CancelScope(shield=True):
                await self._tell_some()
            await anyio.lowlevel.checkpoint()

    def end(self) -> None:
        """Let what is being told now have no more time than the session's last words have."""
        self._ends_at = anyio.current_time() + LAST_WORDS_S
        self._telling.deadline = min(self._telling.deadline, self._ends_at)

    async def flush(self) -> None:
        """Tell the server of all of them now, in the time that the caller allows."""
        self._ends_at = math.inf
        while self:
            await self._tell_some()

    async def _tell_some(self) -> None:
        patient_until = min(anyio.current_time() + _PATIENCE_S, self._ends_at)
        with anyio.CancelScope(deadline=patient_until) as self._telling:
            async with anyio.create_task_group() as tasks:
                for _ in range(min(self._at_once, len(self))):
                    if self._known:
                        tasks.start_soon(self._tell, self._known.popleft())
                    else:
                        tasks.start_soon(self._find_and_tell, *self._unknown.popleft())

    async def _tell(self, request_id: str) -> None:
        """Tell of one; again only if a connection broke: hearing it twice does no harm."""
        body = wire_json.encode(RetrieveFutureRequest(request_id=request_id))
        try:
            await self._caller.call(
                endpoints.CANCEL_FUTURE,
                (body,),
                policy=_ASK_AGAIN,
                never_repeat=_ANSWERED_OR_SILENT,
            )
        except TinkerError as error:
            if isinstance(error, APIStatusError) and says_no_endpoint(error):
                self._give_up(error)
            log.debug("cancel_not_told", request_id=request_id, error=type(error).__name__)

    def _give_up(self, error: APIStatusError) -> None:
        """Never tell of anything again: the server has no endpoint for it."""
        self._caller.features.learn(Feature.CANCEL, False, detail=error.message)
        self._absent = True
        self._known.clear()
        self._unknown.clear()

    async def _find_and_tell(self, body: bytes, nbytes: int) -> None:
        await self._pool.start_dispatch(nbytes, self)
        try:
            response = await self._caller.call(
                endpoints.SAMPLE, (body,), policy=_ASK_AGAIN, never_repeat=(RateLimitError,)
            )
            promise = decode_json(response.body, UntypedAPIFuture, endpoints.SAMPLE.path)
        except TinkerError as error:
            log.debug("abandoned_sample_not_found", error=type(error).__name__)
            return
        finally:
            self._pool.end_dispatch(nbytes)
        await self._tell(promise.request_id)
