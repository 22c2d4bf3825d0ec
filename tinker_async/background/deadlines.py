"""The deadlines of queued operations: one task fails each future whose time is over.

The rule: it decides about futures only, never about the server. What was not sent is thereby
withdrawn; what is being sent is sent; what was accepted goes on without anybody who waits.
Where no operation has a deadline, no task runs.
"""

from __future__ import annotations

import heapq
from typing import Any

import anyio
import anyio.abc

from tinker_async.futures import APIFuture

_MOST_STALE = 100
"""Entries of settled futures that are kept, if they are not more than half of all."""


class _Entry:
    """A future's deadline; the earliest is the least."""

    __slots__ = ("at", "future", "timeout_s")

    def __init__(self, at: float, future: APIFuture[Any], timeout_s: float) -> None:
        self.at = at
        self.future: APIFuture[Any] | None = future
        self.timeout_s = timeout_s

    def __lt__(self, other: _Entry) -> bool:
        return self.at < other.at


class Deadlines:
    """The deadlines of one session, kept by a task in `tasks` from the first one on."""

    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        self._tasks = tasks
        self._heap: list[_Entry] = []
        self._entries: dict[APIFuture[Any], _Entry] = {}
        self._wake = anyio.Event()
        self._running = False

    def add(self, future: APIFuture[Any], timeout_s: float) -> None:
        """Fail a future that has no result in `timeout_s` from now."""
        entry = _Entry(anyio.current_time() + timeout_s, future, timeout_s)
        self._entries[future] = entry
        heapq.heappush(self._heap, entry)
        if not self._running:
            self._running = True
            self._tasks.start_soon(self._run)
        elif self._heap[0] is entry:
            self._wake.set()

    def discard(self, future: APIFuture[Any]) -> None:
        """Forget a future, and what it holds: it is settled."""
        entry = self._entries.pop(future, None)
        if entry is None:
            return
        entry.future = None
        stale = len(self._heap) - len(self._entries)
        if stale > _MOST_STALE and stale > len(self._entries):
            self._heap = [entry for entry in self._heap if entry.future is not None]
            heapq.heapify(self._heap)

    def __len__(self) -> int:
        """Entries that are kept, stale ones included."""
        return len(self._heap)

    async def _run(self) -> None:
        while True:
            now = anyio.current_time()
            while self._heap and (self._heap[0].future is None or self._heap[0].at <= now):
                _expire(heapq.heappop(self._heap))
            self._wake = anyio.Event()
            wait_s = self._heap[0].at - now if self._heap else None
            with anyio.move_on_after(wait_s):
                await self._wake.wait()


def _expire(entry: _Entry) -> None:
    future = entry.future
    if future is None or future.done:
        return
    if not future.sent:
        hint = "it was withdrawn before it was sent, and never ran"
    elif future.request_id is None:
        hint = "it was being sent and may still run; look at the server's state before going on"
    else:
        hint = "the server goes on with it; only its result is lost here"
    future.fail(future.timed_out(entry.timeout_s, hint))
