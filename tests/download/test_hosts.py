"""Where a download may lead: redirections, encryption, proxies, hosts that are not there."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
from download.file_server import (
    QUICK,
    Asked,
    External,
    Host,
    Reply,
    Signer,
    config_for,
    content,
    fetch,
    host,
    left,
)
from support.proxy import Proxy, running_proxy

from tinker_async.download.fetch import MAX_REDIRECTS, Reach, check_url
from tinker_async.errors import ConnectError, DownloadError, ProtocolError
from tinker_async.proxies import ProxyRules

BOUND_S = 30
AUTHORITY = trustme.CA()
SECURE_API = "https://api.example.com/base"
DATA = content(300_000)


def server_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    AUTHORITY.issue_cert("127.0.0.1", "files.test").configure_cert(context)
    return context


@pytest.fixture
def ca_bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(path)
    return str(path)


@pytest.fixture
async def secure(anyio_backend: object) -> AsyncIterator[Host]:
    async with host(server_context()) as found:
        found.files = {"a.bin": DATA}
        yield found


def redirect(to: str, status: int = 302) -> Reply:
    return Reply(status, {"Location": to})


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirections_are_followed_with_the_range(
    serving: Host, tmp_path: Path, status: int
) -> None:
    """Relative ones too; the connection is used again."""
    serving.files = {"a.bin": DATA}

    def behave(asked: Asked) -> Reply | None:
        if asked.name == "a.bin":
            return redirect("moved/b?token=x#part", status)
        reply = Reply(200, body=DATA)
        if asked.number == 0:
            return Reply(200, body=DATA, cut=200_000)
        first = asked.first or 0
        reply = Reply(206, body=DATA[first:])
        reply.headers["Content-Range"] = f"bytes {first}-{len(DATA) - 1}/{len(DATA)}"
        return reply

    serving.behave = behave
    with anyio.fail_after(BOUND_S):
        await fetch(Signer(serving), tmp_path / "x")

    assert DATA == (tmp_path / "x/a.bin").read_bytes()
    paths = [asked.path for asked in serving.asked]
    assert ["/a.bin?signature=1", "/moved/b?token=x"] * 2 == paths
    assert serving.asked[3].first == serving.asked[2].first == 200_000 - 65_536


async def test_redirections_without_end_are_an_error(serving: Host, tmp_path: Path) -> None:
    """After a few."""
    serving.files = {"a.bin": b""}
    serving.behave = lambda asked: redirect("/a.bin?again")
    with anyio.fail_after(BOUND_S), pytest.raises(DownloadError, match="redirects more than"):
        await fetch(Signer(serving), tmp_path / "x")

    assert MAX_REDIRECTS + 1 == len(serving.asked)
    assert [] == left(tmp_path)


class Offers(Signer):
    """Offers one URL as it is."""

    def __init__(self, serving: Host, url: str) -> None:
        super().__init__(serving)
        self.url = url

    async def get_external_weights_urls(self, tinker_path: str) -> External:
        await anyio.lowlevel.checkpoint()
        return External({"a.bin": self.url}, None)


@pytest.mark.parametrize(
    "url",
    [
        "http://files.example.com/a?signature=1",
        "file:///etc/passwd",
        "ftp://files.example.com/a",
        "gopher://x",
        "https://",
        "https://[::1/a",
        "https://host:99999/a",
        "https://host/a b",
        "https://host/a\r\nx-evil: 1",
        "https://höst/ä",
        "javascript:alert(1)",
    ],
    ids=ascii,
)
async def test_urls_that_are_not_allowed_are_asked_for_by_nobody(
    serving: Host, tmp_path: Path, url: str
) -> None:
    """Plain http among them, for a server that is reached by https. The error does not show it."""
    with anyio.fail_after(BOUND_S), pytest.raises(DownloadError) as caught:
        await fetch(Offers(serving, url), tmp_path / "x", config=config_for(SECURE_API))

    assert "signature" not in str(caught.value)
    assert "/etc" not in str(caught.value)
    assert [] == left(tmp_path)


@pytest.mark.parametrize("api", [SECURE_API, "http://10.0.0.5:8000"])
async def test_https_is_not_left_by_a_redirection(
    secure: Host, ca_bundle: str, tmp_path: Path, api: str
) -> None:
    """To another machine, whatever the server's own address is; this one is no network."""
    secure.behave = lambda asked: redirect("http://files.example.com/a?signature=1")
    config = config_for(api, ca_bundle=ca_bundle)
    with anyio.fail_after(BOUND_S), pytest.raises(DownloadError, match="without encryption"):
        await fetch(Signer(secure), tmp_path / "x", config=config)


async def test_https_may_lead_to_this_machine(
    serving: Host, ca_bundle: str, tmp_path: Path
) -> None:
    """By http on loopback."""
    serving.files = {"a.bin": DATA}
    config = config_for(SECURE_API, ca_bundle=ca_bundle)
    with anyio.fail_after(BOUND_S):
        async with host(server_context()) as secure:
            secure.files = serving.files
            secure.behave = lambda asked: redirect(f"{serving.url}/a.bin")
            await fetch(Signer(secure), tmp_path / "x", config=config)

    assert DATA == (tmp_path / "x/a.bin").read_bytes()


def test_plain_http_is_for_servers_that_are_plain_themselves() -> None:
    """A server of one's own network, such as SkyRL's."""
    assert check_url("http://10.0.0.5:8000/a", plain_allowed=True).port == 8000
    with pytest.raises(DownloadError, match=r"10\.0\.0\.5 without encryption"):
        check_url("http://10.0.0.5:8000/a", plain_allowed=False)
    for url in ("http://localhost/a", "http://127.0.0.1:1/a", "http://[::1]/a"):
        check_url(url, plain_allowed=False)


