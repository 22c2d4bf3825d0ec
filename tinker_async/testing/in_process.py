"""The fake server without a socket: a `Transport` whose requests are function calls.

What a fault does to a connection comes out as the error that the real transports raise
for it. The rule: a request takes no longer than the server lets it take, so that tests in
virtual time need no wall-clock time at all.
"""

from __future__ import annotations

import anyio

from tinker_async.errors import ConnectError, ProtocolError, RequestTimeoutError
from tinker_async.testing import faults
from tinker_async.testing.answers import Answer
from tinker_async.testing.exchange import Desk, Exchange
from tinker_async.testing.script import CONNECT
from tinker_async.transport import Request, Response, TrafficClass
from tinker_async.transport.lanes import TransportStatistics

WHERE = "the fake server"
_REFUSED_STREAM = 7


class InProcessTransport:
    """Sends requests to a fake server in the same event loop."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._connected = False
        self._connections = 0
        self._requests = 0
        self._in_flight = dict.fromkeys(TrafficClass, 0)

    def statistics(self) -> TransportStatistics:
        """Return what is going on now, and totals."""
        nothing = dict.fromkeys(TrafficClass, 0)
        return TransportStatistics(
            "in process",
            int(self._connected),
            0,
            dict(self._in_flight),
            nothing,
            self._connections,
            self._requests,
        )

    async def request(self, request: Request, *, silence_s: float | None = None) -> Response:
        """Send a request and return the whole response; see `Transport.request`."""
        await anyio.lowlevel.checkpoint()
        self._connect()
        self._requests += 1
        self._in_flight[request.traffic] += 1
        if request.receipt is not None:
            request.receipt.on_wire = True
        exchange = Exchange(self._desk, request.method, request.path, dict(request.headers))
        try:
            return await self._exchanged(exchange, request, silence_s)
        finally:
            self._in_flight[request.traffic] -= 1
            exchange.lost()  # unless it was answered

    def _connect(self) -> None:
        """Make the connection, unless there is one: that it does not break is a fault's doing."""
        if self._connected:
            return
        self._desk.ledger.connections += 1
        fault = self._desk.faults.choose(CONNECT)
        if isinstance(fault, faults.TlsDrop):
            raise ConnectError(f"{WHERE} ended the connection during the TLS handshake")
        if fault is not None:
            raise ConnectError(f"nothing listens on {WHERE}")
        self._connected = True
        self._connections += 1

    async def _exchanged(
        self, exchange: Exchange, request: Request, silence_s: float | None
    ) -> Response:
        self._break_before(exchange.fault)
        answer: Answer | None = None
        with anyio.move_on_after(silence_s):
            if isinstance(exchange.fault, faults.FlowStall):
                await anyio.sleep_forever()
            answer = await exchange.answer(b"".join(request.body))
        if answer is None:
            raise RequestTimeoutError(f"{WHERE} was silent for {silence_s:g} s")
        await self._deliver(exchange.fault, answer, silence_s)
        exchange.answered()
        headers = ((b"content-type", answer.content_type), *answer.headers)
        return Response(answer.status, headers, answer.body)

    def _break_before(self, fault: faults.Fault | None) -> None:
        """Raise for what ends a request before it was processed."""
        if isinstance(fault, faults.Reset):
            self._connected = False
            raise ProtocolError(f"the connection to {WHERE} broke: reset {fault.when} the body")
        if isinstance(fault, faults.RstStream):
            text = f"{WHERE} ended the stream with code {fault.code}"
            raise (ConnectError if fault.code == _REFUSED_STREAM else ProtocolError)(text)
        refuses = isinstance(fault, faults.Refuse)
        if refuses or (isinstance(fault, faults.GoAway) and not fault.processed):
            self._connected = False
            raise ConnectError(f"{WHERE} refused the request")

    async def _deliver(
        self, fault: faults.Fault | None, answer: Answer, silence_s: float | None
    ) -> None:
        """Let the answer go its way; raise if it does not get through."""
        if isinstance(fault, faults.DropReply):
            self._connected = False
            raise ProtocolError(f"{WHERE} closed the connection before it had answered")
        if isinstance(fault, faults.Truncate):
            self._connected = False
            raise ProtocolError(f"{WHERE} ended its answer too early")
        if isinstance(fault, faults.GoAway):
            self._connected = False
        if isinstance(fault, faults.Trickle):
            if silence_s is not None and fault.pause_s > silence_s:
                await anyio.sleep(silence_s)
                raise RequestTimeoutError(f"{WHERE} was silent for {silence_s:g} s")
            for _ in range(0, len(answer.body), fault.chunk_bytes):
                await anyio.sleep(fault.pause_s)
