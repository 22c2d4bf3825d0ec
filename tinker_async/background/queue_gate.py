"""The gate before new samples: shut while the server says that its queue is paused.

A pure decision: no clock, no waiting. Rule: the longest of the active pauses counts; a pause
ends when its own sample says `active` or is no longer waited for, when any sample has its
result, or at the latest `PAUSE_S` after the server last told of it.
"""

from __future__ import annotations

from collections.abc import Hashable

PAUSE_S = 60.0
"""Longer than a server holds a poll, so that each answer can renew the pause."""


class QueueGate:
    """The pauses that the polls of samples have told of."""

    __slots__ = ("_pauses", "shut_until")

    def __init__(self) -> None:
        self._pauses: dict[Hashable, float] = {}
        self.shut_until = 0.0
        """When the gate opens by itself; 0 while it is open."""

    @property
    def pauses(self) -> int:
        """Samples whose queue is paused."""
        return len(self._pauses)

    def told(self, sample: Hashable, state: str, now: float) -> bool:
        """Take in what a poll said of a sample's queue; return whether that shut the gate."""
        if not state.startswith("paused"):
            self.forget(sample)
            return False
        was_open = self.shut_until <= now
        self._pauses[sample] = now + PAUSE_S
        self.shut_until = max(self.shut_until, now + PAUSE_S)
        return was_open

    def forget(self, sample: Hashable) -> None:
        """End one sample's pause, if it has one."""
        until = self._pauses.pop(sample, None)
        if until is not None and until >= self.shut_until:
            self.shut_until = max(self._pauses.values(), default=0.0)

    def completed(self) -> None:
        """End all pauses: a result means that the queue moves."""
        self._pauses.clear()
        self.shut_until = 0.0
