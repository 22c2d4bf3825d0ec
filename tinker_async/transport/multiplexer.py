"""HTTP/2 requests spread over as few connections as the peer allows.

Decides in synchronous functions who gets which place; awaiting comes after. Rule: a place is
taken when it is promised and given back exactly once, by the connection that held it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from tinker_async.errors import ConnectError, TransportError
from tinker_async.transport import Request, Response, TrafficClass
from tinker_async.transport.failures import closed_error, copy_error, unsent_error
from tinker_async.transport.http2 import Connection, KeepAlive, Stream
from tinker_async.transport.lanes import Shares, TransportStatistics, Turns
from tinker_async.transport.waiting import waiters

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import ByteStream

    from tinker_async.transport.origin import Origin
    from tinker_async.transport.tasks import LastingTasks

_ATTEMPTS = 3
"""For a request that the server has not looked at because it ended the connection (many end
each one after so many requests): the only repetition that is not the retry policy's."""
_PARALLEL_DIALS = 4
_ASSUMED_STREAMS = 100
_PAUSE_AFTER_FAILURE_S = 1.0


class Multiplexer:
    """A `Transport` over HTTP/2. Lives inside `open_transport`, whose task group it uses."""

    def __init__(
        self,
        origin: Origin,
        dial: Callable[[], Awaitable[ByteStream]],
        tasks: LastingTasks,
        *,
        max_connections: int,
        connect_timeout_s: float,
        keep_alive: KeepAlive | None = None,
    ) -> None:
        self._origin = origin
        self._dial = dial
        self._tasks = tasks
        self._most = max_connections
        self._timeout_s = connect_timeout_s
        self._keep_alive = keep_alive or KeepAlive()
        self.closing = False
        self._connections: list[Connection] = []
        """Those that take requests, in the order in which they are filled."""
        self._ending: set[Connection] = set()
        self._dialling = 0
        self._dial_again_at = 0.0
        self._typical = _ASSUMED_STREAMS
        self._shares = Shares(max_connections * _ASSUMED_STREAMS)
        self._line: Turns[Stream] = Turns()
        self._new_waiter = waiters()
        self._opened = 0
        self._requests = 0

    def __repr__(self) -> str:
        return (
            f"<Multiplexer {self._origin.address} h2: {len(self._connections)} connections"
            f" ({self._dialling} connecting, {len(self._ending)} ending),"
            f" {self._shares.taken} in flight, {len(self._line)} waiting>"
        )

    def statistics(self) -> TransportStatistics:
        """Return what is going on now, and totals."""
        return TransportStatistics(
            protocol="h2",
            connections=len(self._connections) + len(self._ending),
            connecting=self._dialling,
            in_flight=dict(self._shares.taken_by),
            waiting={traffic: self._line.waiting(traffic) for traffic in TrafficClass},
            connections_opened=self._opened,
            requests_started=self._requests,
        )

    async def request(self, request: Request, *, silence_s: float | None = None) -> Response:
        """Send a request and return the whole response; see `Transport.request`."""
        for _ in range(_ATTEMPTS):
            stream = Stream(request, silence_s, self._new_waiter())
            self._begin(stream)
            try:
                await stream.waiter
            finally:
                if not stream.ended:
                    self._give_up(stream)
            if stream.error is not None:
                raise stream.error
            if stream.connection is not None and not stream.unread:
                return stream.connection.response(stream)
        raise unsent_error(self._origin.address, "the server closes every connection at once")

    def _give_up(self, stream: Stream) -> None:
        if stream.connection is None:
            self._line.leave(stream)
        else:
            stream.connection.abandon(stream, None)

    # -- places ------------------------------------------------------------------------

    def _begin(self, stream: Stream) -> None:
        """Start a request on a connection, or put it in line if there is no place."""
        traffic = stream.traffic
        if not self._line.waiting(traffic) and self._shares.admits(traffic):
            for connection in self._connections:
                if connection.open and connection.shares.admits(traffic):
                    self._send(connection, stream)
                    return
        if self.closing:
            raise closed_error(self._origin.address)
        if len(self._line) >= self._line.longest:
            raise unsent_error(self._origin.address, "too many requests wait to be sent")
        self._line.add(stream)
        self._grow()

    def _send(self, connection: Connection, stream: Stream) -> None:
        traffic, shares = stream.traffic, connection.shares
        self._shares.take(traffic)
        shares.take(traffic)
        try:
            connection.start(stream)
        except BaseException:
            shares.give_back(traffic)
            self._shares.give_back(traffic)
            raise
        self._requests += 1
        if shares.taken * 4 >= shares.capacity * 3 and connection is self._connections[-1]:
            self._grow(at_least=1)

    def vacated(self, connection: Connection, traffic: TrafficClass) -> None:
        """Take back a place and, unless more is to come, give it to whoever is next."""
        connection.shares.give_back(traffic)
        self._shares.give_back(traffic)
        if connection.reading:
            connection.has_vacated = True
        elif self._line:
            self.refill(connection)

    def refill(self, connection: Connection) -> None:
        """Give the free places of a connection to those in line."""
        if self._line:
            self._serve(connection)
        if self._line:
            self._grow()

    def _serve(self, connection: Connection) -> None:
        """Start those in line for whom a connection has places."""
        shares = connection.shares
        while self._line and connection.open and shares.taken < shares.capacity:
            stream = self._line.first(
                lambda traffic: shares.admits(traffic) and self._shares.admits(traffic)
            )
            if stream is None:
                return
            self._line.leave(stream)
            try:
                self._send(connection, stream)
            except Exception as error:  # noqa: BLE001 - we are in another's task: this one's own
                stream.settle(error)

    # -- connections -------------------------------------------------------------------

    def _grow(self, at_least: int = 0) -> None:
        """Start as many connections as the line asks for, within bounds."""
        if self._dialling >= _PARALLEL_DIALS or (self._dialling and not self._line):
            return  # the most frequent cases, of many requests at once
        wanted = at_least
        if self._line and self._line.first(self._shares.admits) is not None:
            wanted = max(wanted, -(-len(self._line) // max(1, self._typical)))
        room = self._most - len(self._connections) - self._dialling
        number = min(min(wanted, _PARALLEL_DIALS) - self._dialling, room)
        if number <= 0 or self.closing:
            return
        if self._connections and anyio.current_time() < self._dial_again_at:
            return
        for _ in range(number):
            self._dialling += 1
            self._tasks.start_soon(self._connect, None)

    def adopt(self, wire: ByteStream) -> None:
        """Use a stream that is connected already."""
        self._dialling += 1
        self._tasks.start_soon(self._connect, wire)

    async def _connect(self, wire: ByteStream | None) -> None:
        """Make a connection, hand it to its own task, and serve the line with it."""
        error: TransportError | None = None
        try:
            if wire is None:
                wire = await self._dial()
            connection = Connection(wire, self._origin, self, keep_alive=self._keep_alive)
            await self._start(connection)
        except TransportError as failure:
            error = failure
        except BaseException:
            # Cancelled: perhaps before the connection's own task could take its first step.
            if wire is not None:
                await anyio.aclose_forcefully(wire)
            raise
        finally:
            self._dialling -= 1
        if error is None and not connection.open:
            error = unsent_error(self._origin.address, "the server ended the connection at once")
        if error is not None:
            self._dial_failed(error)
        else:
            self._admit(connection)

    async def _start(self, connection: Connection) -> None:
        with anyio.move_on_after(self._timeout_s):
            await self._tasks.start(connection.run)
            return
        raise ConnectError(
            f"{self._origin.address} sent no HTTP/2 settings within {self._timeout_s:g} s",
            hint="does the server speak HTTP/2?",
        )

    def _admit(self, connection: Connection) -> None:
        self._opened += 1
        self._connections.append(connection)
        self.changed(connection)

    def changed(self, connection: Connection) -> None:
        """Follow a connection's capacity and state."""
        if connection not in self._connections:
            self._ending.discard(connection)
            return
        if connection.open:
            self._typical = max(1, connection.shares.capacity)
            self._shares.resize(self._most * self._typical)
            self._serve(connection)
        else:
            self._connections.remove(connection)
            if connection.shares.taken:
                self._ending.add(connection)
        if self._line:
            self._grow()

    def _dial_failed(self, error: TransportError) -> None:
        self._dial_again_at = anyio.current_time() + _PAUSE_AFTER_FAILURE_S
        if self._connections or self._dialling:
            return  # those in line are served as places become free
        self._line.clear(lambda stream: stream.settle(copy_error(error)))

    def is_spare(self, connection: Connection) -> bool:
        """Whether others have room enough for what comes."""
        return connection in self._connections[1:]

    async def close(self) -> None:
        """Refuse new requests and fail those in line; connections end with the task group."""
        self.closing = True
        self._line.clear(lambda stream: stream.settle(closed_error(self._origin.address)))
