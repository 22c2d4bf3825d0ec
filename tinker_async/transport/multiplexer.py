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
from tinker_async.transport.http2 import Connection, KeepAlive
from tinker_async.transport.lanes import Line, Shares, Ticket, TransportStatistics

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
        self._line: Line[Connection] = Line()
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
            connection = self._seat(request.traffic)
            if connection is None:
                connection = await self._seat_later(request.traffic)
            self._requests += 1
            response = await connection.exchange(request, silence_s)
            if response is not None:
                return response
        raise unsent_error(self._origin.address, "the server closes every connection at once")

    # -- places ------------------------------------------------------------------------

    def _seat(self, traffic: TrafficClass) -> Connection | None:
        """Take a place if one is free and nobody waits for it."""
        if self._line.waiting(traffic) or not self._shares.admits(traffic):
            return None
        for connection in self._connections:
            if connection.open and connection.shares.admits(traffic):
                self._take(connection, traffic)
                return connection
        return None

    def _take(self, connection: Connection, traffic: TrafficClass) -> None:
        self._shares.take(traffic)
        shares = connection.shares
        shares.take(traffic)
        if shares.taken * 4 >= shares.capacity * 3 and connection is self._connections[-1]:
            self._grow(at_least=1)

    async def _seat_later(self, traffic: TrafficClass) -> Connection:
        """Wait in line for a place on a connection that is open."""
        while True:
            if self.closing:
                raise closed_error(self._origin.address)
            if len(self._line) >= self._line.longest:
                raise unsent_error(self._origin.address, "too many requests wait to be sent")
            ticket = self._line.join(traffic)
            self._grow()
            try:
                await ticket.called.wait()
            except BaseException:
                self._give_up(ticket)
                raise
            if ticket.error is not None:
                raise ticket.error
            connection = ticket.place
            if connection is not None and connection.open:
                return connection
            self._give_up(ticket)  # it ended between the promise and now

    def _give_up(self, ticket: Ticket[Connection]) -> None:
        if not self._line.leave(ticket) and ticket.place is not None:
            self.vacated(ticket.place, ticket.traffic)

    def vacated(self, connection: Connection, traffic: TrafficClass) -> None:
        """Take back a place and give it to whoever is next."""
        connection.shares.give_back(traffic)
        self._shares.give_back(traffic)
        if self._line:
            if connection.open:
                self._serve(connection)
            if self._line:
                self._grow()

    def _serve(self, connection: Connection) -> None:
        """Give the free places of a connection to those in line."""
        shares = connection.shares
        while self._line:
            ticket = self._line.first(
                lambda traffic: shares.admits(traffic) and self._shares.admits(traffic)
            )
            if ticket is None:
                return
            self._take(connection, ticket.traffic)
            self._line.call(ticket, connection)

    # -- connections -------------------------------------------------------------------

    def _grow(self, at_least: int = 0) -> None:
        """Start as many connections as the line asks for, within bounds."""
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
        self._line.dismiss(lambda: copy_error(error))

    def is_spare(self, connection: Connection) -> bool:
        """Whether others have room enough for what comes."""
        return connection in self._connections[1:]

    async def close(self) -> None:
        """Refuse new requests and fail those in line; connections end with the task group."""
        self.closing = True
        self._line.dismiss(lambda: closed_error(self._origin.address))
