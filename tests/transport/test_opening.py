"""`open_transport`: URLs, TLS and ALPN, what leaves its block and what stays behind."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
import trustme
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSAttribute, TLSListener
from transport import http1_peer, http2_peer
from transport.asking import BOUND_S, until

from tinker_async.errors import ConfigError, ConnectError, SessionClosedError
from tinker_async.transport import Request, TrafficClass
from tinker_async.transport.failures import connect_error
from tinker_async.transport.opening import open_transport
from tinker_async.transport.origin import parse_origin

AUTHORITY = trustme.CA()
OPEN_FILES = Path("/proc/self/fd")


def post(body: bytes = b"") -> Request:
    return Request("POST", "/", (), (body,), TrafficClass.SAMPLING)


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context


@asynccontextmanager
async def tls_server(*protocols: str, name: str = "127.0.0.1") -> AsyncIterator[int]:
    """Echo over TLS in whatever ALPN settles on; yields the port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    AUTHORITY.issue_cert(name).configure_cert(context)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    tcp = await anyio.create_tcp_listener(local_host="127.0.0.1")
    listener = TLSListener(tcp, context, standard_compatible=False)

    async def connected(stream: ByteStream) -> None:
        async with stream:
            try:
                if stream.extra(TLSAttribute.alpn_protocol) == "h2":
                    peer = http2_peer.Peer(stream, settings={}, acks=True)
                    await peer.flush()
                    await http2_peer.echo(peer)
                else:
                    await http1_peer.echo(http1_peer.Wire(stream, 0))
            except http1_peer.GONE:
                pass

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, connected)
        yield tcp.extra(SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("offered", "http2", "expected"),
    [
        (("h2", "http/1.1"), None, "h2"),
        (("http/1.1",), None, "http/1.1"),
        ((), None, "http/1.1"),
        (("h2", "http/1.1"), False, "http/1.1"),
        (("h2", "http/1.1"), True, "h2"),
    ],
)
async def test_alpn_decides_which_http_is_spoken(
    offered: tuple[str, ...], http2: bool | None, expected: str
) -> None:
    """Both sides' offers count; the connection that found it out is used."""
    body = os.urandom(1 << 20)
    with anyio.fail_after(BOUND_S):
        async with (
            tls_server(*offered) as port,
            open_transport(f"https://127.0.0.1:{port}", ssl_context=trusting(), http2=http2) as t,
        ):
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(t.request, post(b"x"))
            assert body == (await t.request(post(body))).body
            statistics = t.statistics()
    assert expected == statistics.protocol
    assert statistics.connections <= (1 if expected == "h2" else 5)


async def test_a_server_without_http2_is_refused_when_http2_is_demanded() -> None:
    """`http2=True` never falls back."""
    with anyio.fail_after(BOUND_S):
        async with (
            tls_server("http/1.1") as port,
            open_transport(f"https://127.0.0.1:{port}", ssl_context=trusting(), http2=True) as t,
        ):
            with pytest.raises(ConnectError):
                await t.request(post())


@pytest.mark.parametrize("http2", [None, True, False])
async def test_an_unknown_authority_is_named_as_a_certificate_problem(http2: bool | None) -> None:
    """Verification is on by default, for every way of opening."""
    with anyio.fail_after(BOUND_S):
        async with (
            tls_server("h2", "http/1.1") as port,
            open_transport(f"https://127.0.0.1:{port}", http2=http2) as t,
        ):
            with pytest.raises(ConnectError, match=f"certificate of 127.0.0.1:{port}") as caught:
                await t.request(post())
    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)


async def test_a_certificate_for_another_host_is_not_accepted() -> None:
    """The host name is checked too."""
    with anyio.fail_after(BOUND_S):
        async with (
            tls_server("h2", name="other.example") as port,
            open_transport(f"https://127.0.0.1:{port}", ssl_context=trusting()) as t,
        ):
            with pytest.raises(ConnectError, match="certificate"):
                await t.request(post())


async def test_https_to_a_plain_port_says_that_it_does_not_speak_tls() -> None:
    """The commonest mistake has a plain message."""

    async def script(wire: http1_peer.Wire) -> None:
        await wire.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await wire.gone()

    with anyio.fail_after(BOUND_S):
        async with (
            http1_peer.http1_server(script) as server,
            open_transport(f"https://127.0.0.1:{server.port}") as t,
        ):
            with pytest.raises(ConnectError, match="does not speak TLS"):
                await t.request(post())


