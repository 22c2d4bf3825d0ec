"""Telemetry: off unless asked for, in the official form, without secrets, never in the way."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support.scripted import Call, ScriptedServer
from tinker.types.telemetry_send_request import TelemetrySendRequest

from tinker_async import RestClient, RetryPolicy, Session
from tinker_async.api.connecting import open_caller
from tinker_async.background import telemetry as module
from tinker_async.config import resolve_config
from tinker_async.testing import FakeService, faults, run_in_virtual_time

KEY = "tml-never-to-be-seen"
QUICK = RetryPolicy(max_attempts=2, base_s=0.001, max_s=0.001)


def accepted(_call: Call) -> Any:
    return {"status": "accepted"}


def batches(server: ScriptedServer) -> list[TelemetrySendRequest]:
    """What was sent, as the official client's strict model reads it."""
    return [TelemetrySendRequest.model_validate_json(c.body) for c in server.seen("telemetry")]


def events(server: ScriptedServer) -> list[dict[str, Any]]:
    return [event for call in server.seen("telemetry") for event in call.json["events"]]


@pytest.fixture(autouse=True)
def _not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINKER_TELEMETRY", raising=False)


async def test_nothing_is_told_unless_it_is_asked_for(server: ScriptedServer) -> None:
    """Not even of an error."""
    with anyio.fail_after(5), pytest.raises(ZeroDivisionError):
        async with Session(server.url, KEY) as session:
            assert session.telemetry is None
            raise ZeroDivisionError

    assert [] == server.seen("telemetry")


@pytest.mark.parametrize("by_argument", [True, False])
async def test_start_end_and_own_events_are_told(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, by_argument: bool
) -> None:
    """In one body that the official models accept, sent after the session was finished."""
    server.on("telemetry", accepted)
    monkeypatch.setenv("TINKER_TELEMETRY", "0" if by_argument else "on")
    with anyio.fail_after(5):
        async with Session(server.url, KEY, telemetry=by_argument or None) as session:
            assert session.telemetry is not None
            assert session.telemetry.log("epoch", {"n": 1, "text": "ü"}, "DEBUG")

    (batch,) = batches(server)
    assert ["SESSION_START", "GENERIC_EVENT", "SESSION_END"] == [e.event for e in batch.events]
    assert [0, 1, 2] == [e.event_session_index for e in batch.events]
    assert ("s1", "0.38.0") == (batch.session_id, batch.sdk_version)
    assert 3 == len({e.event_id for e in batch.events})
    generic, end = events(server)[1:]
    assert ("epoch", {"n": 1, "text": "ü"}, "DEBUG") == (
        generic["event_name"],
        generic["event_data"],
        generic["severity"],
    )
    assert end["duration"].startswith("0:00:0")
    paths = [call.path.removeprefix("/api/v1/") for call in server.calls]
    assert ["sessions/s1/finish", "telemetry"] == paths[-2:]


async def test_the_body_is_what_the_official_client_sends(server: ScriptedServer) -> None:
    """Field by field, with no other."""
    server.on("telemetry", accepted)
    with anyio.fail_after(5), pytest.raises(ZeroDivisionError):
        async with Session(server.url, KEY, telemetry=True):
            1 / 0  # noqa: B018

    (batch,) = batches(server)
    (call,) = server.seen("telemetry")
    ours = call.json
    theirs = json.loads(batch.model_dump_json())
    assert theirs.keys() == ours.keys()
    assert [e.keys() for e in theirs["events"]] == [e.keys() for e in ours["events"]]


async def test_an_error_is_told_with_its_traceback_and_without_secrets(
    server: ScriptedServer,
) -> None:
    """The key in use, whatever looks like one, and the passwords of URLs are taken out."""
    server.on("telemetry", accepted)
    token = "eyJhbGciOiJub25l.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"
    text = f"{KEY} tml-another-key {token} https://user:pa55word@host/ hf_abcdefgh1234 fine"
    with anyio.fail_after(5), pytest.raises(RuntimeError):
        async with Session(server.url, KEY, telemetry=True) as session:
            assert session.telemetry is not None
            session.telemetry.log("x", {"deep": [{"key": KEY}]})
            raise RuntimeError(text)

    start, generic, error, end = events(server)
    assert ("UNHANDLED_EXCEPTION", "RuntimeError", "ERROR") == (
        error["event"],
        error["error_type"],
        error["severity"],
    )
    assert "fine" in error["error_message"]
    assert "test_telemetry.py" in error["traceback"]
    sent = json.dumps([start, generic, error, end])
    for secret in (KEY, "tml-another", token, "pa55word", "hf_abcdefgh1234"):
        assert secret not in sent


