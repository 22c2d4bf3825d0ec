"""Through a proxy: the CONNECT exchange that turns a connection to it into one to the server.

The rule: nothing that follows the proxy's answer is read here, and what the proxy wants to
hear of us is in no message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from tinker_async.errors import ConnectError
from tinker_async.transport.failures import connect_error

if TYPE_CHECKING:
    import ssl

    from anyio.abc import ByteStream

    from tinker_async.proxies import Proxy

_LONGEST_HEAD = 16 << 10
_HINT = "look at proxy=, HTTPS_PROXY, HTTP_PROXY and ALL_PROXY; NO_PROXY and proxy=False go without"


async def connect_proxy(proxy: Proxy, ssl_context: ssl.SSLContext | None) -> ByteStream:
    """Open a connection to a proxy, encrypted if it is spoken to by https.

    Raises:
        ConnectError: It cannot be reached.
    """
    try:
        stream = await anyio.connect_tcp(proxy.host, proxy.port)
        if ssl_context is None:
            return stream
        from anyio.streams.tls import TLSStream  # noqa: PLC0415 - few proxies speak TLS

        try:
            return await TLSStream.wrap(
                stream, hostname=proxy.host, ssl_context=ssl_context, standard_compatible=False
            )
        except BaseException:
            await anyio.aclose_forcefully(stream)
            raise
    except (OSError, anyio.BrokenResourceError, anyio.EndOfStream) as error:
        where = f"the proxy {proxy.address}"
        failure = connect_error(error, where, secure=proxy.scheme == "https")
        raise ConnectError(failure.message, hint=_HINT) from error


async def open_tunnel(stream: ByteStream, proxy: Proxy, address: str) -> None:
    """Ask a proxy to connect us to `address` (host:port).

    Raises:
        ConnectError: It refuses, or does not answer as a proxy.
    """
    target = address.encode("ascii")
    lines = [b"CONNECT %b HTTP/1.1" % target, b"host: %b" % target]
    if proxy.authorization is not None:
        lines.append(b"proxy-authorization: %b" % proxy.authorization.reveal().encode())
    where = f"the proxy {proxy.address}"
    try:
        await stream.send(b"\r\n".join((*lines, b"", b"")))
        head = await _read_head(stream)
    except (OSError, anyio.BrokenResourceError, anyio.EndOfStream) as error:
        raise ConnectError(
            f"{where} closed the connection instead of opening a tunnel to {address}", hint=_HINT
        ) from error
    status = _status_of(head)
    if status is None:
        raise ConnectError(f"{where} did not answer as an HTTP proxy does", hint=_HINT)
    if status == 407:
        raise ConnectError(
            f"{where} wants other credentials (407)",
            hint="put user and password into its URL: http://user:password@host:port",
        )
    if not 200 <= status < 300:
        raise ConnectError(
            f"{where} refused a tunnel to {address} with status {status}", hint=_HINT
        )


async def _read_head(stream: ByteStream) -> bytes:
    """Read as far as the empty line, and not a byte of what the server may say behind it."""
    head = bytearray()
    while not head.endswith(b"\r\n\r\n") and len(head) < _LONGEST_HEAD:
        head += await stream.receive(1)
    return bytes(head)


def _status_of(head: bytes) -> int | None:
    words = head.split(b"\r\n", 1)[0].split(b" ", 2)
    sound = (
        head.endswith(b"\r\n\r\n")
        and len(words) >= 2
        and words[0].startswith(b"HTTP/1.")
        and len(words[1]) == 3
        and words[1].isdigit()
    )
    return int(words[1]) if sound else None