async def test_a_handshake_that_never_ends_is_bounded() -> None:
    """The connect timeout covers TLS, and everybody who waited for it hears of it."""

    async def script(wire: http1_peer.Wire) -> None:
        await wire.gone()

    failed: list[str] = []

    with anyio.fail_after(BOUND_S):
        async with (
            http1_peer.http1_server(script) as server,
            open_transport(f"https://127.0.0.1:{server.port}", connect_timeout_s=0.05) as t,
            anyio.create_task_group() as tasks,
        ):

            async def ask() -> None:
                with pytest.raises(ConnectError, match=r"within 0\.05 s") as caught:
                    await t.request(post())
                failed.append(str(caught.value))

            tasks.start_soon(ask)
            tasks.start_soon(ask)
    assert 2 == len(failed)


async def test_the_first_request_may_be_cancelled_while_others_wait_for_the_same() -> None:
    """The connection that it started serves them."""
    with anyio.fail_after(BOUND_S):
        async with (
            tls_server("h2") as port,
            open_transport(f"https://127.0.0.1:{port}", ssl_context=trusting()) as t,
            anyio.create_task_group() as tasks,
        ):
            scope = anyio.CancelScope()

            async def first() -> None:
                with scope:
                    await t.request(post())

            tasks.start_soon(first)
            await until(lambda: bool(t.statistics().connecting))
            scope.cancel()
            assert b"x" == (await t.request(post(b"x"))).body
            assert 1 == t.statistics().connections_opened


def test_a_name_that_does_not_resolve_is_named() -> None:
    """No such host, and what to check."""
    error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    text = str(connect_error(error, "nowhere.invalid:443", secure=True))
    assert "host name of nowhere.invalid:443 could not be resolved" in text


class BodyError(Exception):
    """What the block of a test raises."""


@pytest.mark.parametrize("http2", [False, True])
async def test_what_the_block_raises_leaves_as_itself(http2: bool) -> None:
    """Not in a group, also with connections open and requests in flight."""

    async def fail(url: str) -> None:
        async with open_transport(url, http2=http2) as t, anyio.create_task_group() as tasks:
            await t.request(post())
            tasks.start_soon(t.request, post())
            tasks.cancel_scope.cancel()
        async with open_transport(url, http2=http2) as t:
            await t.request(post())
            raise cause

    cause = BodyError("mine")
    with anyio.fail_after(BOUND_S):
        async with (
            http2_peer.http2_server(http2_peer.echo)
            if http2
            else http1_peer.http1_server(http1_peer.echo)
        ) as server:
            with pytest.raises(BodyError) as caught:
                await fail(server.url)
    assert caught.value is cause
    assert caught.value.__context__ is None


async def test_a_group_that_the_block_raises_is_left_as_it_is() -> None:
    """Only our own wrapping is undone."""
    mine = ExceptionGroup("mine", [BodyError()])
    with pytest.raises(ExceptionGroup) as caught:
        async with open_transport("http://127.0.0.1:1"):
            raise mine
    assert caught.value is mine


class _Interrupt(BaseException):
    """Stands for Ctrl-C, which no loop lets a test raise in a task."""


async def test_an_interrupt_in_a_task_of_the_transport_leaves_instead_of_its_consequence() -> None:
    """Trio raises Ctrl-C in any task; the block, which it cancels, must not hide it."""

    async def interrupted() -> None:
        raise _Interrupt

    with anyio.fail_after(BOUND_S):
        with pytest.raises(BaseExceptionGroup) as caught:
            async with open_transport("http://127.0.0.1:1") as transport:
                transport._tasks.start_soon(interrupted)  # where Ctrl-C may fall
                await anyio.sleep_forever()
    assert caught.group_contains(_Interrupt)


async def test_cancelling_the_block_is_cancellation_and_nothing_else() -> None:
    """A cancel scope around the block works as around any other."""
    with anyio.fail_after(BOUND_S):
        async with http2_peer.http2_server(http2_peer.echo) as server:
            with anyio.CancelScope() as scope:
                async with open_transport(server.url, http2=True) as t:
                    await t.request(post())
                    scope.cancel()
                    await anyio.sleep_forever()
            assert scope.cancelled_caught