async def test_what_the_server_blames_on_the_caller_is_a_user_error(server: ScriptedServer) -> None:
    """Without a traceback, also when it is the cause of another error."""
    server.on("telemetry", accepted)
    server.on("create_sampling_session", lambda _call: (400, {}, b'{"detail": "no such model"}'))
    with anyio.fail_after(5), pytest.raises(RuntimeError):
        async with Session(server.url, KEY, telemetry=True, retry=QUICK) as session:
            try:
                await session.create_sampling_client(base_model="m")
            except Exception as error:
                raise RuntimeError("wrapped") from error

    _, event, _ = events(server)
    assert ("GENERIC_EVENT", "user_error", "WARNING") == (
        event["event"],
        event["event_name"],
        event["severity"],
    )
    expected = {"error_type": "RuntimeError", "message": "wrapped", "status_code": 400}
    assert {**expected, "body": "no such model"} == event["event_data"]


async def test_a_cancelled_session_tells_its_end(server: ScriptedServer) -> None:
    """A cancellation is no error."""
    server.on("telemetry", accepted)
    with anyio.fail_after(5), anyio.CancelScope() as scope:
        async with Session(server.url, KEY, telemetry=True):
            scope.cancel()
            await anyio.lowlevel.checkpoint()

    assert ["SESSION_START", "SESSION_END"] == [event["event"] for event in events(server)]


@pytest.mark.parametrize("status", [400, 404, 410, 402, 503])
async def test_a_server_that_takes_none_disturbs_nothing(
    server: ScriptedServer, status: int
) -> None:
    """Batches are dropped and counted; the session ends as ever."""
    server.on("telemetry", lambda _call: (status, {}, b"{}"))
    with anyio.fail_after(20):
        async with Session(server.url, KEY, telemetry=True) as session:
            telemetry = session.telemetry
            await session.create_sampling_client(base_model="m")

    assert telemetry is not None
    assert (0, 2) == (telemetry.sent, telemetry.dropped)


def test_a_server_that_is_silent_holds_up_the_end_for_seconds() -> None:
    """And nothing before it."""
    service = FakeService()
    service.faults.on("telemetry", faults.Stall(seconds=None))

    async def program() -> float:
        async with service.session(telemetry=True) as session:
            assert session.telemetry is not None
            for number in range(500):
                session.telemetry.log("n", {"n": number})
            await session.get_server_capabilities()
            ends = anyio.current_time()
        return anyio.current_time() - ends

    assert 4.9 <= run_in_virtual_time(program) <= 6


def test_events_are_sent_in_batches_now_and_then() -> None:
    """Every ten seconds, and at once when a batch is full."""
    service = FakeService()

    async def program() -> list[float]:
        async with service.session(telemetry=True) as session:
            assert session.telemetry is not None
            await anyio.sleep(25)
            for number in range(250):
                session.telemetry.log("n", {"n": number})
            await anyio.sleep(1)
            assert 251 == session.telemetry.sent
        return [entry.at_s for entry in service.ledger.of("telemetry")]

    at = run_in_virtual_time(program)
    assert 5 == len(at)
    assert 10 == pytest.approx(at[0], abs=0.5)
    assert [25, 25, 25] == pytest.approx(at[1:4], abs=0.5)


