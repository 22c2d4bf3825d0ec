"""One HTTP/1.1 connection of the fake server: just enough of the protocol, and its faults.

The rule: while an answer is being made the connection is watched, so that a client that
leaves is noticed and costs nothing.
"""

from __future__ import annotations

import http
from collections.abc import Mapping

import anyio
from anyio.abc import ByteStream

from tinker_async.testing import faults
from tinker_async.testing.answers import Answer
from tinker_async.testing.exchange import Desk, Exchange
from tinker_async.testing.sockets import Closed, reset, split


class Http1Connection:
    """Serves requests one after the other until one side closes."""

    def __init__(self, desk: Desk, stream: ByteStream, first: bytes) -> None:
        self._desk = desk
        self._stream = stream
        self._buffer = bytearray(first)

    async def run(self) -> None:
        """Serve.

        Raises:
            OSError, anyio.EndOfStream, ...: The client has left.
        """
        while await self._serve_one():
            pass

    async def _serve_one(self) -> bool:
        """Serve a request; say whether the connection takes another."""
        kind = self._desk.disguise
        head = b""
        with anyio.move_on_after(None if kind is None else kind.likeness.idle_s):
            head = await self._head()
        if not head:
            return False
        lines = head.split(b"\r\n")
        first = lines[0].decode("latin-1").split(" ")
        headers = dict(_header(line) for line in lines[1:] if line)
        if len(first) != 3 or not headers.get(b"content-length", b"0").isdigit():
            await self._stream.send(_head_of(Answer(400), close=True))
            return False
        exchange = Exchange(self._desk, first[0], first[1], headers)
        try:
            body = await self._body(exchange.fault, headers)
            answer = await self._unless_gone(exchange, body)
            await self._deliver(exchange, answer)
        except Closed:
            return False
        finally:
            exchange.lost()  # unless it was answered
        goes_away = isinstance(exchange.fault, faults.GoAway)
        if answer.closes:
            return False
        return not goes_away and headers.get(b"connection", b"").lower() != b"close"

    async def _head(self) -> bytes:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            self._buffer += await self._stream.receive()
        head = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        return head

    async def _body(self, fault: faults.Fault | None, headers: Mapping[bytes, bytes]) -> bytes:
        """Read a request's body, as far as its fault lets it come."""
        if isinstance(fault, faults.FlowStall):
            await anyio.sleep_forever()
        if isinstance(fault, faults.Refuse) or (
            isinstance(fault, faults.GoAway) and not fault.processed
        ):
            raise Closed
        if isinstance(fault, faults.RstStream):
            self._reset()
        when = fault.when if isinstance(fault, faults.Reset) else None
        if when == "before":
            self._reset()
        if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
            body = await self._chunks()
        else:
            size = int(headers.get(b"content-length", b"0"))
            body = await self._exactly(size // 2 if when == "within" else size)
        if when is not None:
            self._reset()
        return body

    def _reset(self) -> None:
        reset(self._stream)
        raise Closed

    async def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._buffer += await self._stream.receive()
        body = bytes(self._buffer[:size])
        del self._buffer[:size]
        return body

    async def _chunks(self) -> bytes:
        parts = []
        while True:
            while (end := self._buffer.find(b"\r\n")) < 0:
                self._buffer += await self._stream.receive()
            size = int(bytes(self._buffer[:end]).partition(b";")[0], 16)
            del self._buffer[: end + 2]
            parts.append((await self._exactly(size + 2))[:-2])
            if size == 0:
                return b"".join(parts)

    async def _unless_gone(self, exchange: Exchange, body: bytes) -> Answer:
        """Make the answer, but stop when the client closes.

        Raises:
            Closed: It did.
        """
        answers: list[Answer] = []

        async def watch() -> None:
            try:
                while True:
                    self._buffer += await self._stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            answers.append(await exchange.answer(body))
            tasks.cancel_scope.cancel()
        if not answers:
            raise Closed
        return answers[0]

    async def _deliver(self, exchange: Exchange, answer: Answer) -> None:
        """Send an answer, as its fault lets it through.

        Raises:
            Closed: The connection is over.
        """
        fault = exchange.fault
        if isinstance(fault, faults.DropReply):
            self._reset()
        head = _head_of(answer, close=isinstance(fault, faults.GoAway))
        if isinstance(fault, faults.Truncate):
            await self._stream.send(head + answer.body[: int(len(answer.body) * fault.keep)])
            raise Closed
        if isinstance(fault, faults.Trickle):
            pieces = [head, *split(answer.body, fault.chunk_bytes)]
            for piece in pieces[:-1]:
                await self._stream.send(piece)
                await anyio.sleep(fault.pause_s)
            await self._send_last(exchange, pieces[-1])
        else:
            await self._send_last(exchange, head + answer.body)

    async def _send_last(self, exchange: Exchange, data: bytes) -> None:
        exchange.answered()
        try:
            await self._stream.send(data)
        except (OSError, anyio.BrokenResourceError):
            exchange.revoked()
            raise


def _header(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name.strip().lower(), value.strip()


def _head_of(answer: Answer, *, close: bool) -> bytes:
    try:
        phrase = http.HTTPStatus(answer.status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = [f"HTTP/1.1 {answer.status} {phrase}".encode()]
    if answer.status != 204:
        lines.append(b"content-type: " + answer.content_type)
        lines.append(b"content-length: %d" % len(answer.body))
    lines += [name + b": " + value for name, value in answer.headers]
    if close:
        lines.append(b"connection: close")
    return b"\r\n".join([*lines, b"", b""])
