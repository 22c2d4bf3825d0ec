"""A fair budget: so much may be in use at once, and waiters are served in order.

Grants are decided in synchronous code; only waiting is asynchronous. A request larger
than the whole budget is granted when nothing else is in use, so it cannot starve.
"""

from __future__ import annotations

from collections import deque

import anyio
import msgspec


class BudgetStatistics(msgspec.Struct, frozen=True):
    """Figures of a `Budget`, in its own unit."""

    limit: int
    in_use: int
    waiting: int


class _Waiter:
    __slots__ = ("amount", "event", "granted")

    def __init__(self, amount: int) -> None:
        self.amount = amount
        self.event = anyio.Event()
        self.granted = False


class Budget:
    """So many units at once, first come first served."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_use = 0
        self._line: deque[_Waiter] = deque()

    def _fits(self, amount: int) -> bool:
        return self._in_use == 0 or self._in_use + amount <= self._limit

    async def acquire(self, amount: int = 1) -> None:
        """Take units, waiting in line for them; whoever has them calls `release`.

        Cancelled while waiting, it leaves the line and takes nothing.
        """
        if not self._line and self._fits(amount):
            self._in_use += amount
            return
        waiter = _Waiter(amount)
        self._line.append(waiter)
        try:
            await waiter.event.wait()
        except BaseException:
            if waiter.granted:
                self.release(amount)
            else:
                self._line.remove(waiter)
                self._grant()
            raise

    def release(self, amount: int = 1) -> None:
        """Give units back and serve the line."""
        self._in_use -= amount
        self._grant()

    def _grant(self) -> None:
        while self._line and self._fits(self._line[0].amount):
            waiter = self._line.popleft()
            waiter.granted = True
            self._in_use += waiter.amount
            waiter.event.set()

    def statistics(self) -> BudgetStatistics:
        """Return the current figures."""
        return BudgetStatistics(limit=self._limit, in_use=self._in_use, waiting=len(self._line))

    def __repr__(self) -> str:
        return f"<Budget {self._in_use} of {self._limit} in use, {len(self._line)} waiting>"