async def test_what_does_not_fit_is_dropped_and_counted(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By number, by bytes, and what is no JSON; nobody waits and nothing is raised."""
    server.on("telemetry", accepted)
    monkeypatch.setattr(module, "MOST_EVENTS", 5)
    with anyio.fail_after(5):
        async with Session(server.url, KEY, telemetry=True) as session:
            telemetry = session.telemetry
            assert telemetry is not None
            assert not telemetry.log("large", {"text": "x" * 100_000})
            endless: dict[str, Any] = {}
            endless["self"] = endless
            assert not telemetry.log("endless", endless)
            assert telemetry.log("any", {"object": object()})
            assert [True] * 3 + [False] * 7 == [telemetry.log("n") for _ in range(10)]
            assert 9 == telemetry.dropped

    # The end did not fit either.
    assert (5, 10) == (telemetry.sent, telemetry.dropped)


async def test_a_process_has_one_id_for_its_sessions(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a fork, which has another number, another."""
    server.on("telemetry", accepted)
    with anyio.fail_after(5):
        for _ in range(2):
            async with Session(server.url, KEY, telemetry=True):
                pass
        monkeypatch.setattr(os, "getpid", lambda: 1)
        async with Session(server.url, KEY, telemetry=True):
            pass

    first, second, of_the_fork = (batch.process_uuid for batch in batches(server))
    assert first == second != of_the_fork


# Without a session


async def test_without_a_session_nothing_is_told_unless_it_is_asked_for(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By argument, or by the environment, which the argument beats; as of a session."""
    server.on("telemetry", accepted)
    for given, environment, told in [(None, "", False), (False, "1", False), (None, "1", True)]:
        monkeypatch.setenv("TINKER_TELEMETRY", environment)
        with anyio.fail_after(5), pytest.raises(ZeroDivisionError):
            async with RestClient.connect(server.url, KEY, telemetry=given) as rest:
                assert told == (rest.telemetry is not None)
                raise ZeroDivisionError
        assert told == bool(server.seen("telemetry"))


async def test_without_a_session_errors_and_own_events_are_told(server: ScriptedServer) -> None:
    """Under an id that says so, and without a start or an end, as the official client does it."""
    server.on("telemetry", accepted)
    with anyio.fail_after(5), pytest.raises(RuntimeError):
        async with RestClient.connect(server.url, KEY, telemetry=True) as rest:
            assert rest.telemetry is not None
            assert rest.telemetry.log("listed", {"runs": 3})
            raise RuntimeError(f"with {KEY}")

    (batch,) = batches(server)
    assert ["GENERIC_EVENT", "UNHANDLED_EXCEPTION"] == [event.event for event in batch.events]
    assert [0, 1] == [event.event_session_index for event in batch.events]
    assert re.fullmatch("sessionless-[0-9a-f-]{36}", batch.session_id)
    assert KEY not in server.seen("telemetry")[0].body.decode()


async def test_what_a_connection_has_nothing_to_tell_of_is_not_sent(server: ScriptedServer) -> None:
    """There is neither a start nor an end."""
    with anyio.fail_after(5):
        async with RestClient.connect(server.url, KEY, telemetry=True) as rest:
            await rest.get_server_capabilities()

    assert [] == server.seen("telemetry")


def test_without_a_session_events_are_sent_now_and_then() -> None:
    """Every ten seconds, not only at the end; a silent server holds up nothing but that."""
    service = FakeService()

    async def program() -> tuple[int, float]:
        config = resolve_config("http://fake.invalid", KEY, environ={})
        async with open_caller(config, transport=service.transport()) as caller:
            async with module.telemetry_without_session(caller) as telemetry:
                telemetry.log("n")
                await anyio.sleep(11)
                sent = telemetry.sent
                service.faults.on("telemetry", faults.Stall())
                telemetry.log("n")
                ends = anyio.current_time()
            return sent, anyio.current_time() - ends

    sent, took_s = run_in_virtual_time(program)
    assert 1 == sent
    assert 4.9 <= took_s <= 6


async def test_the_telemetry_of_a_session_is_that_of_its_rest_client(
    server: ScriptedServer,
) -> None:
    """There is one for both."""
    server.on("telemetry", accepted)
    with anyio.fail_after(5):
        async with Session(server.url, KEY, telemetry=True) as session:
            assert session.telemetry is not None
            assert session.rest.telemetry is session.telemetry
        async with Session(server.url, KEY) as session:
            assert session.rest.telemetry is None
