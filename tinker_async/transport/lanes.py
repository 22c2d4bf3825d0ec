"""Who may send now and who has to wait: shares for the traffic classes, and the line.

Both are plain state, changed only between awaits: no I/O, no clock, every step O(1).
Rule: held polls never take the last places, and nothing takes the very last ones but
`TrafficClass.SESSION`, so that a heartbeat always gets through.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import anyio
import msgspec

from tinker_async.transport import TrafficClass

if TYPE_CHECKING:
    from collections.abc import Callable

_SESSION = TrafficClass.SESSION
_POLLING = TrafficClass.POLLING


class TransportStatistics(msgspec.Struct, frozen=True):
    """A transport at one instant, and its totals since it was opened."""

    protocol: str
    connections: int
    """Open, those included that only finish what they have."""
    connecting: int
    in_flight: dict[TrafficClass, int]
    """Requests that hold a connection or a stream."""
    waiting: dict[TrafficClass, int]
    """Requests in line."""
    connections_opened: int
    requests_started: int


class Shares:
    """Counts the places taken of `capacity`, and says which class may take another."""

    __slots__ = ("_bulk_most", "_polls_most", "capacity", "taken", "taken_by")

    def __init__(self, capacity: int) -> None:
        self.taken = 0
        self.taken_by = dict.fromkeys(TrafficClass, 0)
        self.resize(capacity)

    def resize(self, capacity: int) -> None:
        """Set the number of places; what is taken stays taken."""
        self.capacity = capacity
        for_session = min(4, capacity // 8)
        for_submissions = min(32, max(1, capacity // 5)) if capacity > 1 else 0
        self._bulk_most = capacity - for_session
        self._polls_most = capacity - for_session - for_submissions

    def admits(self, traffic: TrafficClass) -> bool:
        """Whether a request of this class may take a place now."""
        if traffic is _SESSION:
            return self.taken < self.capacity
        if self.taken - self.taken_by[_SESSION] >= self._bulk_most or self.taken >= self.capacity:
            return False
        return traffic is not _POLLING or self.taken_by[_POLLING] < self._polls_most

    def take(self, traffic: TrafficClass) -> None:
        """Take a place."""
        self.taken += 1
        self.taken_by[traffic] += 1

    def give_back(self, traffic: TrafficClass) -> None:
        """Free a place."""
        self.taken -= 1
        self.taken_by[traffic] -= 1


class Queued(Protocol):
    """Whatever stands in a line."""

    traffic: TrafficClass
    number: int
    """Given by the line: who came first has the lower one."""


Entry = TypeVar("Entry", bound=Queued)
Place = TypeVar("Place")


class Turns(Generic[Entry]):
    """A line: first come first served, save that `SESSION` goes first.

    A class that may not take a place now lets those behind it pass.
    """

    def __init__(self, longest: int = 100_000) -> None:
        self.longest = longest
        self._queues: dict[TrafficClass, OrderedDict[Entry, None]] = {
            traffic: OrderedDict() for traffic in TrafficClass
        }
        self._handed_out = 0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def waiting(self, traffic: TrafficClass) -> int:
        """How many of this class wait."""
        return len(self._queues[traffic])

    def add(self, entry: Entry) -> None:
        """Queue up at the end."""
        self._handed_out += 1
        entry.number = self._handed_out
        self._queues[entry.traffic][entry] = None
        self._length += 1

    def leave(self, entry: Entry) -> bool:
        """Take somebody out of the line; False if that was done already."""
        queue = self._queues[entry.traffic]
        if entry not in queue:
            return False
        del queue[entry]
        self._length -= 1
        return True

    def first(self, admits: Callable[[TrafficClass], bool]) -> Entry | None:
        """Return (and leave in line) the one whose turn it is, if any is admitted."""
        best: Entry | None = None
        for traffic, queue in self._queues.items():
            if not queue:
                continue
            entry = next(iter(queue))
            if (best is None or entry.number < best.number) and admits(traffic):
                if traffic is _SESSION:
                    return entry
                best = entry
        return best

    def clear(self, each: Callable[[Entry], None]) -> None:
        """Take everybody out of the line, and do this to each."""
        for queue in self._queues.values():
            while queue:
                entry, _ = queue.popitem(last=False)
                self._length -= 1
                each(entry)


class Ticket(Generic[Place]):
    """One waiter: `called` is set when it has a place or an error."""

    __slots__ = ("called", "error", "number", "place", "traffic")

    def __init__(self, traffic: TrafficClass) -> None:
        self.traffic = traffic
        self.number = 0
        self.called = anyio.Event()
        self.place: Place | None = None
        self.error: BaseException | None = None


class Line(Turns[Ticket[Place]]):
    """A line of tasks that wait to be called."""

    def join(self, traffic: TrafficClass) -> Ticket[Place]:
        """Queue up at the end."""
        ticket: Ticket[Place] = Ticket(traffic)
        self.add(ticket)
        return ticket

    def call(self, ticket: Ticket[Place], place: Place) -> None:
        """Give a waiter its place and wake it."""
        self.leave(ticket)
        ticket.place = place
        ticket.called.set()

    def dismiss(self, error: Callable[[], BaseException]) -> None:
        """Fail everybody in line, each with an error of its own."""

        def fail(ticket: Ticket[Place]) -> None:
            ticket.error = error()
            ticket.called.set()

        self.clear(fail)
