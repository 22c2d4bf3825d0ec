"""Where a transport connects to, and how a socket to it is made.

One origin per transport: its URL is parsed once, and every connection is made by `dial`,
which either returns a stream or raises `ConnectError`; it leaves no socket behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import anyio
import msgspec

from tinker_async.errors import ConfigError, ConnectError
from tinker_async.transport import Headers, Request
from tinker_async.transport.failures import connect_error

if TYPE_CHECKING:
    import ssl

    from anyio.abc import ByteStream

    from tinker_async.proxies import Proxy

_RIGHT_FORM = "use a form like https://api.example.com or http://127.0.0.1:8000"
_DEFAULT_PORTS = {"http": 80, "https": 443}
_MOST_KNOWN = 64


class Origin(msgspec.Struct, frozen=True):
    """Scheme, host and port of a server."""

    scheme: str
    host: str
    port: int

    @property
    def secure(self) -> bool:
        """Whether connections are encrypted."""
        return self.scheme == "https"

    @property
    def address(self) -> str:
        """`host:port` as people write it, IPv6 in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def authority(self) -> bytes:
        """The value of `host` and `:authority`: the port only where it is not the default."""
        if self.port == _DEFAULT_PORTS[self.scheme]:
            return self.address.rpartition(":")[0].encode("ascii")
        return self.address.encode("ascii")


def parse_origin(base_url: str) -> Origin:
    """Return the origin of a URL; its path is the caller's business.

    Raises:
        ConfigError: The URL is not `http(s)://host[:port][/base]`.
    """
    try:
        parts = urlsplit(base_url)
        host, port = parts.hostname, parts.port
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"base_url {base_url!r} is malformed", hint=_RIGHT_FORM) from error
    if parts.scheme not in _DEFAULT_PORTS or not host:
        raise ConfigError(
            f"base_url {base_url!r} does not start with http:// or https:// and a host",
            hint=_RIGHT_FORM,
        )
    if parts.username is not None or parts.query or parts.fragment or port == 0:
        # The URL is not repeated here: it may hold a password.
        raise ConfigError(
            f"base_url of {host} has a user name, query, fragment or port 0", hint=_RIGHT_FORM
        )
    return Origin(parts.scheme, _ascii_host(host, base_url), port or _DEFAULT_PORTS[parts.scheme])


def _ascii_host(host: str, base_url: str) -> str:
    try:
        name = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise ConfigError(f"base_url {base_url!r} has no valid host", hint=_RIGHT_FORM) from error
    if any(character.isspace() for character in name):
        raise ConfigError(f"base_url {base_url!r} has no valid host", hint=_RIGHT_FORM)
    return name


class Route:
    """What lies between us and an origin: nothing, or a proxy.

    Args:
        proxy: The proxy.
        ssl_context: For speaking to the proxy itself.
        forwards: Whether the proxy is given the requests, instead of asked for a tunnel.
    """

    def __init__(
        self,
        proxy: Proxy | None = None,
        ssl_context: ssl.SSLContext | None = None,
        *,
        forwards: bool = False,
    ) -> None:
        self.proxy = proxy
        self.ssl_context = ssl_context
        self.forwards = forwards
        self._headers: dict[Headers, Headers] = {}

    def forwarded(self, request: Request, origin: Origin) -> Request:
        """Return a request as a proxy takes it to pass it on: with the whole URL."""
        url = f"http://{origin.authority.decode('ascii')}{request.path}"
        return msgspec.structs.replace(request, path=url, headers=self._with_ours(request.headers))

    def _with_ours(self, headers: Headers) -> Headers:
        """Add what the proxy wants to hear. Kept: equal headers are written only once."""
        if self.proxy is None or self.proxy.authorization is None:
            return headers
        known = self._headers.get(headers)
        if known is None:
            if len(self._headers) >= _MOST_KNOWN:
                self._headers.clear()
            value = self.proxy.authorization.reveal().encode()
            known = self._headers[headers] = (*headers, (b"proxy-authorization", value))
        return known


DIRECT = Route()


async def dial(
    origin: Origin,
    ssl_context: ssl.SSLContext | None,
    *,
    timeout_s: float,
    route: Route = DIRECT,
) -> ByteStream:
    """Open a connection, encrypted when `ssl_context` is given.

    Cancelling closes whatever was opened.

    Raises:
        ConnectError: Name resolution, TCP or TLS failed, or all of it took longer than
            `timeout_s` seconds.
    """
    with anyio.move_on_after(timeout_s):
        try:
            return await _open(origin, ssl_context, route)
        except (OSError, anyio.BrokenResourceError, anyio.EndOfStream) as error:
            raise connect_error(error, origin.address, secure=origin.secure) from error
    raise ConnectError(
        f"no connection to {origin.address}{_by(route)} within {timeout_s:g} s",
        hint="is the address right, and does a firewall let it through?",
    )


def _by(route: Route) -> str:
    return "" if route.proxy is None else f" by the proxy {route.proxy.address}"


async def _open(origin: Origin, ssl_context: ssl.SSLContext | None, route: Route) -> ByteStream:
    stream = await _reach(origin, route)
    if ssl_context is None:
        return stream
    from anyio.streams.tls import TLSStream  # noqa: PLC0415 - a local server needs no TLS

    try:
        # HTTP frames its own messages, so a missing close_notify says nothing new.
        return await TLSStream.wrap(
            stream, hostname=origin.host, ssl_context=ssl_context, standard_compatible=False
        )
    except BaseException:
        await anyio.aclose_forcefully(stream)
        raise


async def _reach(origin: Origin, route: Route) -> ByteStream:
    if route.proxy is None:
        return await anyio.connect_tcp(origin.host, origin.port)
    from tinker_async.transport.tunnel import (  # noqa: PLC0415 - few connections have one
        connect_proxy,
        open_tunnel,
    )

    stream = await connect_proxy(route.proxy, route.ssl_context)
    if not route.forwards:
        try:
            await open_tunnel(stream, route.proxy, origin.address)
        except BaseException:
            await anyio.aclose_forcefully(stream)
            raise
    return stream


def chosen_protocol(stream: ByteStream) -> str | None:
    """Return what ALPN settled on (`h2`, `http/1.1`), or None."""
    from anyio.streams.tls import TLSAttribute  # noqa: PLC0415 - as above

    return stream.extra(TLSAttribute.alpn_protocol, None)  # noqa: S610 - not Django's
