"""The sampling pool of a session: how many samples may be under way, and when to hold back.

All samplers of a session share it and take turns. A sample holds one place from before it is
sent until its result is there, and its request's bytes only while it is being sent. A 429 or a
paused queue makes every submission wait; polls go on.
"""

from __future__ import annotations

from collections.abc import Hashable

import anyio
import msgspec

from tinker_async.api.calls import Caller
from tinker_async.api.retry import RetryPolicy, spread
from tinker_async.background.limits import Budget, BudgetStatistics
from tinker_async.background.pressure import Pressure
from tinker_async.background.queue_gate import QueueGate
from tinker_async.background.recalls import Recalls
from tinker_async.errors import RateLimitError
from tinker_async.events import SubmissionsPaused
from tinker_async.logs import log
from tinker_async.wire.messages import ClientConfigResponse, DynamicConfigResponse

_MOST_REDRAWS = 5
_MOST_POLLED_TOGETHER = 100_000
"""Places where one request polls for all samples: such servers have no limit of their own."""


class SamplingStatistics(msgspec.Struct, frozen=True):
    """Figures of a session's sampling pool."""

    samples: BudgetStatistics
    """Places: `limit` is the present one, between 1 and `ceiling`."""
    dispatch_bytes: BudgetStatistics
    """Bytes of the requests that are being sent."""
    backing_off_for_s: float
    """How long new samples still wait after a 429."""
    ceiling: int = 0
    """The server's limit of places, or the user's if that is lower."""
    paused_samples: int = 0
    """Samples of which the server last said that their queue is paused."""
    queue_paused_for_s: float = 0.0
    """How long new samples still wait for a paused queue, if it says nothing more."""
    cancels: int = 0
    """Abandoned samples that the server is still to be told of."""


