"""`RestClient.revoke_api_key`: which key is sent, what it ends, and what is never shown."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import anyio
import pytest
from support.scripted import ScriptedServer

from tinker_async import (
    AuthenticationError,
    CredentialError,
    InvalidInputError,
    NotFoundError,
    PermissionDeniedError,
    RestClient,
    RetryPolicy,
    SessionLostError,
    UnsupportedByServerError,
)
from tinker_async.api.connecting import open_caller
from tinker_async.api.handshake import ask_limits
from tinker_async.config import resolve_config
from tinker_async.testing import FakeService, faults, run_in_virtual_time
from tinker_async.transport import Request, Response
from tinker_async.wire.messages import ClientConfigResponse

KEY = "tml-to-be-ended"
TOKEN = "eyJhbGciOiJub25lIn0.eyJleHAiOjQxMDI0NDQ4MDB9."
QUICK = RetryPolicy(base_s=0.001, max_s=0.002)
NOTHING: tuple[int, dict[str, str], bytes] = (204, {}, b"")


@pytest.mark.parametrize("exchanged", [False, True])
async def test_a_key_is_ended_and_lets_nobody_in_any_more(exchanged: bool) -> None:
    """Also where the connection itself uses a token that was made of it."""
    config = ClientConfigResponse(pjwt_auth_enabled=exchanged)
    service = FakeService(api_key=KEY, config=config)
    with anyio.fail_after(10):
        async with service.serve() as url:
            async with RestClient.connect(url, KEY, retry=QUICK) as rest:
                await rest.get_server_capabilities()
                await rest.revoke_api_key()
                with pytest.raises(AuthenticationError) as caught:
                    await rest.get_server_capabilities()
            with pytest.raises(AuthenticationError):
                async with RestClient.connect(url, KEY):
                    pytest.fail("it let us in")

    assert KEY not in str(caught.value)
    assert exchanged == bool(service.ledger.count("auth/token"))


async def test_another_key_can_be_ended_with_itself_alone(server: ScriptedServer) -> None:
    """An old one, by who has a new one: that is not sent with it."""
    server.on("auth/apikey/me", lambda _: NOTHING)
    with anyio.fail_after(10):
        async with RestClient.connect(server.url, KEY) as rest:
            await rest.revoke_api_key("tml-an-old-one")
            await rest.get_server_capabilities()
    (ended,) = server.seen("auth/apikey/me")
    (after,) = server.seen("get_server_capabilities")

    assert ("DELETE", b"", "tml-an-old-one") == (
        ended.method,
        ended.body,
        ended.headers["x-api-key"],
    )
    assert KEY not in json.dumps(ended.headers)
    assert KEY == after.headers["x-api-key"]


class Noting:
    """Sends to a service, in process, and keeps each request's headers as they are sent."""

    def __init__(self, service: FakeService) -> None:
        self._transport = service.transport()
        self.sent: list[tuple[str, list[bytes]]] = []

    async def request(self, request: Request, *, silence_s: float | None = None) -> Response:
        keys = [value for name, value in request.headers if name == b"x-api-key"]
        self.sent.append((request.method, keys))
        return await self._transport.request(request, silence_s=silence_s)


async def test_no_other_credential_goes_with_the_key_and_no_token_is_made_for_it() -> None:
    """One header, with the key that is meant; the connection's own is neither sent nor exchanged."""
    service = FakeService(config=ClientConfigResponse(pjwt_auth_enabled=True))
    noting = Noting(service)
    config = resolve_config("http://fake.invalid", KEY, environ={})
    with anyio.fail_after(10):
        async with open_caller(config, transport=noting) as caller:
            await ask_limits(caller)
            await RestClient(caller).revoke_api_key("tml-an-old-one")
            await RestClient(caller).revoke_api_key()

    assert [("POST", [KEY.encode()])] == noting.sent[:1]
    assert [("DELETE", [b"tml-an-old-one"]), ("DELETE", [KEY.encode()])] == noting.sent[1:]
    assert 0 == service.ledger.count("auth/token")


