"""The sockets under httpcore: anyio's, on every event loop, and every one of them accounted for.

The rule: what is opened is closed when its download ends, however it ends. Connecting and
reading raise errors of this library, which httpcore lets through.
"""

from __future__ import annotations

import select
import ssl
from collections.abc import Iterable
from typing import Any

import anyio
import httpcore
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSAttribute, TLSStream

from tinker_async.errors import ConnectError, ProtocolError, RequestTimeoutError
from tinker_async.transport.failures import STREAM_FAILURES, broken_error, connect_error

_AGAIN = "call again: what was received is kept and gone on from"


class Stream(httpcore.AsyncNetworkStream):
    """One connection, plain or encrypted."""

    def __init__(self, stream: ByteStream, where: str, network: Network) -> None:
        self._stream = stream
        self._where = where
        self._network = network
        self.given_up = False
        """Whether every read fails at once, so that readers end without waiting."""
        network.open.add(self)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109  # httpcore's signature
        """Return the next bytes, none at the end.

        Raises:
            ProtocolError: The connection broke.
            RequestTimeoutError: Nothing came for `timeout` seconds.
        """
        if self.given_up:
            raise ProtocolError("the answer is of no use any more")
        with anyio.move_on_after(timeout):
            try:
                return await self._stream.receive(max_bytes)
            except anyio.EndOfStream:
                return b""
            except STREAM_FAILURES as error:
                failure = broken_error(error, self._where)
                failure.hint = _AGAIN
                raise failure from error
        raise RequestTimeoutError(f"{self._where} sent nothing for {timeout:g} s", hint=_AGAIN)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109  # httpcore's signature
        """Send bytes.

        Raises:
            httpcore.WriteError: The connection broke; there may be an answer all the same.
            RequestTimeoutError: They could not be sent within `timeout` seconds.
        """
        with anyio.move_on_after(timeout):
            try:
                return await self._stream.send(buffer) if buffer else None
            except STREAM_FAILURES as error:
                raise httpcore.WriteError(str(error)) from error
        raise RequestTimeoutError(f"{self._where} took nothing for {timeout:g} s", hint=_AGAIN)

    async def aclose(self) -> None:
        """Close it without waiting for the peer."""
        self._network.open.discard(self)
        await anyio.aclose_forcefully(self._stream)

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's signature
    ) -> Stream:
        """Encrypt the connection, which this object gives away.

        Raises:
            ConnectError: The handshake failed or took longer than `timeout` seconds.
        """
        where = server_hostname or self._where
        stream: TLSStream | None = None
        try:
            with anyio.move_on_after(timeout):
                stream = await TLSStream.wrap(
                    self._stream,
                    hostname=server_hostname,
                    ssl_context=ssl_context,
                    standard_compatible=False,
                )
        except STREAM_FAILURES as error:
            raise connect_error(error, where, secure=True) from error
        finally:
            if stream is None:
                with anyio.CancelScope(shield=True):  # nothing in it waits
                    await self.aclose()
        if stream is None:
            raise ConnectError(f"no TLS connection to {where} within {timeout:g} s")
        self._network.open.discard(self)
        return Stream(stream, where, self._network)

    def get_extra_info(self, info: str) -> Any:
        """Return what httpcore wants to know of the socket."""
        if info == "ssl_object":
            return self._stream.extra(TLSAttribute.ssl_object, None)  # noqa: S610  # not Django's
        if info == "is_readable":
            raw = self._stream.extra(SocketAttribute.raw_socket, None)  # noqa: S610  # as above
            return raw is None or raw.fileno() < 0 or _is_readable(raw.fileno())
        return None


class Network(httpcore.AsyncNetworkBackend):
    """Opens connections and remembers those that are open."""

    def __init__(self) -> None:
        self.open: set[Stream] = set()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002  # httpcore's signature
    ) -> Stream:
        """Open a connection.

        Raises:
            ConnectError: It failed, or took longer than `timeout` seconds.
        """
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        with anyio.move_on_after(timeout):
            try:
                stream = await anyio.connect_tcp(host, port, local_host=local_address)
            except STREAM_FAILURES as error:
                raise connect_error(error, where, secure=False) from error
            return Stream(stream, where, self)
        raise ConnectError(f"no connection to {where} within {timeout:g} s")

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await anyio.sleep(seconds)

    async def close(self) -> None:
        """Close what is open still."""
        for stream in list(self.open):
            await stream.aclose()


def _is_readable(descriptor: int) -> bool:
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select([descriptor], [], [], 0)[0])
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