def open_files() -> set[str]:
    """Return what this process has open, sockets by their number."""
    found = set()
    for entry in OPEN_FILES.iterdir():
        try:
            found.add(str(entry.readlink()))
        except FileNotFoundError:
            continue  # the listing's own
    return found


@pytest.mark.skipif(not OPEN_FILES.is_dir(), reason="needs /proc")
@pytest.mark.parametrize("http2", [False, True])
async def test_no_socket_or_thread_stays_behind(http2: bool) -> None:
    """Also when requests are in flight and the peer has stopped to read."""

    async def deaf(_: object) -> None:
        await anyio.sleep_forever()

    failures: list[SessionClosedError] = []

    with anyio.fail_after(BOUND_S):
        async with (
            http2_peer.http2_server(deaf) if http2 else http1_peer.http1_server(deaf)
        ) as server:
            threads = threading.active_count()
            async with (
                anyio.create_task_group() as tasks,
                open_transport(server.url, http2=http2, max_connections=3) as t,
            ):

                async def ask() -> None:
                    with pytest.raises(SessionClosedError) as caught:
                        await t.request(post(bytes(8 << 20)))
                    failures.append(caught.value)

                before = open_files()
                for _ in range(10):
                    tasks.start_soon(ask)
                await until(lambda: t.statistics().connections >= (1 if http2 else 3))
                await anyio.wait_all_tasks_blocked()
                during = open_files()
            peers_ends = 1 if http2 else 3
            await anyio.wait_all_tasks_blocked()
            assert len(during - before) >= 2 * peers_ends
            assert len(open_files() - before) <= peers_ends
            assert threads == threading.active_count()
    assert 10 == len(failures)


async def test_connections_that_end_leave_no_socket_during_the_session() -> None:
    """Replaced connections are closed when they end, not when the block does."""

    async def once(peer: http2_peer.Peer) -> None:
        await peer.answer(await peer.request())

    with anyio.fail_after(BOUND_S):
        async with (
            http2_peer.http2_server(once) as server,
            open_transport(server.url, http2=True) as t,
        ):
            for _ in range(10):
                await t.request(post())
                await until(lambda: not t.statistics().connections)
            assert 10 == t.statistics().connections_opened


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://api.example.com", ("https", "api.example.com", 443, b"api.example.com")),
        ("http://localhost:8000/base/", ("http", "localhost", 8000, b"localhost:8000")),
        ("HTTP://Example.COM:80", ("http", "example.com", 80, b"example.com")),
        ("https://[::1]:8443", ("https", "::1", 8443, b"[::1]:8443")),
        ("http://[::1]", ("http", "::1", 80, b"[::1]")),
        ("https://bücher.example", ("https", "xn--bcher-kva.example", 443, None)),
    ],
)
def test_urls_become_origins(url: str, expected: tuple[str, str, int, bytes | None]) -> None:
    """Scheme, host, port and the authority header."""
    origin = parse_origin(url)
    assert expected[:3] == (origin.scheme, origin.host, origin.port)
    assert expected[3] in (None, origin.authority)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "127.0.0.1:8000",
        "ftp://host",
        "http://",
        "http://host:port",
        "http://host:70000",
        "http://[::1",
        "http://user:secret@host",
        "http://host?query",
        "http://a b",
        "http://host:0",
    ],
)
async def test_malformed_urls_are_config_errors_that_say_the_right_form(url: str) -> None:
    """Nothing is tried, and no secret is repeated."""
    with pytest.raises(ConfigError, match=r"use a form like https://") as caught:
        async with open_transport(url):
            pytest.fail("was opened")
    assert "secret" not in str(caught.value)


async def test_the_repr_tells_what_goes_on() -> None:
    """Before, during and after the choice of protocol."""
    with anyio.fail_after(BOUND_S):
        async with tls_server("h2") as port:
            url = f"https://127.0.0.1:{port}"
            async with open_transport(url, ssl_context=trusting()) as t:
                assert f"<OpenTransport 127.0.0.1:{port}: not connected yet>" == repr(t)
                await t.request(post())
                assert (
                    f"<OpenTransport over <Multiplexer 127.0.0.1:{port} h2: 1 connections"
                    " (0 connecting, 0 ending), 0 in flight, 0 waiting>>"
                ) == repr(t)
