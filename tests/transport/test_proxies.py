"""Through a real proxy: tunnels, forwarded requests, passwords, TLS to both, and refusals."""

from __future__ import annotations

import ssl
from pathlib import Path

import anyio
import pytest
import trustme
from support.proxy import Proxy, running_proxy
from support.scripted import scripted_server

from tinker_async import ConfigError, ConnectError, RetryPolicy, Session
from tinker_async.proxies import parse_proxy, proxy_rules
from tinker_async.testing import FakeService
from tinker_async.transport.opening import open_transport

AUTHORITY = trustme.CA()
PASSWORD = "p@ss:word/never shown"
QUOTED = "p%40ss:word%2Fnever%20shown"
ONCE = RetryPolicy(max_attempts=1)
PROXY_VARIABLES = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def ca_bundle(tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(path)
    return str(path)


def server_context(name: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    AUTHORITY.issue_cert(name).configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


async def use(session: Session) -> str:
    """Enter it, do something, and return which HTTP was spoken."""
    async with session:
        await session.get_server_capabilities()
        return session.statistics().transport.protocol


@pytest.mark.parametrize("secure_proxy", [False, True], ids=["http proxy", "https proxy"])
@pytest.mark.parametrize("http2", [None, False])
async def test_https_goes_through_a_tunnel(
    ca_bundle: str, http2: bool | None, secure_proxy: bool
) -> None:
    """The proxy sees the server's address and nothing else; TLS is with the server."""
    service, scheme = FakeService(), "https" if secure_proxy else "http"
    context = server_context() if secure_proxy else None
    with anyio.fail_after(20):
        async with (
            running_proxy(password=f"user:{PASSWORD}", ssl_context=context) as proxy,
            service.serve(ssl_context=server_context()) as url,
        ):
            session = Session(
                url,
                service.api_key,
                ca_bundle=ca_bundle,
                http2=http2,
                proxy=f"{scheme}://user:{QUOTED.replace(':', '%3A')}@127.0.0.1:{proxy.port}",
            )
            protocol = await use(session)

    assert ("http/1.1" if http2 is False else "h2") == protocol
    assert {url.removeprefix("https://")} == set(proxy.tunnels)
    assert [] == proxy.forwarded
    assert service.api_key.encode() not in b"".join(proxy.heads)
    assert PASSWORD not in repr(session) + repr(session._config)


async def test_plain_http_is_given_to_the_proxy_to_forward() -> None:
    """With the whole URL, as proxies take it, and the password for the proxy only."""
    with anyio.fail_after(20):
        async with running_proxy(password="user:pw") as proxy, scripted_server() as server:
            proxy.names["far.example"] = server.port
            session = Session(
                "http://far.example:1234",
                "tml-x",
                proxy=f"user:pw@127.0.0.1:{proxy.port}",
            )
            async with session:
                pass

    assert "http://far.example:1234/api/v1/client/config" == proxy.forwarded[0]
    assert [] == proxy.tunnels
    assert {"far.example:1234"} == {call.headers["host"] for call in server.calls}
    assert not any("proxy-authorization" in call.headers for call in server.calls)
    assert 4 == len(server.calls)


async def test_plain_http2_goes_through_a_tunnel() -> None:
    """No proxy forwards that."""
    service = FakeService()
    with anyio.fail_after(20):
        async with running_proxy() as proxy, service.serve() as url:
            proxy_url = f"http://127.0.0.1:{proxy.port}"
            assert "h2" == await use(Session(url, service.api_key, http2=True, proxy=proxy_url))

    assert [url.removeprefix("http://")] == proxy.tunnels


@pytest.mark.parametrize("secure", [True, False])
async def test_the_environment_names_the_proxy(
    monkeypatch: pytest.MonkeyPatch, ca_bundle: str, secure: bool
) -> None:
    """`HTTPS_PROXY` for https, `HTTP_PROXY` for http; this machine is reached directly."""
    monkeypatch.setenv("SSL_CERT_FILE", ca_bundle)
    service, name = FakeService(), "far.example"
    context = server_context(name) if secure else None
    with anyio.fail_after(20):
        async with running_proxy() as proxy, service.serve(ssl_context=context) as url:
            proxy.names[name] = int(url.rpartition(":")[2])
            variable = "HTTPS_PROXY" if secure else "HTTP_PROXY"
            monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.port}")
            scheme = "https" if secure else "http"
            await use(Session(f"{scheme}://{name}:7777", service.api_key))
            asked = len(proxy.tunnels) + len(proxy.forwarded)
            if not secure:
                await use(Session(url, service.api_key))

    assert asked == len(proxy.tunnels) + len(proxy.forwarded) > 0


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 407 X\r\n\r\n", "other credentials"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "status 403"),
        (b"SSH-2.0-x\r\n\r\n", "as an HTTP proxy"),
        (b"HTTP/1.1 abc\r\n\r\n", "as an HTTP proxy"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 4000, "as an HTTP proxy"),
        (b"HTTP/1.1 200", "closed the connection"),
        (b"", "closed the connection"),
    ],
)
async def test_a_proxy_that_refuses_is_named(answer: bytes, says: str) -> None:
    """The error says that it is the proxy, which, and what it said; never the password."""
    with anyio.fail_after(10):
        async with running_proxy() as proxy:
            proxy.answer = answer
            session = Session(
                "https://far.example",
                "tml-x",
                retry=ONCE,
                proxy=f"http://user:{QUOTED}@127.0.0.1:{proxy.port}",
            )
            with pytest.raises(ConnectError, match=says) as caught:
                async with session:
                    pass

    assert f"the proxy 127.0.0.1:{proxy.port}" in str(caught.value)
    assert "never shown" not in str(caught.value) + repr(caught.value.__cause__)


