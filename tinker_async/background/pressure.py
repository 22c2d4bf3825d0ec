"""What a server's refusals mean: how many samples may be under way, and when to go on.

A pure decision: no clock, no I/O, no waiting. Rule: only a request sent since the last
decrease can cause another one, so that a burst that is refused as a whole counts once.
"""

from __future__ import annotations

from tinker_async.api.retry import RetryPolicy
from tinker_async.errors import RateLimitError

SMALL_BYTES = 128 * 1024
"""Up to this size a request is small."""
_SMALL_PAUSE = 2.0
_LARGE_PAUSE = 10.0
"""Shortest pauses for small and large requests, in units of the policy's `base_s`."""
_STEPS = 50
"""A window of successes adds at most the ceiling's 50th part, and a quarter of the limit."""


class Pressure:
    """Additive increase, multiplicative decrease, and the pause after a refusal.

    Args:
        ceiling: What the server (or the user) allows at most; the limit starts there.
    """

    __slots__ = (
        "_accepted",
        "_barren",
        "_largest_step",
        "calm",
        "ceiling",
        "limit",
        "refused_since",
        "resume_at",
        "window",
    )

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.limit = ceiling
        """Samples that may be under way, from 1 to `ceiling`."""
        self.window = 0
        """Number of the present window: a decrease begins a new one."""
        self.resume_at = 0.0
        """When submissions go on; 0 before the first refusal."""
        self.calm = True
        """Whether nothing was refused, or all has been made good: acceptances do not count."""
        self.refused_since: float | None = None
        """When the first of the refusals was that no acceptance has followed."""
        self._barren = 0
        """Decreases since the last acceptance."""
        self._accepted = 0
        self._largest_step = max(1, ceiling // _STEPS)

    def lower_ceiling(self, ceiling: int) -> None:
        """Let less be allowed from now on."""
        self.ceiling = min(self.ceiling, ceiling)
        self.limit = min(self.limit, self.ceiling)
        self._largest_step = max(1, self.ceiling // _STEPS)

    def accepted(self, window: int) -> bool:
        """Count a request that the server took, sent in `window`; return whether the limit grew."""
        self.refused_since = None
        self._barren = 0
        if self.limit >= self.ceiling:
            self.calm = True
            return False
        if window != self.window:
            return False
        self._accepted += 1
        if self._accepted < self.limit:
            return False
        self._accepted = 0
        step = max(1, min(self._largest_step, self.limit // 4))
        self.limit = min(self.ceiling, self.limit + step)
        return True

    def refused(self, window: int, *, in_use: int, pause_s: float, now: float) -> bool:
        """Count a refusal of a request that was sent in `window`; return whether the limit fell.

        Args:
            window: The number `window` when the request was sent.
            in_use: Samples under way, this one included.
            pause_s: How long nothing shall be sent.
            now: The time.
        """
        if self.refused_since is None:
            self.refused_since = now
        self.calm = False
        self.resume_at = max(self.resume_at, now + pause_s)
        if window != self.window:
            return False
        self.window += 1
        self._barren += 1
        self._accepted = 0
        self.limit = max(1, min(self.limit, in_use) // 2)
        return True

    def pause_s(
        self, error: RateLimitError, window: int, *, nbytes: int, policy: RetryPolicy
    ) -> float:
        """Return how long to pause after a refusal: never less than the server asks for.

        Our own part is 1 s (large requests: 5 s) with the default policy and doubles while the
        server accepts nothing; `max_s` bounds it, and `max_server_s` the server's.
        """
        units = _SMALL_PAUSE if nbytes <= SMALL_BYTES else _LARGE_PAUSE
        # The others of a burst come after the first has begun a new window.
        doublings = max(0, self._barren - (window != self.window))
        own_s = min(units * policy.base_s * 2.0 ** min(doublings, 30), policy.max_s)
        return max(own_s, min(error.retry_after_s or 0.0, policy.max_server_s))

    def failing_for_s(self, now: float) -> float:
        """Return for how long the server has refused everything."""
        return 0.0 if self.refused_since is None else now - self.refused_since
