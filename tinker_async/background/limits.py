"""A fair budget: so much may be in use at once, and owners take turns in line.

Grants are decided in synchronous code, each in constant time; only waiting is asynchronous.
A request larger than the whole budget is granted when nothing else is in use, so it cannot
starve, and neither can it be overtaken once it is at the head.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

import msgspec

from tinker_async.transport.waiting import Waiter, waiters, wake


class BudgetStatistics(msgspec.Struct, frozen=True):
    """Figures of a `Budget`, in its own unit."""

    limit: int
    in_use: int
    waiting: int


class Claim:
    """Somebody in line, to be awaited by `granting`."""

    __slots__ = ("amount", "granted", "granting", "owner", "queue")

    def __init__(
        self, amount: int, owner: Hashable, queue: OrderedDict[Claim, None], granting: Waiter
    ) -> None:
        self.amount = amount
        self.owner = owner
        self.queue = queue
        self.granting = granting
        self.granted = False


class _Line:
    """The waiters of one owner, in order; those who wait again go first."""

    __slots__ = ("again", "fresh")

    def __init__(self) -> None:
        self.again: OrderedDict[Claim, None] = OrderedDict()
        self.fresh: OrderedDict[Claim, None] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self.again or self.fresh)

    def first(self) -> Claim:
        return next(iter(self.again or self.fresh))


class Budget:
    """So many units at once: owners are served in turn, and each one's waiters in order."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_use = 0
        self._waiting = 0
        self._turns: OrderedDict[Hashable, _Line] = OrderedDict()
        """Owners with somebody in line; the next one to be served is the first."""
        self._new_waiter: Callable[[], Waiter] | None = None

    @property
    def limit(self) -> int:
        """How much may be in use. What is in use above a lowered limit stays granted."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = limit
        self._grant()

    @property
    def in_use(self) -> int:
        """How much is in use."""
        return self._in_use

    def _fits(self, amount: int) -> bool:
        return self._in_use == 0 or self._in_use + amount <= self._limit

    def take(self, amount: int = 1) -> bool:
        """Take units if they are free and nobody waits for them; whoever has them releases them."""
        if self._turns or (self._in_use and self._in_use + amount > self._limit):
            return False
        self._in_use += amount
        return True

    async def acquire(
        self, amount: int = 1, owner: Hashable = None, *, again: bool = False
    ) -> None:
        """Take units, waiting in line for them; whoever has them calls `release`.

        Args:
            amount: How many.
            owner: Whose line to wait in.
            again: Wait before those of the owner's line who never had any.

        Cancelled while waiting, it leaves the line and takes nothing.
        """
        if self.take(amount):
            return
        claim = self.join(amount, owner, again=again)
        try:
            await claim.granting
        except BaseException:
            self.withdraw(claim)
            raise

    def join(self, amount: int, owner: Hashable, *, again: bool = False) -> Claim:
        """Do as `acquire` up to the wait for `granting`; if that fails, `withdraw`."""
        if self._new_waiter is None:
            self._new_waiter = waiters()
        line = self._turns.get(owner)
        if line is None:
            line = self._turns[owner] = _Line()
        queue = line.again if again else line.fresh
        claim = Claim(amount, owner, queue, self._new_waiter())
        queue[claim] = None
        self._waiting += 1
        return claim

    def withdraw(self, claim: Claim) -> None:
        """Leave the line, or give back what was granted meanwhile."""
        if claim.granted:
            self.release(claim.amount)
        else:
            self._leave(claim)
            self._grant()

    def _leave(self, claim: Claim) -> None:
        del claim.queue[claim]
        self._waiting -= 1
        if not self._turns[claim.owner]:
            del self._turns[claim.owner]

    def release(self, amount: int = 1) -> None:
        """Give units back and serve the line."""
        self._in_use -= amount
        if self._turns:
            self._grant()

    def _grant(self) -> None:
        while self._turns:
            owner, line = next(iter(self._turns.items()))
            claim = line.first()
            if not self._fits(claim.amount):
                return
            self._leave(claim)
            if line:
                self._turns.move_to_end(owner)
            claim.granted = True
            self._in_use += claim.amount
            wake(claim.granting)

    def statistics(self) -> BudgetStatistics:
        """Return the current figures."""
        return BudgetStatistics(limit=self._limit, in_use=self._in_use, waiting=self._waiting)

    def __repr__(self) -> str:
        return f"<Budget {self._in_use} of {self._limit} in use, {self._waiting} waiting>"
