"""Opens a transport: `open_transport` is the only way to get one.

It owns the task group in which connections live. Rule: when its block is left, no task,
socket or waiter remains, and what the block raised leaves as itself.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from tinker_async.errors import ConfigError, ConnectError, TinkerError, TransportError
from tinker_async.transport import Request, Response, TrafficClass
from tinker_async.transport.failures import closed_error, copy_error
from tinker_async.transport.lanes import TransportStatistics
from tinker_async.transport.origin import Origin, Route, chosen_protocol, dial, parse_origin
from tinker_async.transport.tasks import LastingTasks, lasting_tasks
from tinker_async.transport.trust import trusting_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Coroutine

    from anyio.abc import ByteStream

    from tinker_async.proxies import Proxy
    from tinker_async.transport.http1 import Http1Line
    from tinker_async.transport.http2 import KeepAlive
    from tinker_async.transport.multiplexer import Multiplexer


class OpenTransport:
    """A `Transport` to one origin, which finds out by itself which HTTP is spoken there.

    Nothing is connected before the first request. `statistics()` and `repr` tell what
    goes on.
    """

    def __init__(
        self,
        origin: Origin,
        tasks: LastingTasks,
        *,
        route: Route,
        ssl_context: ssl.SSLContext | None,
        http2: bool | None,
        connect_timeout_s: float,
        max_connections: int,
        keep_alive: KeepAlive | None,
    ) -> None:
        self._origin = origin
        self._tasks = tasks
        self._route = route
        self._ssl_context = ssl_context
        self._timeout_s = connect_timeout_s
        self._most = max_connections
        self._keep_alive = keep_alive
        self._closing = False
        self._chosen: Http1Line | Multiplexer | None = None
        self._choice: _Choice | None = None
        if http2 is not None:
            self._chosen = self._multiplexer() if http2 else self._http1_line()

    def __repr__(self) -> str:
        if self._chosen is None:
            return f"<OpenTransport {self._origin.address}: not connected yet>"
        return f"<OpenTransport over {self._chosen!r}>"

    def statistics(self) -> TransportStatistics:
        """Return what is going on now, and totals; `protocol` is empty before it is known."""
        if self._chosen is not None:
            return self._chosen.statistics()
        nothing = dict.fromkeys(TrafficClass, 0)
        return TransportStatistics("", 0, int(self._choice is not None), nothing, nothing, 0, 0)

    def request(
        self, request: Request, *, silence_s: float | None = None
    ) -> Coroutine[Any, Any, Response]:
        """Send a request and return the whole response; see `Transport.request`.

        No coroutine of its own: thousands of requests wait at a time, each in its whole chain.
        """
        if self._chosen is None:
            return self._request_later(request, silence_s)
        if self._route.forwards:
            request = self._route.forwarded(request, self._origin)
        return self._chosen.request(request, silence_s=silence_s)

    async def _request_later(self, request: Request, silence_s: float | None) -> Response:
        while self._chosen is None:
            await self._choose()
        return await self.request(request, silence_s=silence_s)

    async def close(self) -> None:
        """Fail every waiter and close every socket that no task of ours will close."""
        self._closing = True
        if self._choice is not None:
            self._choice.fail(closed_error(self._origin.address))
        if self._chosen is not None:
            await self._chosen.close()

    # -- which HTTP --------------------------------------------------------------------

    async def _choose(self) -> None:
        """Wait until the first connection has shown what the server speaks."""
        if self._closing:
            raise closed_error(self._origin.address)
        choice = self._choice
        if choice is None:
            choice = self._choice = _Choice()
            self._tasks.start_soon(self._find_out, choice)
        await choice.made.wait()
        if choice.error is not None:
            raise copy_error(choice.error)

    async def _find_out(self, choice: _Choice) -> None:
        """Connect once for everybody. In a task: the request that asked may be cancelled."""
        try:
            stream = await self._dial_any()
        except TransportError as error:
            choice.fail(error)
        else:
            if chosen_protocol(stream) == "h2":
                self._chosen = self._multiplexer()
            else:
                self._chosen = self._http1_line()
            self._chosen.adopt(stream)
            choice.made.set()
        finally:
            self._choice = None

    def _multiplexer(self) -> Multiplexer:
        from tinker_async.transport.multiplexer import Multiplexer  # noqa: PLC0415 - see below

        self._offer("h2")
        return Multiplexer(
            self._origin,
            self._dial_http2,
            self._tasks,
            max_connections=self._most,
            connect_timeout_s=self._timeout_s,
            keep_alive=self._keep_alive,
        )

    def _http1_line(self) -> Http1Line:
        from tinker_async.transport.http1 import Http1Line  # noqa: PLC0415 - only one is needed

        self._offer("http/1.1")
        return Http1Line(self._origin, self._dial_any, self._tasks, max_connections=self._most)

    def _offer(self, *protocols: str) -> None:
        if self._ssl_context is not None:
            self._ssl_context.set_alpn_protocols(list(protocols))

    async def _dial_any(self) -> ByteStream:
        return await dial(
            self._origin, self._ssl_context, timeout_s=self._timeout_s, route=self._route
        )

    async def _dial_http2(self) -> ByteStream:
        stream = await self._dial_any()
        if self._ssl_context is not None and chosen_protocol(stream) != "h2":
            await anyio.aclose_forcefully(stream)
            raise ConnectError(
                f"{self._origin.address} does not offer HTTP/2", hint="open with http2=None"
            )
        return stream


class _Choice:
    """The first connection under way, for which the first requests wait."""

    def __init__(self) -> None:
        self.made = anyio.Event()
        self.error: TinkerError | None = None

    def fail(self, error: TinkerError) -> None:
        self.error = error
        self.made.set()


@asynccontextmanager
async def open_transport(
    base_url: str,
    *,
    ssl_context: ssl.SSLContext | None = None,
    ca_bundle: str | None = None,
    proxy: Proxy | None = None,
    http2: bool | None = None,
    connect_timeout_s: float = 5.0,
    max_connections: int = 64,
    keep_alive: KeepAlive | None = None,
) -> AsyncIterator[OpenTransport]:
    """Open a transport for the length of a block.

    Args:
        base_url: `http(s)://host[:port][/base]`. Only its origin is used: a request's path
            includes the base path already.
        ssl_context: For https; the default verifies against the system's and certifi's
            authorities, or against what `SSL_CERT_FILE` and `SSL_CERT_DIR` name. Its ALPN
            protocols are set here, so give each transport its own.
        ca_bundle: File or folder of the authorities to believe, instead of an `ssl_context`.
        proxy: What all connections go through. To https, and to http by HTTP/2, it is asked for
            a tunnel; requests to http by HTTP/1.1 are given to it to forward.
        http2: None: what ALPN settles on; HTTP/1.1 without TLS. True: HTTP/2 only (without
            TLS by prior knowledge). False: HTTP/1.1 only.
        connect_timeout_s: Bound for name resolution, TCP, TLS and the HTTP/2 preface together.
        max_connections: Open at the same time, at most.
        keep_alive: When silent HTTP/2 peers are probed, and unused connections closed.

    Nothing is connected before the first request. On exit whatever is in flight or in line
    fails with `SessionClosedError` and every socket is closed, within about a second. An
    exception of the block leaves as itself, never in an exception group.

    Raises:
        ConfigError: `base_url` or a limit is malformed, or `ca_bundle` has no authorities.
    """
    origin = parse_origin(base_url)
    if max_connections < 1:
        raise ConfigError(f"max_connections is {max_connections}", hint="it must be at least 1")
    if ssl_context is not None and ca_bundle is not None:
        raise ConfigError("ssl_context and ca_bundle are given", hint="give one of the two")
    if origin.secure:
        ssl_context = ssl_context or trusting_context(ca_bundle)
        ssl_context.set_alpn_protocols(["h2", "http/1.1"])
    else:
        ssl_context = None
        http2 = bool(http2)
    make = partial(
        OpenTransport,
        origin,
        route=Route(
            proxy,
            trusting_context(ca_bundle) if proxy is not None and proxy.scheme == "https" else None,
            forwards=proxy is not None and not origin.secure and not http2,
        ),
        ssl_context=ssl_context,
        http2=http2,
        connect_timeout_s=connect_timeout_s,
        max_connections=max_connections,
        keep_alive=keep_alive,
    )
    async with lasting_tasks() as tasks:
        transport = make(tasks)
        try:
            yield transport
        finally:
            await transport.close()
