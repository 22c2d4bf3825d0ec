"""One HTTP/1.1 connection of the stub: heads searched by bytes, no parser.

One request at a time, as clients send them; a request that comes early waits in the buffer.
"""

from __future__ import annotations

import asyncio
import time

from benchmarks.stub_server.answers import Answer, Asked, Desk

_REASON = {200: b"200 OK", 404: b"404 Not Found"}


class Http1Connection(asyncio.Protocol):
    """Serves one connection; call `data_received` with its first bytes."""

    def __init__(self, desk: Desk, transport: asyncio.Transport) -> None:
        self._desk = desk
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._parts: list[bytes] = []
        self._size = 0
        self._need = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_lost(self, _error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size < self._need or self._timer is not None:
            return
        buffer = data if len(self._parts) == 1 else b"".join(self._parts)
        self._parts, self._size, self._need = [buffer], len(buffer), 0
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = buffer[:end].lower()
        whole = end + 4 + _body_bytes(head)
        if len(buffer) < whole:
            self._need = whole
            if b"\nexpect: 100-continue" in head:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return
        rest = buffer[whole:]
        self._parts, self._size = ([rest], len(rest)) if rest else ([], 0)
        path = buffer[: buffer.index(b"\r\n")].split(b" ")[1].decode()
        accept = head.find(b"\naccept: application/x-protobuf") >= 0
        zstd = head.find(b"\ncontent-encoding: zstd") >= 0
        self._send_when_due(
            self._desk.answer(path, Asked(buffer[end + 4 : whole], accept, is_zstd=zstd))
        )

    def _send_when_due(self, answer: Answer) -> None:
        if answer.due_ns and (wait_ns := answer.due_ns - time.monotonic_ns()) > 0:
            self._timer = self._loop.call_later(wait_ns / 1e9, self._send, answer)
        else:
            self._send(answer)

    def _send(self, answer: Answer) -> None:
        self._timer = None
        body = answer.content()
        kind = b"application/x-protobuf" if answer.is_protobuf else b"application/json"
        self._transport.write(
            b"HTTP/1.1 %s\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n%s"
            % (_REASON[answer.status], kind, len(body), body)
        )
        if self._size:
            self.data_received(b"")


def _body_bytes(head: bytes) -> int:
    at = head.find(b"\ncontent-length:")
    if at < 0:
        return 0
    end = head.find(b"\r", at)
    return int(head[at + 16 : end if end >= 0 else None])
