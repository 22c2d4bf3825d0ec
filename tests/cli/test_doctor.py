"""`doctor` names the first stage that is broken, and what to do; of what is sound it says nothing bad."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from anyio.from_thread import start_blocking_portal
from cli.conftest import KEY
from support.proxy import Proxy, running_proxy

from tinker_async.cli import doctor_network
from tinker_async.cli.doctor_stages import STAGES
from tinker_async.testing import FakeService, faults
from tinker_async.testing.likeness import LIKENESSES
from tinker_async.wire.messages import ClientConfigResponse

if TYPE_CHECKING:
    from pathlib import Path

    from cli.conftest import Cli, Serve


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def bundle(authority: trustme.CA, tmp_path: Path) -> str:
    """The file of the authority's certificate."""
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def server_context(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2", "http/1.1"])
    authority.issue_cert(*names).configure_cert(context)
    return context


class Found:
    """What the doctor said, by stage."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.stages = {stage["name"]: stage for stage in document["stages"]}
        assert list(STAGES) == list(self.stages)

    def states(self) -> dict[str, str]:
        return {name: stage["state"] for name, stage in self.stages.items()}

    def assert_broken(self, name: str, *words: str) -> None:
        """This stage failed and says so; those before it did not, those after were not tried."""
        stage = self.stages[name]
        assert name == self.document["broken"], self.document
        assert self.document["healthy"] is False
        for word in words:
            assert word in f"{stage['found']} / {stage['todo']}"
        assert stage["todo"]
        states = list(self.states().values())
        at = STAGES.index(name)
        assert "failed" == states[at]
        assert not {"failed"} & {*states[:at]}
        assert {"skipped"} == {*states[at + 1 :], "skipped"}

    def assert_healthy(self) -> None:
        assert self.document["healthy"] is True, self.document
        assert self.document["broken"] is None
        assert "failed" not in self.states().values()


def examined(cli: Cli, *options: str, exit_code: int = 0) -> Found:
    result = cli.ask("doctor", "--json", *options)
    assert exit_code == result.exit_code, result.output
    assert KEY not in result.output
    return Found(json.loads(result.stdout))


# Sound


def test_a_healthy_server_is_well_to_its_sample(cli: Cli, service: FakeService) -> None:
    """Every stage that applies is ok, with its time; the session is ended."""
    found = examined(cli)

    found.assert_healthy()
    states = found.states()
    assert {"dns", "proxy", "tls"} == {name for name, one in states.items() if one == "skipped"}
    assert "HTTP/1.1" in found.stages["http"]["found"]
    assert found.stages["credential"]["found"].startswith("accepted: ")
    assert "toy" in found.stages["models"]["found"]
    assert "1 token from toy" == found.stages["sample"]["found"]
    assert all(found.stages[name]["took_ms"] >= 0 for name, one in states.items() if one == "ok")
    assert 1 == len(service.ledger.samples)
    assert ["success"] == [one.ended for one in service.state.sessions.values()]


def test_without_a_sample_nothing_is_charged_for(cli: Cli, service: FakeService) -> None:
    """No session, either."""
    found = examined(cli, "--no-sample")

    found.assert_healthy()
    assert "skipped" == found.stages["session"]["state"] == found.stages["sample"]["state"]
    assert not service.state.sessions


def test_a_healthy_server_behind_tls(
    cli: Cli, service: FakeService, serve: Serve, authority: trustme.CA, bundle: str
) -> None:
    """Its name is resolved, its certificate believed, HTTP/2 spoken."""
    with serve(service, server_context(authority, "localhost")) as url:
        cli.use(url.replace("127.0.0.1", "localhost"))
        found = examined(cli, "--ca-bundle", bundle)

    found.assert_healthy()
    assert "127.0.0.1" in found.stages["dns"]["found"]
    assert "TLSv1.3, h2, certificate until " in found.stages["tls"]["found"]
    assert "HTTP/2" in found.stages["http"]["found"]


def test_a_server_that_exchanges_keys_for_tokens(cli: Cli, serve: Serve) -> None:
    """The token's claims say who it is."""
    config = ClientConfigResponse(pjwt_auth_enabled=True)
    with serve(FakeService(api_key=KEY, config=config)) as url:
        cli.use(url)
        found = examined(cli)

    found.assert_healthy()
    assert "accepted: fake@example.com" == found.stages["credential"]["found"]


# Old servers


def test_an_old_server_is_well_and_said_to_be_old(cli: Cli, service: FakeService) -> None:
    """No client/config, no dynamic config, nothing about keys, no word of health."""
    for endpoint in ("client/config", "client/dynamic_config", "auth/apikey/me", "healthz"):
        service.faults.on(endpoint, faults.Status(status=404, detail="Not Found"))
    found = examined(cli)

    found.assert_healthy()
    assert "healthz answers 404" in found.stages["http"]["found"]
    assert "does not say whose" in found.stages["credential"]["found"]
    assert (
        "older server, without client/config and dynamic_config"
        in (found.stages["protocol"]["found"])
    )
    assert found.document["features"].get("client_config") in (False, None)


@pytest.mark.parametrize("like", sorted(LIKENESSES))
def test_servers_of_other_kinds_and_ages_are_well(like: str, cli: Cli, serve: Serve) -> None:
    """What they lack is no fault, and is listed; JSON results are understood."""
    with serve(FakeService(api_key=KEY, like=like)) as url:
        cli.use(url)
        found = examined(cli)

    found.assert_healthy()
    assert "dynamic_config" in found.stages["protocol"]["found"]
    assert "1 token from toy" == found.stages["sample"]["found"]
    assert found.document["features"]["dynamic_config"] is False


@pytest.mark.parametrize("like", sorted(LIKENESSES))
def test_a_wrong_key_is_named_with_servers_of_other_kinds(
    like: str, cli: Cli, serve: Serve
) -> None:
    """Whatever else they lack."""
    with serve(FakeService(api_key=KEY, like=like)) as url:
        cli.use(url, "tml-wrong-one")
        examined(cli, exit_code=3).assert_broken("credential", "401")


# Broken


def test_nothing_listening(cli: Cli) -> None:
    """The connection; the name is not the trouble."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        cli.use(f"http://127.0.0.1:{taken.getsockname()[1]}")
        found = examined(cli, exit_code=7)
    found.assert_broken("tcp", "nothing listens", "start the server")


def test_a_name_that_is_none(cli: Cli) -> None:
    """RFC 6761: `.invalid` never resolves."""
    cli.use("http://no-such-host.invalid")
    examined(cli, exit_code=7).assert_broken("dns", "could not be resolved", "host of base_url")


def test_no_credential(cli: Cli) -> None:
    """Before anything is connected."""
    cli.env["TINKER_API_KEY"] = None
    examined(cli, exit_code=3).assert_broken("settings", "no credential", "auth login")


def test_an_address_that_is_none(cli: Cli) -> None:
    """A wrong setting."""
    cli.use("localhost:8000")
    examined(cli, exit_code=2).assert_broken("settings", "localhost:8000", "https://host")


@pytest.mark.parametrize("old", [False, True])
def test_a_wrong_key(old: bool, cli: Cli, service: FakeService) -> None:
    """The credential, with every server; the network is sound."""
    cli.env["TINKER_API_KEY"] = "tml-wrong-one"
    if old:
        service.faults.on("client/config", faults.Status(status=404, detail="Not Found"))
    found = examined(cli, exit_code=3)
    found.assert_broken("credential", "401", "API key")
    assert "wrong-one" not in json.dumps(found.document)


def test_a_key_without_the_right(cli: Cli, service: FakeService) -> None:
    """403 has a code of its own."""
    service.faults.on("get_server_capabilities", faults.Status(status=403, detail="not for you"))
    examined(cli, exit_code=4).assert_broken("credential", "not for you")


def test_https_to_a_port_without_tls(cli: Cli, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What to write instead is said, also of a server that waits for more of such a request."""
    monkeypatch.setattr(doctor_network, "_CONNECT_S", 0.5)
    cli.use(url.replace("http:", "https:"))
    examined(cli, exit_code=7).assert_broken("tls", "does not speak TLS", "use http://")


def test_https_to_a_port_that_refuses_it(cli: Cli) -> None:
    """Most servers without TLS answer at once that this is no request."""
    with greeting(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n") as port:
        cli.use(f"https://127.0.0.1:{port}")
        found = examined(cli, exit_code=7)
    found.assert_broken("tls", "does not speak TLS", "use http://")


def test_http_to_a_port_with_tls(
    cli: Cli, service: FakeService, serve: Serve, authority: trustme.CA
) -> None:
    """Found although plain requests to it only break."""
    with serve(service, server_context(authority, "127.0.0.1")) as url:
        cli.use(url.replace("https:", "http:"))
        found = examined(cli, exit_code=7)
    found.assert_broken("tls", "speaks TLS", "use https://")


def test_a_complaint_about_plain_requests_is_tls(cli: Cli, authority: trustme.CA) -> None:
    """Some servers answer 400 in plain text at their TLS ports."""
    with complaining(server_context(authority, "127.0.0.1")) as port:
        cli.use(f"http://127.0.0.1:{port}")
        found = examined(cli, exit_code=7)
    found.assert_broken("tls", "speaks TLS", "use https://")


def test_an_authority_that_is_not_trusted(
    cli: Cli, service: FakeService, serve: Serve, authority: trustme.CA
) -> None:
    """How to name it."""
    with serve(service, server_context(authority, "127.0.0.1")) as url:
        cli.use(url)
        found = examined(cli, exit_code=7)
    found.assert_broken("tls", "certificate", "--ca-bundle")


@pytest.mark.parametrize("name", ["other.example", "10.1.2.3"])
def test_a_certificate_of_another_host(
    name: str, cli: Cli, service: FakeService, serve: Serve, authority: trustme.CA, bundle: str
) -> None:
    """The authority is trusted, the name is wrong."""
    with serve(service, server_context(authority, name)) as url:
        cli.use(url)
        found = examined(cli, "--ca-bundle", bundle, exit_code=7)
    found.assert_broken("tls", "mismatch", "as the certificate names it")


def test_a_certificate_that_has_expired(
    cli: Cli, service: FakeService, serve: Serve, bundle: str, authority: trustme.CA
) -> None:
    """The clock may be the reason."""
    past = datetime(2020, 1, 1, tzinfo=UTC)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", not_after=past).configure_cert(context)
    with serve(service, context) as url:
        cli.use(url)
        found = examined(cli, "--ca-bundle", bundle, exit_code=7)
    found.assert_broken("tls", "expired", "clock")


def test_a_port_that_speaks_something_else(cli: Cli) -> None:
    """HTTP is what is broken; encryption is not asked for."""
    with greeting(b"220 mail.example ESMTP\r\n") as port:
        cli.use(f"http://127.0.0.1:{port}")
        found = examined(cli, exit_code=7)
    found.assert_broken("http")


def test_a_server_that_is_ill(cli: Cli, service: FakeService) -> None:
    """It answers, but not well."""
    service.faults.on("healthz", faults.Status(status=503, detail="warming up"))
    examined(cli, exit_code=8).assert_broken("http", "warming up")


def test_a_web_server_that_is_no_tinker_server(cli: Cli) -> None:
    """It answers everything with 404, whatever the key."""
    with greeting(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n") as port:
        cli.use(f"http://127.0.0.1:{port}")
        found = examined(cli, exit_code=7)
    found.assert_broken("protocol", "404", "is this a Tinker server?")


def test_a_server_whose_answers_are_no_json(cli: Cli, service: FakeService) -> None:
    """The protocol, not the key."""
    service.faults.on("get_server_capabilities", faults.BadJson())
    examined(cli, exit_code=8).assert_broken("protocol", "get_server_capabilities")


def test_a_server_that_makes_no_sessions(cli: Cli, service: FakeService) -> None:
    """All else is sound."""
    service.faults.on("create_session", faults.Status(status=402, detail="out of credit"))
    examined(cli, exit_code=4).assert_broken("session", "out of credit")


def test_a_model_that_cannot_be_sampled(cli: Cli, service: FakeService) -> None:
    """The last stage; the session is still ended in order."""
    found = examined(cli, "--base-model", "nonsense", exit_code=2)
    found.assert_broken("sample", "nonsense")
    assert ["success"] == [one.ended for one in service.state.sessions.values()]


def test_a_stage_that_takes_too_long_is_the_broken_one(cli: Cli, service: FakeService) -> None:
    """Silence is bounded."""
    service.faults.on("retrieve_future", faults.Stall())
    examined(cli, "--timeout", "1", exit_code=7).assert_broken("sample", "nothing within 1 s")


# Proxies


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(running_proxy()) as found,
    ):
        yield found


def test_a_tunnel_has_a_stage_of_its_own(
    cli: Cli, proxy: Proxy, service: FakeService, serve: Serve, authority: trustme.CA, bundle: str
) -> None:
    """The proxy's name and connection come first, and the certificate is the server's."""
    with serve(service, server_context(authority, "far.example")) as url:
        port = int(url.rpartition(":")[2])
        proxy.names["far.example"] = port
        cli.use(f"https://far.example:{port}")
        cli.env["HTTPS_PROXY"] = f"http://127.0.0.1:{proxy.port}"
        found = examined(cli, "--ca-bundle", bundle)
        found.assert_healthy()
        assert f"connected to the proxy 127.0.0.1:{proxy.port}" == found.stages["tcp"]["found"]
        assert "opens a tunnel to far.example" in found.stages["proxy"]["found"]

        proxy.answer = b"HTTP/1.1 403 Forbidden\r\n\r\n"
        refused = examined(cli, "--ca-bundle", bundle, exit_code=7)
        refused.assert_broken("proxy", "refused a tunnel", "403", "NO_PROXY")


def test_a_proxy_that_is_not_there(cli: Cli) -> None:
    """The connection to the proxy is what fails; it is said whose."""
    cli.use("https://far.example")
    cli.env["HTTPS_PROXY"] = "http://127.0.0.1:1"
    examined(cli, exit_code=7).assert_broken("tcp", "the proxy 127.0.0.1:1", "HTTPS_PROXY")


# For people


def test_people_see_each_stage_with_what_to_do(cli: Cli) -> None:
    """Lines of values between tabs in a pipe; the broken stage once more on stderr."""
    cli.env["TINKER_API_KEY"] = "tml-wrong-one"
    result = cli.ask("doctor")

    assert 3 == result.exit_code
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert list(STAGES) == [line[0] for line in lines]
    told = {line[0]: line for line in lines}
    assert "failed" == told["credential"][1]
    assert "check the API key" == told["credential"][4]
    assert "broken: credential\n" == result.stderr


# Servers of few words


@contextmanager
def answering(handle: Callable[[socket.socket], None]) -> Iterator[int]:
    """Accept connections in a thread, each handled in turn."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                try:
                    handle(connection)
                except OSError:
                    continue

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(20)


def greeting(text: bytes) -> Any:
    """Answer whatever is asked with this text, and hang up."""

    def handle(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(text)

    return answering(handle)


def complaining(context: ssl.SSLContext) -> Any:
    """Speak TLS, and answer plain requests with a complaint, as nginx does."""

    def handle(connection: socket.socket) -> None:
        if connection.recv(1, socket.MSG_PEEK) == b"\x16":
            with context.wrap_socket(connection, server_side=True) as secure:
                secure.recv(1 << 16)
        else:
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\nplain HTTP")

    return answering(handle)
