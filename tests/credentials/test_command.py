"""`TINKER_CREDENTIAL_CMD`: run when a credential is needed, within its time, and never shown."""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from support.scripted import Call, ScriptedServer, scripted_server

from tinker_async import ConfigError, CredentialError, RetryPolicy, Session
from tinker_async.api.connecting import open_caller
from tinker_async.api.handshake import ask_switches
from tinker_async.config import resolve_config
from tinker_async.credentials.command import credential_from_command
from tinker_async.credentials.secret import Secret

QUICK = RetryPolicy(max_attempts=2, base_s=0.001, max_s=0.001)
REVOKED = (401, {"www-authenticate": 'Bearer error="invalid_token"'}, b"{}")


@pytest.fixture
async def server() -> AsyncGenerator[ScriptedServer]:
    """A scripted server."""
    async with scripted_server() as running:
        yield running


def jwt(exp: float) -> str:
    parts = [base64.urlsafe_b64encode(json.dumps(p).encode()) for p in ({"alg": "x"}, {"exp": exp})]
    return b".".join(part.rstrip(b"=") for part in [*parts, b"c2ln"]).decode()


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command that prints tml-0, tml-1, ... and counts its runs in a file."""
    count = tmp_path / "runs"
    count.write_text("0")
    program = (
        f"from pathlib import Path; p = Path({str(count)!r}); n = int(p.read_text());"
        "p.write_text(str(n + 1)); print(f'  tml-{n}  ')"
    )
    script = tmp_path / "command.py"
    script.write_text(program)
    monkeypatch.setenv("TINKER_CREDENTIAL_CMD", f"'{sys.executable}' '{script}'")
    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    return count


async def test_what_it_prints_is_the_key(server: ScriptedServer, command: Path) -> None:
    """For a server that exchanges nothing: run once, for all requests."""
    with anyio.fail_after(20):
        async with Session(server.url) as session:
            await session.create_sampling_client(base_model="m")

    assert {"tml-0"} == {call.headers["x-api-key"] for call in server.calls}
    assert "1" == command.read_text()  # noqa: ASYNC240  # the loop is over


async def test_a_rejected_one_is_printed_anew(server: ScriptedServer, command: Path) -> None:
    """A server that says `invalid_token` gets another, once."""

    def only_the_second(call: Call) -> Any:
        return {} if call.headers["x-api-key"] == "tml-1" else REVOKED

    server.on("client/dynamic_config", only_the_second)
    with anyio.fail_after(20):
        async with open_caller(resolve_config(server.url)) as caller:
            await ask_switches(caller)
            await ask_switches(caller)

    sent = [call.headers["x-api-key"] for call in server.calls]
    assert ["tml-0", "tml-1", "tml-1"] == sent


async def test_an_exchange_takes_a_fresh_one(server: ScriptedServer, command: Path) -> None:
    """Each exchange runs it, since what it prints may be short-lived."""
    server.on("client/config", lambda _call: {"pjwt_auth_enabled": True})
    server.on("auth/token", lambda _call: {"jwt": jwt(time.time() + 3600)})
    with anyio.fail_after(20):
        async with Session(server.url):
            pass

    assert ["tml-1"] == [call.headers["x-api-key"] for call in server.seen("auth/token")]


async def test_a_server_that_wants_the_command_gets_it_instead_of_the_key(
    server: ScriptedServer, command: Path
) -> None:
    """`credential_default_source`; but a token given as key is used."""
    wants = {"pjwt_auth_enabled": True, "credential_default_source": "credential_cmd"}
    server.on("client/config", lambda _call: wants)
    server.on("auth/token", lambda _call: {"jwt": jwt(time.time() + 3600)})
    given = jwt(time.time() + 1000)
    with anyio.fail_after(20):
        async with Session(server.url, "tml-key"):
            pass
        async with Session(server.url, given):
            pass

    exchanged = [call.headers["x-api-key"] for call in server.seen("auth/token")]
    assert ["tml-0", given] == exchanged


async def test_a_server_that_wants_a_command_is_told_apart(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one, the error says what to set."""
    monkeypatch.delenv("TINKER_CREDENTIAL_CMD", raising=False)
    wants = {"pjwt_auth_enabled": True, "credential_default_source": "credential_cmd"}
    server.on("client/config", lambda _call: wants)
    with anyio.fail_after(20), pytest.raises(CredentialError, match="TINKER_CREDENTIAL_CMD"):
        async with Session(server.url, "tml-key"):
            pass


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("exit 3", "status 3"),
        ("true", "printed nothing"),
        ("echo two words", "cannot be a credential"),
        ("printf 'a\\nb'", "cannot be a credential"),
        ("printf 'hidd\\351n'", "cannot be a credential"),
        (f"echo {jwt(1)}", "has expired"),
        ("/no/such/hidden-program", "status 127"),
    ],
)
async def test_a_command_that_fails_is_told_without_its_words(program: str, says: str) -> None:
    """Neither its output, its complaints, nor the command itself: each may hold a secret."""
    line = f"{program}; status=$?; echo hidden >&2; exit $status"
    with (
        structlog.testing.capture_logs() as logs,
        anyio.fail_after(20),
        pytest.raises(CredentialError, match=says) as caught,
    ):
        await credential_from_command(Secret(line))

    shown = f"{caught.value} {caught.value.__cause__!r} {vars(caught.value)} {logs}"
    assert "hidden" not in shown
    assert "two words" not in shown
    assert jwt(1) not in shown


async def test_a_command_has_a_bounded_time() -> None:
    """Then it is killed."""
    with anyio.fail_after(20), pytest.raises(CredentialError, match=r"longer than 0\.2 s"):
        await credential_from_command(Secret("exec sleep 100"), limit_s=0.2)


async def test_a_cancelled_command_is_killed(tmp_path: Path) -> None:
    """Whoever gives up does not leave it behind: the pipe that it holds is closed."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            command = Secret(f"exec 3>{pipe}; printf x >&3; exec sleep 100")
            tasks.start_soon(credential_from_command, command)
            reading = await anyio.open_file(pipe, "rb", buffering=0)
            assert b"x" == await reading.read(1)
            tasks.cancel_scope.cancel()
        assert b"" == await reading.read(1)
        await reading.aclose()


async def test_the_command_is_in_nothing_that_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have a password in it."""
    monkeypatch.setenv("TINKER_CREDENTIAL_CMD", "get-token --password hidden")
    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    config = resolve_config("http://h")

    assert "hidden" not in repr(config) + repr(Session("http://h")) + repr(config.secrets)
    with pytest.raises(ConfigError):
        _ = config.api_key
