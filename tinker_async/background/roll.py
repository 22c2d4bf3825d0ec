"""Which samples of a sampler wait to be told that they are done, and which ask for themselves.

A pure decision: no clock, no I/O, no waiting. Rule: some always ask for themselves. Their polls
say what a list of what is done does not: queue states, failures, a server that has fallen
silent, and that the list has left something out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from tinker_async.transport.waiting import Waiter, waiters, wake
from tinker_async.wire.messages import FutureCompletion

FEW_ASKING = 64
"""So many ask for themselves while all is well: a program with no more needs no list at all."""
LONG_S = 60.0
"""Whoever has waited for longer asks once, lest the list has left it out."""
AT_ONCE_S = 0.5
_MOST_UNCLAIMED = 4096
"""Completions that are remembered for samples whose promise is still on its way here."""
_FRESH = float("-inf")


class Roll:
    """The samples of one sampler whose results are outstanding."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, tuple[Waiter, float]] = OrderedDict()
        """Those that wait to be told, the oldest first, and since when."""
        self._asking: dict[str, float] = {}
        """Those that ask for themselves, and since when, if they had waited before."""
        self._done: dict[str, int] = {}
        """Those that are done, with the sizes of their results in bytes (0: not known)."""
        self._unclaimed: OrderedDict[str, int] = OrderedDict()
        """As before, of samples that have not joined so far, or have left."""
        self._few = FEW_ASKING
        self._now = 0.0
        """When the list was last heard of."""
        self._all_ask = False
        self._new_waiter: Callable[[], Waiter] | None = None

    @property
    def waiting(self) -> int:
        """How many wait to be told."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether nothing is outstanding."""
        return not (self._waiting or self._asking)

    # One sample

    def join(self, request_id: str) -> Waiter | None:
        """Add a sample that has its promise.

        Returns:
            What to wait for before it asks for its result; None: it asks at once.
        """
        if request_id in self._unclaimed:
            self._done[request_id] = self._unclaimed.pop(request_id)
            return None
        if self._all_ask or len(self._asking) < self._few:
            self._asking[request_id] = _FRESH
            return None
        return self._wait(request_id)

    def join_again(self, request_id: str, now: float) -> Waiter | None:
        """As `join`, after it has asked and there was no result: it is another one's turn."""
        if request_id in self._done or self._all_ask:
            return None
        self._asking.pop(request_id, None)
        if self._waiting:
            self._hand_on(now)
        return self._wait(request_id)

    def _wait(self, request_id: str) -> Waiter:
        if self._new_waiter is None:
            self._new_waiter = waiters()
        waiter = self._new_waiter()
        self._waiting[request_id] = (waiter, self._now)
        return waiter

    def size_of(self, request_id: str) -> int:
        """Return the size that was told of a result, in bytes; 0 if none was."""
        return self._done.get(request_id, 0)

    def had_waited(self, request_id: str) -> bool:
        """Whether a sample asks for itself after it has waited, and was not told since."""
        return self._asking.get(request_id, _FRESH) != _FRESH and request_id not in self._done

    def found(self, request_id: str, now: float) -> None:
        """Note that one that had waited has its result.

        If that was there at once, the list has left it out, as it seems, and perhaps others: then
        twice as many ask next, and so soon all.
        """
        if now - self._asking[request_id] < AT_ONCE_S and self._waiting:
            self._few = max(1, 2 * self._few)
            self._hand_on(now)

    def leave(self, request_id: str) -> None:
        """Take a sample off: it has its result, or nobody wants it any more."""
        self._done.pop(request_id, None)
        if self._asking.pop(request_id, None) is None:
            self._waiting.pop(request_id, None)
        if not self._waiting:
            self._few = FEW_ASKING

    # All of them

    def tell(self, completions: Iterable[FutureCompletion], now: float) -> int:
        """Take in what the server says is done; return how many waited for that."""
        self._now = now
        woken = 0
        for one in completions:
            size = one.response_payload_uncompressed_size
            size = size if size and size > 0 else 0
            waiting = self._waiting.pop(one.request_id, None)
            if waiting is not None:
                wake(waiting[0])
                woken += 1
            elif one.request_id not in self._asking:
                self._unclaimed[one.request_id] = size
                continue
            self._done[one.request_id] = size
        while len(self._unclaimed) > _MOST_UNCLAIMED:
            self._unclaimed.popitem(last=False)
        if woken:
            self._few = FEW_ASKING
        if not woken or self._oldest_since() < now - LONG_S:
            self._hand_on(now)
        return woken

    def nothing_told(self, now: float) -> None:
        """Note a poll that brought nothing."""
        self._now = now
        self._hand_on(now)

    def all_ask(self) -> None:
        """Let every sample ask for itself, present and future ones, until `some_ask`."""
        self._all_ask = True
        self._hand_on(_FRESH)

    def some_ask(self) -> None:
        """End that: new samples wait again."""
        self._all_ask = False

    def ask_once(self, now: float) -> None:
        """Let every present sample ask for itself once: the list has begun anew."""
        few, self._few = self._few, len(self._asking) + len(self._waiting)
        self._hand_on(now)
        self._few = few

    def _oldest_since(self) -> float:
        for _, since in self._waiting.values():
            return since
        return float("inf")

    def _hand_on(self, now: float) -> None:
        """Let the oldest ask for themselves while there are too few that do."""
        few = max(1, self._few)
        while self._waiting and (self._all_ask or len(self._asking) < few):
            request_id, (waiter, _) = self._waiting.popitem(last=False)
            self._asking[request_id] = now
            wake(waiter)