class SamplingPool:
    """Places and bytes for samples, and the pauses they share.

    Args:
        caller: Sends what the pool itself has to say.
        limits: The server's.
        most: The user's own limit of samples under way.
    """

    def __init__(
        self, caller: Caller, limits: ClientConfigResponse, *, most: int | None = None
    ) -> None:
        limit = max(1, limits.sample_max_concurrent_requests)
        self._limit = limit if most is None else min(limit, most)
        """With polls of their own for all samples."""
        ceiling = _MOST_POLLED_TOGETHER if limits.sample_use_retrieve_futures else limit
        self.pressure = Pressure(ceiling if most is None else min(ceiling, most))
        self.places = Budget(self.pressure.limit)
        self._dispatch = Budget(max(1, limits.sample_dispatch_bytes_semaphore_size))
        self.room = Budget(max(1, limits.inflight_response_bytes_semaphore_size))
        """Bytes of large results that are on their way here."""
        self.most_redraws = 0 if limits.sample_no_retries else _MOST_REDRAWS
        """How often a sample is drawn again whose promise the server has lost."""
        self._gate = QueueGate()
        self._held = False
        """Whether a pause may be on: looked at before each submission."""
        self._opened = anyio.Event()
        self._events = caller.events
        self._recalls = Recalls(caller, self)

    # Submissions

    def try_dispatch(self, nbytes: int) -> bool:
        """Take `nbytes` of the dispatch budget if nothing at all holds a submission back."""
        return not self._held and self._dispatch.take(nbytes)

    async def start_dispatch(self, nbytes: int, owner: Hashable = None) -> None:
        """Take `nbytes` of the dispatch budget, after any pause has ended.

        Whoever got them gives them back with `end_dispatch`; cancelled here, nothing is held.
        """
        if not self._dispatch.take(nbytes):
            claim = self._dispatch.join(nbytes, owner)
            try:
                await claim.granting
            except BaseException:
                self._dispatch.withdraw(claim)
                raise
        if not self._held:
            return
        try:
            await self._wait_out_pauses()
        except BaseException:
            self._dispatch.release(nbytes)
            raise

    async def _wait_out_pauses(self) -> None:
        while True:
            now = anyio.current_time()
            back_off_s = self.pressure.resume_at - now
            queue_s = self._gate.shut_until - now
            if back_off_s <= 0 and queue_s <= 0:
                self._held = False
                return
            if back_off_s > queue_s:
                # Spread the restart, so that the waiters do not come back as one.
                await anyio.sleep(back_off_s * (1 + 0.1 * spread()))
            else:
                with anyio.move_on_after(queue_s):
                    await self._opened.wait()

    def end_dispatch(self, nbytes: int) -> None:
        """Give back what `start_dispatch` took."""
        self._dispatch.release(nbytes)

    # What the server says

    def mind_the_limit(self) -> None:
        """Let no more samples be under way than the server takes polls of single ones."""
        self.pressure.lower_ceiling(self._limit)
        self.places.limit = self.pressure.limit

    def accepted(self, window: int) -> None:
        """Note that the server took a sample that was sent in this window of `pressure`."""
        if self.pressure.accepted(window):
            self.places.limit = self.pressure.limit

    def back_off(
        self,
        error: RateLimitError,
        nbytes: int,
        *,
        policy: RetryPolicy,
        window: int,
    ) -> float:
        """Hold all submissions back after a 429, and let fewer samples be under way.

        Returns:
            The pause, in seconds.
        """
        pressure = self.pressure
        pause_s = pressure.pause_s(error, window, nbytes=nbytes, policy=policy)
        fell = pressure.refused(
            window,
            in_use=self.places.in_use,
            pause_s=pause_s,
            now=anyio.current_time(),
        )
        self._held = True
        if fell:
            self.places.limit = pressure.limit
            self._tell_pause("rate_limit", pause_s)
        return pause_s

    def queue_told(self, sample: Hashable, state: str) -> None:
        """Take in a sample's queue state, as each of its polls tells it."""
        now, before = anyio.current_time(), self._gate.shut_until
        if self._gate.told(sample, state, now):
            self._held = True
            self._tell_pause("queue", self._gate.shut_until - now)
        self._wake_if_sooner(before)

    def ended(self, sample: Hashable, *, completed: bool) -> None:
        """Note that a sample is no longer polled: it has its result, or it was given up."""
        before = self._gate.shut_until
        if completed:
            self._gate.completed()
        else:
            self._gate.forget(sample)
        self._wake_if_sooner(before)

    @property
    def queue_paused(self) -> bool:
        """Whether a paused queue holds new samples back, as far as was told."""
        return bool(self._gate.shut_until)

    def _wake_if_sooner(self, before: float) -> None:
        if self._gate.shut_until < before:
            self._opened.set()
            self._opened = anyio.Event()

    def _tell_pause(self, cause: str, pause_s: float) -> None:
        log.info("submissions_paused", cause=cause, pause_s=round(pause_s, 3))
        if self._events.wanted:
            self._events.emit(SubmissionsPaused(cause, pause_s, self.pressure.limit))

    # Abandoned samples

    def switch_cancels(self, switches: DynamicConfigResponse) -> None:
        """Take in what the server says of abandoned samples; it may change."""
        self._recalls.switch(
            enabled=switches.sample_cancel_enabled, at_once=switches.sample_cancel_max_batch_size
        )

    def abandon(self, request_id: str) -> None:
        """Note that nobody waits for a sample any more, so that the server is told."""
        self._recalls.add(request_id)

    def abandon_unknown(self, body: bytes, nbytes: int) -> None:
        """As `abandon`, of a request that may have arrived but whose id is not known."""
        self._recalls.add_unknown(body, nbytes)

    async def drain_cancels(self) -> None:
        """Tell the server of abandoned samples, until cancelled. Failures do not matter."""
        await self._recalls.run()

    def end_cancels(self) -> None:
        """Let what the server is being told now not hold up the session's end."""
        self._recalls.end()

    async def flush_cancels(self) -> None:
        """Tell the server of all abandoned samples now."""
        await self._recalls.flush()

    def statistics(self) -> SamplingStatistics:
        """Return the current figures."""
        now = anyio.current_time()
        return SamplingStatistics(
            samples=self.places.statistics(),
            dispatch_bytes=self._dispatch.statistics(),
            backing_off_for_s=max(0.0, self.pressure.resume_at - now),
            ceiling=self.pressure.ceiling,
            paused_samples=self._gate.pauses,
            queue_paused_for_s=max(0.0, self._gate.shut_until - now),
            cancels=len(self._recalls),
        )
