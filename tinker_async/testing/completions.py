"""Which samples of one client of a sampler are done, by position, for its session poller.

No task belongs to it: it looks when it is asked. The rule: what has a position keeps it, and
what a cursor has passed is gone.
"""

from __future__ import annotations

import anyio

from tinker_async.testing.promises import Promise


class Completions:
    """Those of one client of one sampler, in the order in which they became visible."""

    def __init__(self) -> None:
        self._coming: list[Promise] = []
        self._passed = 0
        """How many are gone."""
        self._done: list[Promise] = []
        self._changed = anyio.Event()

    def add(self, promise: Promise) -> None:
        """Add a sample that is under way."""
        self._coming.append(promise)
        promise.on_change = self.wake
        self.wake()

    def look(self, now: float) -> None:
        """Take in what has become due."""
        if now < self.next_due_s:
            return
        due = [one for one in self._coming if one.computed and one.due_s <= now]
        self._coming = [one for one in self._coming if not one.computed or one.due_s > now]
        self._done += sorted(due, key=lambda one: one.due_s)

    @property
    def cursor(self) -> int:
        """The position of the last."""
        return self._passed + len(self._done)

    @property
    def next_due_s(self) -> float:
        """When the next one becomes due."""
        return min((one.due_s for one in self._coming if one.computed), default=float("inf"))

    def after(self, cursor: int) -> list[Promise]:
        """Return those behind a cursor, and forget those that it has passed."""
        gone = max(0, min(cursor - self._passed, len(self._done)))
        self._passed += gone
        del self._done[:gone]
        return list(self._done)

    def wake(self) -> None:
        """Let the polls look again."""
        self._changed.set()
        self._changed = anyio.Event()

    async def change(self, longest_s: float) -> None:
        """Return when something has changed, or after `longest_s`."""
        changed = self._changed
        with anyio.move_on_after(longest_s):
            await changed.wait()
