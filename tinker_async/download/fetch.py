"""One request for bytes of another host, by a URL that is itself the permission.

The rule: no credential of ours goes out, no https becomes http (this machine itself aside),
and no text shows more of such a URL than its host: the rest of it is a secret.
"""

from __future__ import annotations

import ssl
import urllib.parse
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import anyio
import httpcore
import msgspec

from tinker_async.api.retry import parse_retry_after
from tinker_async.download.network import Network, Stream
from tinker_async.errors import (
    APIStatusError,
    ConnectError,
    DownloadError,
    ProtocolError,
    status_error,
)
from tinker_async.proxies import Proxy, ProxyRules, is_loopback

MAX_REDIRECTS: Final = 5
_REDIRECTS = {301, 302, 303, 307, 308}
_CLOSING_S = 5.0
_ERROR_BYTES = 4096


class Reach(msgspec.Struct, frozen=True, eq=False):
    """How other hosts are reached."""

    proxies: ProxyRules
    make_ssl_context: Callable[[], ssl.SSLContext]
    plain_allowed: bool
    """Whether http:// will do for other machines: only if the server's own address has it."""
    user_agent: str = "tinker-async"
    connect_timeout_s: float = 15.0
    silence_s: float = 60.0
    """Longest wait for the next bytes."""


class Answer:
    """An answer whose content is still to come."""

    def __init__(self, response: httpcore.Response, host: str) -> None:
        self.status = response.status
        self.headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in response.headers
        }
        self.host = host
        self._response = response
        # Not `aiter_stream`: it would be one generator more that has to be ended.
        self._blocks = aiter(response.stream)  # type: ignore[arg-type]  # an async one
        self._ended = False

    async def next_block(self) -> bytes:
        """Return the next bytes of the content, none at its end.

        Raises:
            ProtocolError: The connection broke before the end.
            RequestTimeoutError: Nothing came for too long.
        """
        if self._ended:
            return b""
        try:
            async for block in self._blocks:
                if block:
                    return block
        except BaseException as error:
            self._ended = True
            if isinstance(error, httpcore.ProtocolError):
                raise ProtocolError(
                    f"{self.host} ended its answer too early: {error}",
                    hint="call again: what was received is kept and gone on from",
                ) from error
            raise
        self._ended = True
        return b""

    async def close(self) -> None:
        """Give up what was not read, without waiting for it."""
        if not self._ended:
            # httpcore's generators must run to an end of their own: if they were left to the
            # collector, event loops would complain.
            stream: Stream = self._response.extensions["network_stream"]
            stream.given_up = True
            try:
                while await self.next_block():
                    pass
                stream.given_up = False  # all of it was here already: the connection is good
            except ProtocolError:
                pass
        await self._response.aclose()