async def test_a_proxy_that_is_not_there_is_named(free_tcp_port: int) -> None:
    """Not the server, which may be fine; and the hint is about the proxy."""
    session = Session(
        "https://far.example", "tml-x", retry=ONCE, proxy=f"http://127.0.0.1:{free_tcp_port}"
    )
    with anyio.fail_after(10), pytest.raises(ConnectError, match="HTTPS_PROXY") as caught:
        async with session:
            pass
    assert f"nothing listens on the proxy 127.0.0.1:{free_tcp_port}" in caught.value.message


async def test_a_proxy_that_says_nothing_has_the_connections_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is part of connecting."""
    proxy = Proxy(None)

    async def silent(stream: anyio.abc.ByteStream) -> None:
        async with stream:
            await anyio.sleep_forever()

    monkeypatch.setattr(proxy, "serve", silent)
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, silent)
            with anyio.fail_after(10):
                async with open_transport(
                    "https://far.example",
                    proxy=parse_proxy(f"127.0.0.1:{port}"),
                    connect_timeout_s=0.2,
                ) as transport:
                    from tinker_async.transport import Request

                    with pytest.raises(ConnectError, match="by the proxy"):
                        await transport.request(Request("GET", "/", ()))
            tasks.cancel_scope.cancel()


# Which proxy


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "ftp://h",
        "http://h/path",
        "http://h?q=1",
        "http://h:99999",
        "http://[",
        "h:0",
        "h h",
    ],
)
def test_a_malformed_proxy_is_refused_without_its_password(url: str) -> None:
    """The message shows the right form."""
    for text in (url, url.replace("//", "//user:hidden@")):
        with pytest.raises(ConfigError, match="http://\\[user:password@\\]host") as caught:
            parse_proxy(text)
        assert "hidden" not in str(caught.value) + repr(caught.value.__cause__)


@pytest.mark.parametrize("url", ["socks5://h:1", "socks5h://u:p@h", "SOCKS4://h"])
def test_socks_is_named_as_what_is_not_supported(url: str) -> None:
    """And what to do instead."""
    with pytest.raises(ConfigError, match="SOCKS"):
        parse_proxy(url)


def chosen(url: str, argument: str | None = None, **env: str) -> str | None:
    proxy = proxy_rules(argument, env).proxy_for(url)
    return proxy.address if proxy is not None else None


def test_the_variables_go_by_the_scheme_of_the_target() -> None:
    """Then `ALL_PROXY`; lower case wins."""
    both = {"HTTPS_PROXY": "s:1", "HTTP_PROXY": "p:1"}
    assert "s:1" == chosen("https://h", **both)
    assert "p:1" == chosen("http://h", **both)
    assert "a:1" == chosen("http://h", HTTPS_PROXY="s:1", ALL_PROXY="a:1")
    assert "low:1" == chosen("https://h", https_proxy="low:1", HTTPS_PROXY="s:1")
    assert "s:80" == chosen("https://h", https_proxy="", HTTPS_PROXY="http://s")
    assert chosen("https://h", HTTP_PROXY="p:1") is None
    assert chosen("http://h", HTTP_PROXY="p:1", REQUEST_METHOD="GET") is None
    assert "p:1" == chosen("http://h", http_proxy="p:1", REQUEST_METHOD="GET")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "[::1]", "a.localhost"])
def test_this_machine_needs_no_proxy_but_an_argument_is_taken_at_its_word(host: str) -> None:
    """The environment is about the world outside."""
    assert chosen(f"http://{host}:8000", ALL_PROXY="p:1") is None
    assert "p:2" == chosen(f"http://{host}:8000", "p:2", ALL_PROXY="p:1")


def test_an_argument_of_false_goes_without() -> None:
    """Whatever the environment says."""
    assert proxy_rules(False, {"ALL_PROXY": "p:1"}).proxy_for("http://h") is None


@pytest.mark.parametrize(
    ("entry", "exempt", "others"),
    [
        ("*", ["https://h"], []),
        ("example.com", ["https://example.com", "https://a.example.com"], ["https://xexample.com"]),
        (".example.com", ["https://a.example.com"], ["https://example.org"]),
        ("*.example.com", ["https://a.example.com"], ["https://example.org"]),
        ("EXAMPLE.com", ["https://example.COM"], []),
        ("h:8443", ["https://h:8443"], ["https://h", "https://h:1"]),
        ("h:443", ["https://h"], ["http://h"]),
        ("10.0.0.0/8", ["https://10.1.2.3"], ["https://11.1.2.3", "https://ten"]),
        ("10.1.2.3", ["https://10.1.2.3"], ["https://10.1.2.30"]),
        ("2001:db8::1", ["https://[2001:db8::1]"], ["https://[2001:db8::2]"]),
        ("[2001:db8::1]", ["https://[2001:db8::1]"], ["https://[2001:db8::2]"]),
        ("2001:db8::/32", ["https://[2001:db8:1::1]"], ["https://[2001:db9::2]"]),
        (" , ,h, ", ["https://h"], ["https://other"]),
    ],
)
def test_no_proxy_exempts_names_below_it_ports_and_networks(
    entry: str, exempt: list[str], others: list[str]
) -> None:
    """As other programs read it."""
    for url in exempt:
        assert chosen(url, ALL_PROXY="p:1", NO_PROXY=entry) is None
    for url in others:
        assert "p:1" == chosen(url, ALL_PROXY="p:1", no_proxy=entry)


# Whom to believe


async def test_a_ca_bundle_is_believed_and_nobody_else(ca_bundle: str, tmp_path: Path) -> None:
    """By argument and by `SSL_CERT_FILE`; another authority's bundle is not enough."""
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    service = FakeService()
    with anyio.fail_after(20):
        async with service.serve(ssl_context=server_context()) as url:
            await use(Session(url, service.api_key, ca_bundle=ca_bundle))
            with pytest.raises(ConnectError, match="certificate"):
                await use(Session(url, service.api_key, ca_bundle=other, retry=ONCE))


async def test_ssl_cert_file_and_dir_are_honoured(
    ca_bundle: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The folder has the names that OpenSSL looks for."""
    service = FakeService()
    with anyio.fail_after(20):
        async with service.serve(ssl_context=server_context()) as url:
            with pytest.raises(ConnectError, match="certificate"):
                await use(Session(url, service.api_key, retry=ONCE))
            monkeypatch.setenv("SSL_CERT_FILE", ca_bundle)
            await use(Session(url, service.api_key))


@pytest.mark.parametrize("content", [None, "", "no certificate"])
async def test_a_bundle_without_certificates_is_named(tmp_path: Path, content: str | None) -> None:
    """Before anything is connected."""
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with anyio.fail_after(10), pytest.raises(ConfigError, match=r"ca_bundle '.*ca\.pem'"):
        async with Session("https://127.0.0.1:1", "tml-x", ca_bundle=path):
            pass


def test_a_bundle_and_a_context_are_one_too_many(ca_bundle: str) -> None:
    """Neither wins in silence."""
    with pytest.raises(ConfigError, match="ssl_context and ca_bundle"):
        Session("https://h", "tml-x", ca_bundle=ca_bundle, ssl_context=ssl.create_default_context())