@pytest.mark.parametrize("exchanged", [False, True])
async def test_what_a_command_prints_is_the_key_that_is_ended(
    exchanged: bool, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is run for that; what it prints is shown nowhere."""
    program = tmp_path / "key.py"
    program.write_text("print('tml-printed-one')", encoding="utf-8")
    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    monkeypatch.setenv("TINKER_CREDENTIAL_CMD", f"'{sys.executable}' '{program}'")
    server.on("client/config", lambda _: {"pjwt_auth_enabled": exchanged})
    server.on("auth/token", lambda _: {"jwt": TOKEN})
    refusal = b'{"detail": "not tml-printed-one, not today"}'
    server.on("auth/apikey/me", lambda _: (403, {}, refusal))
    with anyio.fail_after(20):
        async with RestClient.connect(server.url) as rest:
            await rest.get_server_capabilities()
            with pytest.raises(PermissionDeniedError) as caught:
                await rest.revoke_api_key()
    (ended,) = server.seen("auth/apikey/me")

    assert "tml-printed-one" == ended.headers["x-api-key"]
    assert "not today" in str(caught.value)
    assert "tml-printed-one" not in str(caught.value)
    assert "revoke_api_key" == caught.value.operation


async def test_a_token_that_was_given_is_no_key_to_end(server: ScriptedServer) -> None:
    """Nothing is sent, whether it is the connection's or an argument."""
    with anyio.fail_after(10):
        async with RestClient.connect(server.url, TOKEN) as rest:
            with pytest.raises(CredentialError, match="token") as of_connection:
                await rest.revoke_api_key()
            with pytest.raises(InvalidInputError, match="token") as of_argument:
                await rest.revoke_api_key(TOKEN)

    assert [] == server.seen("auth/apikey/me")
    for caught in (of_connection, of_argument):
        assert "eyJ" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["", "two words", "tml-ä", "tml-\n", 5, object(), b"tml-x"])
async def test_what_cannot_be_a_key_is_refused_without_being_shown(
    wrong: object, server: ScriptedServer
) -> None:
    """Before anything is sent."""
    with anyio.fail_after(10):
        async with RestClient.connect(server.url, KEY) as rest:
            with pytest.raises(InvalidInputError, match="tml-") as caught:
                await rest.revoke_api_key(wrong)  # type: ignore[arg-type]  # that is the point

    assert "api_key" == caught.value.field
    assert "words" not in str(caught.value)
    assert [] == server.seen("auth/apikey/me")


@pytest.mark.parametrize("fault", [faults.DropReply(), faults.Status(502, commit=True)])
async def test_a_key_whose_end_was_not_heard_of_is_ended_all_the_same(fault: faults.Fault) -> None:
    """The repetition finds it ended: that is what was asked for."""
    service = FakeService(api_key=KEY)
    service.faults.on("revoke_api_key", fault, occurrence=1)
    with anyio.fail_after(10):
        async with service.serve() as url, RestClient.connect(url, KEY, retry=QUICK) as rest:
            await rest.revoke_api_key()

    assert [401] == [one.status for one in service.ledger.of("revoke_api_key")][1:]


async def test_a_key_that_the_server_does_not_know_is_told(server: ScriptedServer) -> None:
    """No attempt of ours was in doubt."""
    server.on("auth/apikey/me", lambda _: (401, {}, b""))
    with anyio.fail_after(10):
        async with RestClient.connect(server.url, KEY) as rest:
            with pytest.raises(AuthenticationError):
                await rest.revoke_api_key("tml-unknown")

    assert 1 == len(server.seen("auth/apikey/me"))


async def test_a_server_without_keys_is_said_to_have_none(server: ScriptedServer) -> None:
    """The second time nothing is sent; a key that is not there is another error."""
    server.on("auth/apikey/me", lambda _: (404, {}, b'{"detail": "Not Found"}'))
    with anyio.fail_after(10):
        async with RestClient.connect(server.url, KEY) as rest:
            for _ in range(2):
                with pytest.raises(UnsupportedByServerError, match="key revocation"):
                    await rest.revoke_api_key()
            server.on("auth/apikey/me", lambda _: (404, {}, b'{"detail": "no such key"}'))
        async with RestClient.connect(server.url, KEY) as rest:
            with pytest.raises(NotFoundError):
                await rest.revoke_api_key()

    assert 2 == len(server.seen("auth/apikey/me"))


def test_a_session_that_goes_on_with_an_ended_key_ends() -> None:
    """Its next heartbeat is refused."""

    async def main() -> None:
        service = FakeService(api_key=KEY)
        with anyio.fail_after(15):  # one heartbeat
            async with service.session() as session:
                await session.rest.revoke_api_key()
                await anyio.sleep_forever()

    with pytest.raises(SessionLostError, match="no longer accepts the credential"):
        run_in_virtual_time(main)