class Fetcher:
    """Sends requests, directly or by the proxy that is right for the host."""

    def __init__(self, reach: Reach, *, max_connections: int) -> None:
        self._reach = reach
        self._max_connections = max_connections
        self._network = Network()
        self._pools: dict[object, httpcore.AsyncConnectionPool] = {}

    @asynccontextmanager
    async def get(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[Answer]:
        """Ask for a URL, following its redirections; the answer may have any other status.

        Raises:
            ConnectError: The host could not be reached.
            ProtocolError: It did not answer in HTTP.
            RequestTimeoutError: It did not answer at all.
            DownloadError: The URL, or one that it leads to, is not allowed.
        """
        plain_allowed = self._reach.plain_allowed
        for _ in range(MAX_REDIRECTS + 1):
            parts = check_url(url, plain_allowed=plain_allowed)
            plain_allowed = plain_allowed and parts.scheme == "http"
            answer = await self._send(url, parts, headers)
            try:
                if answer.status not in _REDIRECTS or "location" not in answer.headers:
                    yield answer
                    return
                url = urllib.parse.urljoin(url, answer.headers["location"])
            finally:
                with anyio.CancelScope(shield=True):  # nothing in it waits
                    await answer.close()
        raise DownloadError(f"{parts.hostname} redirects more than {MAX_REDIRECTS} times")

    async def _send(
        self, url: str, parts: urllib.parse.SplitResult, headers: Mapping[str, str]
    ) -> Answer:
        host = parts.netloc.rpartition("@")[2]
        fields = {
            "host": host,
            "user-agent": self._reach.user_agent,
            "accept": "*/*",
            "accept-encoding": "identity",
            **headers,
        }
        silence_s = self._reach.silence_s
        request = httpcore.Request(
            "GET",
            url,
            headers=list(fields.items()),
            extensions={
                "timeout": {
                    "connect": self._reach.connect_timeout_s,
                    "read": silence_s,
                    "write": silence_s,
                }
            },
        )
        try:
            response = await self._pool(url).handle_async_request(request)
        except httpcore.ProxyError as error:
            refusal = ConnectError(f"the proxy refused to connect to {host}: {error}")
            refusal.should_retry = False
            raise refusal from error
        except (httpcore.ProtocolError, httpcore.NetworkError) as error:
            raise ProtocolError(f"{host} did not answer in HTTP: {error}") from error
        return Answer(response, host)

    def _pool(self, url: str) -> httpcore.AsyncConnectionPool:
        proxy = self._reach.proxies.proxy_for(url)
        secure = url.startswith("https:")
        key = (secure, None if proxy is None else (proxy.scheme, proxy.host, proxy.port))
        pool = self._pools.get(key)
        if pool is None:
            make_context = self._reach.make_ssl_context
            pool = self._pools[key] = httpcore.AsyncConnectionPool(
                ssl_context=make_context() if secure else None,
                proxy=None if proxy is None else _proxy(proxy, make_context),
                max_connections=self._max_connections,
                keepalive_expiry=15.0,
                network_backend=self._network,
            )
        return pool

    async def close(self) -> None:
        """Close every connection."""
        for pool in self._pools.values():
            await pool.aclose()
        await self._network.close()


@asynccontextmanager
async def open_fetcher(reach: Reach, *, max_connections: int) -> AsyncIterator[Fetcher]:
    """Fetch within a block; at its end no connection is left."""
    fetcher = Fetcher(reach, max_connections=max_connections)
    try:
        yield fetcher
    finally:
        with anyio.move_on_after(_CLOSING_S, shield=True):
            await fetcher.close()


def _proxy(proxy: Proxy, make_ssl_context: Callable[[], ssl.SSLContext]) -> httpcore.Proxy:
    headers = []
    if proxy.authorization is not None:
        headers.append((b"proxy-authorization", proxy.authorization.reveal().encode("ascii")))
    secure = proxy.scheme == "https"
    return httpcore.Proxy(
        f"{proxy.scheme}://{proxy.address}",
        headers=headers,
        ssl_context=make_ssl_context() if secure else None,
    )


def check_url(url: str, *, plain_allowed: bool) -> urllib.parse.SplitResult:
    """Return the parts of a URL that may be asked for.

    Raises:
        DownloadError: It is malformed, or not encrypted where it has to be.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
        parts = urllib.parse.SplitResult("", "", "", "", "")
    printable = url.isascii() and url.isprintable() and " " not in url
    if not host or parts.scheme not in ("http", "https") or not printable:
        raise DownloadError(
            "the server gave a download URL that is not http(s)://host/...",
            hint="ask the server's operator",
        )
    if parts.scheme == "http" and not plain_allowed and not is_loopback(host):
        raise DownloadError(
            f"the download leads to {host} without encryption",
            hint="the server's own address is https://, so its files have to be as well",
        )
    return parts


async def refusal_of(answer: Answer, file: str) -> APIStatusError:
    """Make the error for an answer that is neither the file nor about its ranges."""
    content = b""
    while len(content) < _ERROR_BYTES:
        block = await answer.next_block()
        if not block:
            break
        content += block
    return status_error(
        answer.status,
        endpoint=f"the download of {file} from {answer.host}",
        detail=_code(content[:_ERROR_BYTES]),
        retry_after_s=parse_retry_after(None, _encoded(answer.headers.get("retry-after"))),
    )


def _code(content: bytes) -> str:
    """The code in a storage service's error; its other words may repeat the URL."""
    _, begin, rest = content.partition(b"<Code>")
    code, end, _ = rest.partition(b"</Code>")
    return code.decode() if begin and end and code.isalnum() and len(code) < 64 else ""


def _encoded(value: str | None) -> bytes | None:
    return None if value is None else value.encode("latin-1")
