"""The stages of `tinker-async doctor` below HTTP: name, connection, proxy, encryption.

The rule: each stage tries one thing only and closes what it opened, so that the first that
fails is the one that is broken.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio
from anyio.streams.tls import TLSAttribute

from tinker_async.cli.output import iso
from tinker_async.errors import ConnectError
from tinker_async.transport.failures import STREAM_FAILURES, connect_error
from tinker_async.transport.origin import Origin, Route, dial, parse_origin
from tinker_async.transport.trust import trusting_context
from tinker_async.transport.tunnel import connect_proxy, open_tunnel

if TYPE_CHECKING:
    from tinker_async.config import Config

_CONNECT_S = 5.0
_ALPN = ["h2", "http/1.1"]
_OF_THE_PROXY = "look at HTTPS_PROXY, HTTP_PROXY and ALL_PROXY; NO_PROXY goes without"
_EXPIRED, _MISMATCHES = 10, (62, 64)
"""OpenSSL's numbers of what can be wrong with a certificate."""


class Skipped(Exception):  # noqa: N818  # no error
    """A stage that does not apply; the text says why."""


class Network:
    """Tries the way to a server, stage by stage."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._origin = parse_origin(config.base_url)
        self._proxy = config.proxy
        self._first = self._proxy or self._origin
        """What we connect to ourselves."""

    async def dns(self) -> str:
        """Resolve the host, or the proxy's."""
        host = self._first.host
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            pass
        else:
            raise Skipped(f"{address} is an address")
        try:
            found = await anyio.getaddrinfo(host, self._first.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise self._unreachable(error) from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        return f"{host} is {', '.join(addresses)}"

    async def tcp(self) -> str:
        """Connect to the server, or the proxy."""
        with anyio.move_on_after(_CONNECT_S):
            try:
                stream = await anyio.connect_tcp(self._first.host, self._first.port)
            except OSError as error:
                raise self._unreachable(error) from error
            await anyio.aclose_forcefully(stream)
            return f"connected to {self._where()}"
        raise ConnectError(
            f"{self._where()} does not answer within {_CONNECT_S:g} s",
            hint="is the address right, and does a firewall let it through?",
        )

    def _where(self) -> str:
        return f"{'the proxy ' if self._proxy else ''}{self._first.address}"

    def _unreachable(self, error: OSError) -> ConnectError:
        failure = connect_error(error, self._where(), secure=False)
        if self._proxy is None:
            return failure
        return ConnectError(failure.message, hint=_OF_THE_PROXY)

    async def proxy(self) -> str:
        """Let the proxy open a tunnel."""
        if self._proxy is None:
            raise Skipped("no proxy is set")
        if not self._origin.secure:
            raise Skipped(f"{self._proxy.address} is given the requests to forward")
        with anyio.fail_after(_CONNECT_S):
            stream = await connect_proxy(self._proxy, self._to_proxy())
            try:
                await open_tunnel(stream, self._proxy, self._origin.address)
            finally:
                await anyio.aclose_forcefully(stream)
        return f"{self._proxy.address} opens a tunnel to {self._origin.address}"

    async def tls(self) -> str:
        """Agree on encryption, and believe the certificate; or see that none is spoken."""
        if not self._origin.secure:
            if self._proxy is None:
                await self._no_tls()
            raise Skipped("base_url says http")
        context = trusting_context(self._config.ca_bundle)
        context.set_alpn_protocols(_ALPN)
        route = Route(self._proxy, self._to_proxy())
        try:
            stream = await dial(self._origin, context, timeout_s=_CONNECT_S, route=route)
        except ConnectError as error:
            raise await self._explained(error) from error
        try:
            return _agreed(stream)
        finally:
            await anyio.aclose_forcefully(stream)

    async def _explained(self, error: ConnectError) -> ConnectError:
        """Say what to do about a failed handshake, as the command line has it."""
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
            cause = cause.__cause__
        if cause is not None:
            return ConnectError(error.message, hint=_remedy(cause.verify_code))
        if self._proxy is None and await self._answers_plainly():
            return ConnectError(
                f"{self._origin.address} does not speak TLS, and base_url says https://",
                hint="use http:// in base_url, or the server's https port",
            )
        return error

    def _to_proxy(self) -> ssl.SSLContext | None:
        secure = self._proxy is not None and self._proxy.scheme == "https"
        return trusting_context(self._config.ca_bundle) if secure else None

    async def _no_tls(self) -> None:
        """Refuse a port that wants encryption: plain requests to it end in riddles."""
        if await self._answers_plainly():
            return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # nothing is sent: the question is what is spoken
        context.verify_mode = ssl.CERT_NONE
        secure = Origin("https", self._origin.host, self._origin.port)
        try:
            stream = await dial(secure, context, timeout_s=_CONNECT_S)
        except ConnectError:
            return  # neither: HTTP's own stage says what happens
        await anyio.aclose_forcefully(stream)
        raise ConnectError(
            f"{self._origin.address} speaks TLS, and base_url says http://",
            hint="use https:// in base_url",
        )

    async def _answers_plainly(self) -> bool:
        """Whether a plain request is answered, by more than a complaint about it."""
        head = f"{self._config.base_path}/api/v1/healthz HTTP/1.1\r\nHost: "
        request = b"GET %b%b\r\nConnection: close\r\n\r\n" % (
            head.encode("ascii", "ignore"),
            self._origin.authority,
        )
        answer = b""
        with anyio.move_on_after(_CONNECT_S):
            try:
                async with await anyio.connect_tcp(self._origin.host, self._origin.port) as stream:
                    await stream.send(request)
                    while len(answer) < 12:
                        answer += await stream.receive()
            except STREAM_FAILURES:
                pass
        # 400: what servers answer to plain requests at their TLS ports.
        return answer.startswith(b"HTTP/1.") and answer[9:12] != b"400"


def _agreed(stream: anyio.abc.ByteStream) -> str:
    """Say what a handshake has settled."""
    version: str = stream.extra(TLSAttribute.tls_version, "TLS")  # noqa: S610  # not Django's
    protocol: str | None = stream.extra(TLSAttribute.alpn_protocol, None)  # noqa: S610  # as above
    certificate: Any = stream.extra(TLSAttribute.peer_certificate, None)  # noqa: S610  # as above
    text = f"{version}, {protocol or 'no ALPN'}"
    ends = (certificate or {}).get("notAfter")
    if ends:
        until = datetime.fromtimestamp(ssl.cert_time_to_seconds(ends), UTC)
        text += f", certificate until {iso(until)}"
    return text


def _remedy(verify_code: int) -> str:
    if verify_code in _MISMATCHES:
        return "write the host into base_url as the certificate names it"
    if verify_code == _EXPIRED:
        return "is this machine's clock right? If so, the server needs a new certificate"
    return "name the server's authority: --ca-bundle FILE, or SSL_CERT_FILE"
