"""Headers, project, tags and Cloudflare: argument, environment, default; and what is refused."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from support.loops import ASYNCIO
from support.scripted import ScriptedServer

from tinker_async import APIStatusError, ConfigError, RetryPolicy, Session
from tinker_async.config import resolve_config

CLOUDFLARE = {
    "CLOUDFLARE_ACCESS_CLIENT_ID": "id",
    "CLOUDFLARE_ACCESS_CLIENT_SECRET": "s3cr3t-s3cr3t",
}


async def test_extra_headers_are_sent_with_every_request(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the argument and Cloudflare's."""
    for name, value in CLOUDFLARE.items():
        monkeypatch.setenv(name, value)
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", headers={"X-Team": "red", "Cookie": "a=b"}):
            pass

    assert 4 == len(server.calls)
    for call in server.calls:
        sent = [call.headers[name] for name in ("x-team", "cookie", "cf-access-client-id")]
        assert ["red", "a=b", "id"] == sent
        assert "s3cr3t-s3cr3t" == call.headers["cf-access-client-secret"]


def test_an_argument_beats_cloudflares_variables() -> None:
    """As everywhere."""
    config = resolve_config(
        "http://h", "k", headers={"CF-Access-Client-Id": "mine"}, environ=CLOUDFLARE
    )
    assert "mine" == dict(config.headers)["cf-access-client-id"].reveal()


@pytest.mark.parametrize(
    "name", ["X-API-Key", "host", "Content-Length", "x-stainless-os", "User-Agent", "X-Tinker-Foo"]
)
def test_headers_of_our_own_are_not_overridden(name: str) -> None:
    """Not in silence, and not at all."""
    with pytest.raises(ConfigError, match="the client sets itself") as caught:
        Session("http://h", "tml-x", headers={name: "hidden"})
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, "v") for name in ("", "a b", "a:b", "a\r\nb", "é")),
        *(("a", value) for value in ("v\r\nhidden: 1", "hidden\x00", " hidden", "hiddén")),
    ],
)
def test_malformed_headers_are_refused_without_their_values(name: str, value: str) -> None:
    """Nothing can be smuggled into a request."""
    with pytest.raises(ConfigError, match="header") as caught:
        Session("http://h", "tml-x", headers={name: value})
    assert "hidd" not in str(caught.value)


@pytest.mark.parametrize("header", ["cf-access-client-secret", "Authorization", "X-My-Token"])
async def test_secret_headers_that_the_server_repeats_are_not_in_the_error(
    server: ScriptedServer, header: str
) -> None:
    """By their names: values of others may be seen."""
    secret = "never-to-be-seen"

    def echo(call: Any) -> Any:
        said = f"{call.headers[header.lower()]} and {call.headers['x-team']} are wrong"
        return 400, {"content-type": "application/json"}, json.dumps({"detail": said}).encode()

    server.on("create_session", echo)
    headers = {header: secret, "x-team": "visible-team"}
    with anyio.fail_after(5), pytest.raises(APIStatusError) as caught:
        async with Session(server.url, "tml-x", headers=headers):
            pass
    assert "visible-team" in caught.value.detail
    assert secret not in str(caught.value)


def test_what_a_session_says_of_itself_comes_from_the_environment_too() -> None:
    """Project and tags; the argument wins, also when it is empty."""
    env = {"TINKER_PROJECT_ID": "p-env", "TINKER_TAGS": " a, b ,,"}

    config = resolve_config("http://h", "k", environ=env)
    assert ("p-env", ("a", "b")) == (config.project_id, config.tags)
    config = resolve_config("http://h", "k", project_id="p", tags=[], environ=env)
    assert ("p", ()) == (config.project_id, config.tags)
    config = resolve_config("http://h", "k", environ={"TINKER_PROJECT_ID": ""})
    assert (None, ()) == (config.project_id, config.tags)


@pytest.mark.parametrize(
    ("text", "on"),
    [
        *((text, True) for text in ("1", "TRUE", "yes", " on ")),
        *((text, False) for text in ("", "0", "2", "off", "y")),
    ],
)
def test_telemetry_is_off_unless_it_is_asked_for(text: str, on: bool) -> None:
    """By one of four words, or the argument, which wins."""
    env = {"TINKER_TELEMETRY": text}

    assert resolve_config("http://h", "k", environ={}).telemetry is False
    assert on == resolve_config("http://h", "k", environ=env).telemetry
    assert resolve_config("http://h", "k", telemetry=not on, environ=env).telemetry is not on


def test_a_config_cannot_be_changed_and_shows_no_secret() -> None:
    """All that it may hold."""
    config = resolve_config(
        "http://h",
        "tml-hidden",
        headers={"authorization": "hidden"},
        proxy="http://user:hidden@proxy",
        environ={
            "TINKER_CREDENTIAL_CMD": "hidden",
            "CLOUDFLARE_ACCESS_CLIENT_SECRET": "hidden",
        },
    )
    with pytest.raises(AttributeError):
        config.base_url = "x"  # type: ignore[misc]
    from_environment = resolve_config(
        "https://h", "k", environ={"HTTPS_PROXY": "http://u:hidden@proxy"}
    )

    assert "hidden" not in f"{config} {config.secrets} {config.proxy} {from_environment}"
    assert "proxy:80" == getattr(config.proxy, "address", None)


@pytest.mark.parametrize("anyio_backend", [ASYNCIO])  # an engine of its own: seconds
async def test_a_local_session_takes_no_proxy_and_no_telemetry_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It talks to a process of its own."""
    env = {"HTTP_PROXY": "http://x", "ALL_PROXY": "x", "TINKER_TELEMETRY": "1", **CLOUDFLARE}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    local, seen = Session.local("tiny-llama", threads=1), []
    opened = local._open_transport

    def noted(config: Any) -> Any:
        seen.append(config)
        return opened(config)

    local._open_transport = noted
    with anyio.fail_after(120):
        async with local as session:
            assert session.telemetry is None

    (config,) = seen
    assert (None, (), False) == (config.proxy, config.headers, config.telemetry)


async def test_tokens_and_keys_are_sent_by_http2_too(server: ScriptedServer) -> None:
    """The head that is written once is written again when the credential changes."""
    from tinker_async.testing import FakeService
    from tinker_async.wire.messages import ClientConfigResponse

    service = FakeService(api_key="tml-fake", config=ClientConfigResponse(pjwt_auth_enabled=True))
    policy = RetryPolicy(max_attempts=1)
    with anyio.fail_after(10):
        async with (
            service.serve() as url,
            Session(url, "tml-fake", http2=True, retry=policy) as session,
        ):
            for _ in range(3):
                await session.get_server_capabilities()
                service.revoke_tokens()

    assert 4 == service.ledger.count("auth/token")
