"""What a 402 means for a session: told at once, and waited out as long as its owner allows.

The rule: all requests of a session share one incident. It begins with the first 402, and ends
when a request to an endpoint that was refused is accepted again.
"""

from __future__ import annotations

import anyio

from tinker_async.errors import BillingError
from tinker_async.events import BillingPaused, Events
from tinker_async.logs import log

_STEP_S = 5.0
_FORGOTTEN_AFTER_S = 300.0
"""Without a 402 for so long, the next one is news."""


class BillingPause:
    """The pause of one session.

    Args:
        events: Whom to tell.
        limit_s: How long requests are repeated, from the first 402 on; 0 repeats none.
    """

    def __init__(self, events: Events, *, limit_s: float) -> None:
        self._events = events
        self._limit_s = limit_s
        self._since: float | None = None
        self._last = 0.0
        self._refused: set[str] = set()

    @property
    def paused(self) -> bool:
        """Whether the server last refused a request for money."""
        return self._since is not None

    @property
    def paused_for_s(self) -> float:
        """Seconds since the incident's first 402; 0 while there is none."""
        return 0.0 if self._since is None else anyio.current_time() - self._since

    def next_delay(self, error: BillingError, operation: str) -> float | None:
        """Return the seconds until the request is sent again, or None to give up."""
        now = anyio.current_time()
        if self._since is None or now - self._last > _FORGOTTEN_AFTER_S:
            self._since = now
            self._tell(error, operation)
        self._last = now
        self._refused.add(error.endpoint)
        left_s = self._since + self._limit_s - now
        return min(_STEP_S, left_s) if left_s > 0 else None

    def note_accepted(self, endpoint: str) -> None:
        """Note a request that was accepted: to one that was refused, it ends the incident."""
        if endpoint in self._refused:
            self._refused.clear()
            self._since = None
            log.info("billing_pause_over", endpoint=endpoint)

    def _tell(self, error: BillingError, operation: str) -> None:
        log.warning("billing_paused", operation=operation, limit_s=self._limit_s)
        self._events.emit(
            BillingPaused(
                operation=operation,
                detail=error.detail or error.message,
                paused_for_s=0.0,
                limit_s=self._limit_s,
            )
        )
