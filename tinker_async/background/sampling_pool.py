"""The sampling pool of a session: how many samples may be under way, and when to hold back.

All samplers of a session share it. A sample holds one place from before it is sent
until its result is there, and its request's bytes only while it is being sent. A 429
makes every submission wait; the request is then sent again under its own number.
"""

from __future__ import annotations

import random
from collections import deque

import anyio
import msgspec

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller
from tinker_async.background.limits import Budget, BudgetStatistics
from tinker_async.errors import RateLimitError, TinkerError
from tinker_async.logs import log
from tinker_async.wire import json as wire_json
from tinker_async.wire.messages import ClientConfigResponse, RetrieveFutureRequest

_SMALL_BYTES = 128 * 1024
_SMALL_PAUSE_S = 1.0
_LARGE_PAUSE_S = 5.0
_LONGEST_PAUSE_S = 60.0
_MOST_CANCELS = 10_000


class SamplingStatistics(msgspec.Struct, frozen=True):
    """Figures of a session's sampling pool."""

    samples: BudgetStatistics
    dispatch_bytes: BudgetStatistics
    backing_off_for_s: float


class SamplingPool:
    """Places and bytes for samples, and the back-off they share."""

    def __init__(self, caller: Caller, limits: ClientConfigResponse) -> None:
        self._caller = caller
        self.places = Budget(max(1, limits.sample_max_concurrent_requests))
        self._dispatch = Budget(max(1, limits.sample_dispatch_bytes_semaphore_size))
        self._resume_at = 0.0
        """When submissions go on; 0 while nothing holds them back."""
        self.cancel_enabled = False
        """Whether the server wants to hear of abandoned samples."""
        self._abandoned: deque[str] = deque(maxlen=_MOST_CANCELS)
        self._wake = anyio.Event()

    async def start_dispatch(self, nbytes: int) -> None:
        """Take `nbytes` of the dispatch budget, after any back-off has ended.

        Whoever got them gives them back with `end_dispatch`; cancelled here, nothing is held.
        """
        await self._dispatch.acquire(nbytes)
        if not self._resume_at:
            return
        try:
            await self._wait_out_back_off()
        except BaseException:
            self._dispatch.release(nbytes)
            raise

    async def _wait_out_back_off(self) -> None:
        while (wait_s := self._resume_at - anyio.current_time()) > 0:  # noqa: ASYNC110  # a time, not an event
            # Spread the restart, so that the waiters do not come back as one.
            await anyio.sleep(wait_s * (1 + 0.1 * random.random()))  # noqa: S311  # jitter, no secret
        self._resume_at = 0.0

    def end_dispatch(self, nbytes: int) -> None:
        """Give back what `start_dispatch` took."""
        self._dispatch.release(nbytes)

    def back_off(self, error: RateLimitError, nbytes: int) -> None:
        """Hold all submissions back: as long as the server asks, or 1 s (large: 5 s)."""
        pause_s = _SMALL_PAUSE_S if nbytes <= _SMALL_BYTES else _LARGE_PAUSE_S
        if error.retry_after_s is not None:
            pause_s = min(error.retry_after_s, _LONGEST_PAUSE_S)
        resume_at = anyio.current_time() + pause_s
        if resume_at > self._resume_at:
            self._resume_at = resume_at
            log.info("sampling_backs_off", pause_s=round(pause_s, 3))

    def abandon(self, request_id: str) -> None:
        """Note that nobody waits for a sample any more, so that the server is told."""
        if self.cancel_enabled:
            self._abandoned.append(request_id)
            self._wake.set()

    async def drain_cancels(self) -> None:
        """Tell the server of abandoned samples, until cancelled. Failures do not matter."""
        while True:
            if not self._abandoned:
                self._wake = anyio.Event()
                await self._wake.wait()
                continue
            await self._tell(self._abandoned.popleft())

    async def flush_cancels(self) -> None:
        """Tell the server of all abandoned samples now."""
        while self._abandoned:
            await self._tell(self._abandoned.popleft())

    async def _tell(self, request_id: str) -> None:
        body = wire_json.encode(RetrieveFutureRequest(request_id=request_id))
        try:
            await self._caller.once(endpoints.CANCEL_FUTURE, (body,))
        except TinkerError as error:
            log.debug("cancel_not_told", request_id=request_id, error=type(error).__name__)

    def statistics(self) -> SamplingStatistics:
        """Return the current figures."""
        return SamplingStatistics(
            samples=self.places.statistics(),
            dispatch_bytes=self._dispatch.statistics(),
            backing_off_for_s=max(0.0, self._resume_at - anyio.current_time()),
        )