async def test_tls_is_verified_with_the_authorities_of_the_session(
    secure: Host, ca_bundle: str, tmp_path: Path
) -> None:
    """Its `ca_bundle`; without it the certificate is refused."""
    with anyio.fail_after(BOUND_S):
        await fetch(
            Signer(secure), tmp_path / "x", config=config_for(SECURE_API, ca_bundle=ca_bundle)
        )
        with pytest.raises(ConnectError, match="certificate"):
            await fetch(Signer(secure), tmp_path / "y", config=config_for(SECURE_API))

    assert DATA == (tmp_path / "x/a.bin").read_bytes()
    assert ["x"] == left(tmp_path)


async def test_a_host_that_is_not_there_is_a_connect_error(serving: Host, tmp_path: Path) -> None:
    """After the policy's attempts."""
    async with host() as gone:
        url = gone.url + "/a"
    with anyio.fail_after(BOUND_S), pytest.raises(ConnectError) as caught:
        await fetch(Offers(serving, url), tmp_path / "x")

    assert QUICK.max_attempts == caught.value.attempts
    assert [] == left(tmp_path)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH_9.6\r\n", b"", b"HTTP/1.1 200 OK\r\n", b"\0" * 200_000]
)
async def test_a_host_that_speaks_something_else_is_a_transport_error(
    serving: Host, tmp_path: Path, answer: bytes, scheme: str
) -> None:
    """Whatever it says; where TLS is not spoken, no connection was made."""

    async def speak(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            try:
                await stream.receive()
                await stream.send(answer)
            except (anyio.BrokenResourceError, anyio.EndOfStream):
                pass

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, speak)
        expected = ProtocolError if scheme == "http" else ConnectError
        with anyio.fail_after(BOUND_S), pytest.raises(expected):
            await fetch(Offers(serving, f"{scheme}://127.0.0.1:{port}/a"), tmp_path / "x")
        tasks.cancel_scope.cancel()


async def test_a_silent_host_times_out_and_is_given_up_by_the_policy(
    serving: Host, tmp_path: Path
) -> None:
    """The library's own limit of silence, in a transfer that has begun."""
    never = anyio.Event()
    serving.files = {"a.bin": DATA}
    serving.behave = lambda asked: Reply(200, {}, DATA, cut=100_000, hold=never)
    reach = Reach(ProxyRules(), ssl.create_default_context, plain_allowed=True, silence_s=0.05)
    with pytest.MonkeyPatch.context() as patch:
        from tinker_async.download import checkpoint

        patch.setattr(checkpoint._Download, "_reach", lambda _: reach)
        with anyio.fail_after(BOUND_S), pytest.raises(TimeoutError, match="kept"):
            await fetch(Signer(serving), tmp_path / "x")

    assert QUICK.max_attempts == len(serving.asked)


# Proxies


async def through(proxy: Proxy, signer: Signer, to: Path, **settings: Any) -> None:
    address = f"http://user:password@127.0.0.1:{proxy.port}"
    await fetch(signer, to, config=config_for(signer.host.url, **{"proxy": address, **settings}))


async def test_http_is_forwarded_by_the_proxy(serving: Host, tmp_path: Path) -> None:
    """With its password, which the host does not see."""
    serving.files = {"a.bin": DATA}
    with anyio.fail_after(BOUND_S):
        async with running_proxy(password="user:password") as proxy:
            await through(proxy, Signer(serving), tmp_path / "x")

    assert [f"{serving.url}/a.bin?signature=1"] == proxy.forwarded
    assert "proxy-authorization" not in serving.asked[0].headers
    assert DATA == (tmp_path / "x/a.bin").read_bytes()


async def test_https_goes_through_a_tunnel(secure: Host, ca_bundle: str, tmp_path: Path) -> None:
    """The proxy sees the host's address and nothing else."""
    with anyio.fail_after(BOUND_S):
        async with running_proxy(password="user:password") as proxy:
            await through(proxy, Signer(secure), tmp_path / "x", ca_bundle=ca_bundle)

    assert [secure.url.removeprefix("https://")] == proxy.tunnels
    assert [] == proxy.forwarded
    assert DATA == (tmp_path / "x/a.bin").read_bytes()


async def test_a_proxy_that_refuses_is_told_at_once(
    secure: Host, ca_bundle: str, tmp_path: Path
) -> None:
    """No attempts are wasted on a wrong password."""
    with anyio.fail_after(BOUND_S):
        async with running_proxy(password="user:other") as proxy:
            with pytest.raises(ConnectError, match="407"):
                await through(proxy, Signer(secure), tmp_path / "x", ca_bundle=ca_bundle)
            assert 1 == len(proxy.heads)


async def test_the_proxy_of_the_environment_is_not_used_for_this_machine(
    serving: Host, tmp_path: Path
) -> None:
    """As for the session's own connections."""
    from tinker_async.config import resolve_config

    serving.files = {"a.bin": DATA}
    with anyio.fail_after(BOUND_S):
        async with running_proxy() as proxy:
            environ = {"HTTP_PROXY": f"http://127.0.0.1:{proxy.port}"}
            config = resolve_config(serving.url, "tml-x", environ=environ)
            await fetch(Signer(serving), tmp_path / "x", config=config)

    assert [] == proxy.heads
