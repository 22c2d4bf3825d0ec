"""`python -m benchmarks.stub_server`: serves until standard input ends.

Prints one line of JSON with the ports: `plain` (HTTP/1.1, and h2 by prior knowledge), `tls`
(both, by ALPN), and `control`, where any connection gets the process's figures as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import ssl
import sys
from pathlib import Path

import trustme
import uvloop

from benchmarks.stub_server.answers import Desk
from benchmarks.stub_server.http1 import Http1Connection
from benchmarks.stub_server.http2 import PREFACE, Http2Connection

_BACKLOG = 4096


class _Front(asyncio.Protocol):
    """Looks at the first bytes of a connection and hands it to whom they belong."""

    def __init__(self, desk: Desk, max_streams: int) -> None:
        self._desk = desk
        self._max_streams = max_streams
        self._first = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._first += data
        if PREFACE.startswith(self._first[: len(PREFACE)]):
            if len(self._first) < len(PREFACE):
                return
            self._hand_to(Http2Connection(self._desk, self._transport, self._max_streams))  # type: ignore[arg-type]
        else:
            self._hand_to(Http1Connection(self._desk, self._transport))  # type: ignore[arg-type]

    def _hand_to(self, protocol: Http1Connection | Http2Connection) -> None:
        self._transport.set_protocol(protocol)
        protocol.data_received(self._first)


class _Control(asyncio.Protocol):
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        figures = {
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "requests": self._desk.requests,
            "body_bytes": self._desk.body_bytes,
        }
        transport.write(json.dumps(figures).encode())  # type: ignore[attr-defined]
        transport.close()


def _certificate(folder: Path) -> ssl.SSLContext:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


async def _serve(folder: Path, max_streams: int) -> None:
    loop = asyncio.get_running_loop()
    desk = Desk()
    context = _certificate(folder)

    async def listen(secure: ssl.SSLContext | None, *, control: bool = False) -> int:
        server = await loop.create_server(
            lambda: _Control(desk) if control else _Front(desk, max_streams),
            "127.0.0.1",
            0,
            ssl=secure,
            backlog=_BACKLOG,
        )
        port: int = server.sockets[0].getsockname()[1]
        servers.append(server)
        return port

    servers: list[asyncio.Server] = []
    ports = {
        "plain": await listen(None),
        "tls": await listen(context),
        "control": await listen(None, control=True),
    }
    print(json.dumps({**ports, "authority": str(folder / "authority.pem")}), flush=True)
    over = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), over.set)
    await over.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, required=True, help="for the authority's certificate"
    )
    parser.add_argument("--max-streams", type=int, default=250, help="on one HTTP/2 connection")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    uvloop.run(_serve(options.folder, options.max_streams))


if __name__ == "__main__":
    main()
