"""What leaves for other places, and what must not: addresses, redirections, foreign tokens."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from support.scripted import Call, ScriptedServer, scripted_server

from tinker_async import (
    APIStatusError,
    ConflictError,
    Event,
    InvalidInputError,
    PermissionDeniedError,
    RequestFailedError,
    ResponseError,
    RestClient,
    RetryPolicy,
)

BOUND_S = 20
KEY = "tml-key-of-ours"
TOKEN = "a-foreign-read-token"
PATH = "tinker://r/weights/w"
ENTRY = {"timestamp": "2026-01-01T00:00:00Z", "event": "checkpoint_read"}
QUICK = RetryPolicy(base_s=0.001, max_s=0.002)


@pytest.fixture
async def rest(server: ScriptedServer) -> AsyncGenerator[RestClient]:
    """A client of the scripted server."""
    with anyio.fail_after(BOUND_S):
        async with RestClient.connect(server.url, KEY, retry=QUICK) as client:
            yield client


@pytest.fixture
async def elsewhere() -> AsyncGenerator[ScriptedServer]:
    """Another server."""
    async with scripted_server() as running:
        yield running


def to(place: str, status: int = 302) -> Any:
    return lambda _: (status, {"location": place}, b"")


# Redirections


async def test_a_log_that_is_kept_elsewhere_is_fetched_without_our_credential(
    server: ScriptedServer, elsewhere: ScriptedServer, rest: RestClient
) -> None:
    """The address is the permission."""
    server.on("audit", to(f"{elsewhere.url}/api/v1/log?signature=abc"))
    elsewhere.on("log", lambda _: {"entries": [ENTRY]})
    found = await rest.get_audit_log()

    assert ["checkpoint_read"] == [entry.event for entry in found.entries]
    [call] = elsewhere.calls
    assert ("GET", "/api/v1/log?signature=abc") == (call.method, call.path)
    assert KEY not in str(call)
    assert "x-api-key" not in call.headers


async def test_a_place_on_the_same_server_may_be_relative(
    server: ScriptedServer, rest: RestClient
) -> None:
    """And does not get the credential either."""
    server.on("audit", to("/api/v1/kept/here", 307))
    server.on("kept/here", lambda _: {"entries": []})

    assert [] == (await rest.get_audit_log()).entries
    [call] = server.seen("kept/here")
    assert "x-api-key" not in call.headers


async def test_a_place_that_fails_for_a_moment_is_asked_again(
    server: ScriptedServer, elsewhere: ScriptedServer, rest: RestClient
) -> None:
    """By the same policy."""
    answers: list[Any] = [(503, {}, b""), (200, {}, b'{"entries":[]}')]
    server.on("audit", to(f"{elsewhere.url}/api/v1/log"))
    elsewhere.on("log", lambda _: answers.pop(0))

    assert [] == (await rest.get_audit_log()).entries
    assert 2 == len(elsewhere.calls)


async def test_a_place_that_refuses_is_named_without_its_signature(
    server: ScriptedServer, elsewhere: ScriptedServer, rest: RestClient
) -> None:
    """Its words may repeat the address: they are not told."""
    server.on("audit", to(f"{elsewhere.url}/api/v1/log?signature=abc"))
    elsewhere.on("log", lambda call: (403, {}, f"no: {call.path}".encode()))
    with pytest.raises(PermissionDeniedError) as caught:
        await rest.get_audit_log()

    assert elsewhere.url in str(caught.value)
    assert "abc" not in str(caught.value) + caught.value.detail
    assert "get_audit_log" == caught.value.operation


@pytest.mark.parametrize("place", ["", "ftp://host/log", "http://[bad/log", "http://h/a b"])
async def test_a_redirection_to_nowhere_is_an_unknown_answer(
    server: ScriptedServer, rest: RestClient, place: str
) -> None:
    server.on("audit", to(place))
    with pytest.raises(ResponseError, match="/api/v1/audit answered 302"):
        await rest.get_audit_log()


async def test_places_that_lead_on_and_on_are_not_followed_for_ever(
    server: ScriptedServer, rest: RestClient
) -> None:
    server.on("audit", to("/api/v1/audit"))
    with pytest.raises(ResponseError, match="from one place to the next"):
        await rest.get_audit_log()
    assert 6 == len(server.seen("audit"))


# The archive's address


async def test_an_archive_without_a_time_is_good_for_a_quarter_of_an_hour(
    server: ScriptedServer, rest: RestClient
) -> None:
    """The time that servers give is read; what is none counts as none."""
    archive = "training_runs/r/checkpoints/weights/w/archive"
    for header, expected in (
        ({"expires": "Thu, 01 Jan 2026 00:00:00 GMT"}, datetime(2026, 1, 1, tzinfo=UTC)),
        ({"expires": "tomorrow"}, None),
        ({}, None),
    ):
        answer = (302, {"location": "https://files/x?s=1", **header}, b"")
        server.on(archive, lambda _, answer=answer: answer)  # type: ignore[misc]  # mypy wants its type
        found = await rest.get_checkpoint_archive_url(PATH)
        assert "https://files/x?s=1" == found.url
        assert found.expires is not None
        default = datetime.now(UTC) + timedelta(minutes=15)
        assert abs(found.expires - (expected or default)) < timedelta(seconds=60)
    assert {"application/gzip"} == {call.headers["accept"] for call in server.seen(archive)}


@pytest.mark.parametrize("answer", [(200, {}, b"tar"), (302, {}, b"")])
async def test_an_archive_without_an_address_is_an_unknown_answer(
    server: ScriptedServer, rest: RestClient, answer: Any
) -> None:
    server.on("training_runs/r/checkpoints/weights/w/archive", lambda _: answer)
    with pytest.raises(ResponseError, match="without the archive's address"):
        await rest.get_checkpoint_archive_url(PATH)


# The access token


async def test_a_foreign_token_is_in_its_header_and_nowhere_else(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in a body, an error, an event or a log, even if the server repeats it."""
    events: list[Event] = []
    answers = [503, 403]

    def refuse(call: Call) -> Any:
        return answers.pop(0), {}, json.dumps({"detail": f"not with {call.headers!r}"}).encode()

    server.on("copy_weights", refuse)
    with caplog.at_level(logging.DEBUG):
        async with RestClient.connect(server.url, KEY, retry=QUICK, on_event=events.append) as rest:
            with pytest.raises(PermissionDeniedError) as caught:
                await rest.copy_weights(PATH, "project", weights_access_token=TOKEN)
            assert TOKEN not in repr(vars(rest))
    first, second = server.seen("copy_weights")

    assert TOKEN == first.headers["x-tinker-weights-access-token"]
    assert b"weights_access_token" not in first.body
    assert first.headers["x-idempotency-key"] == second.headers["x-idempotency-key"]
    assert "not with" in caught.value.detail
    assert events
    assert TOKEN not in f"{caught.value!r}{caught.value}{caught.value.detail}{events}{caplog.text}"


@pytest.mark.parametrize("token", ["", "two words", "new\nline", "ключ"])
async def test_a_token_that_cannot_be_one_is_refused_without_being_shown(
    server: ScriptedServer, rest: RestClient, token: str
) -> None:
    with pytest.raises(InvalidInputError, match="weights_access_token") as caught:
        await rest.copy_weights(PATH, "project", weights_access_token=token)
    assert not token or token not in str(caught.value)
    assert [] == server.seen("copy_weights")


async def test_the_project_is_the_connections_unless_one_is_named(server: ScriptedServer) -> None:
    """By argument of the connection, or `TINKER_PROJECT_ID`."""
    server.on("copy_weights", lambda _: {"tinker_path": "tinker://copy/weights/w"})
    async with RestClient.connect(server.url, KEY, project_id="mine") as rest:
        assert "tinker://copy/weights/w" == await rest.copy_weights(PATH)
        await rest.copy_weights(PATH, "other")

    projects = [call.json["destination_project_id"] for call in server.seen("copy_weights")]
    assert ["mine", "other"] == projects


# What is not as it should be


async def test_a_trace_that_cannot_be_built_says_why(
    server: ScriptedServer, rest: RestClient
) -> None:
    """And one that is ready without an address is an unknown answer."""
    server.on("sessions/s/trace_export", lambda _: {"status": "failed", "error": "too large"})
    with pytest.raises(RequestFailedError, match="too large"):
        await rest.export_session_trace("s")
    server.on("sessions/s/trace_export", lambda _: {"status": "ready"})
    with pytest.raises(ResponseError, match="no url"):
        await rest.export_session_trace("s")


async def test_a_conflict_that_is_not_ours_is_told(
    server: ScriptedServer, rest: RestClient
) -> None:
    """Only an attempt whose answer was lost makes it a success."""
    server.on(
        "training_runs/r/checkpoints/weights/w/publish", lambda _: (409, {}, b'{"detail":"no"}')
    )
    with pytest.raises(ConflictError) as caught:
        await rest.publish_checkpoint_from_tinker_path(PATH)

    assert (1, False) == (caught.value.attempts, caught.value.delivery_in_doubt)


async def test_an_answer_of_the_wrong_form_names_endpoint_and_field(
    server: ScriptedServer, rest: RestClient
) -> None:
    server.on("training_runs/r", lambda _: {"training_run_id": 7})
    with pytest.raises(ResponseError, match=r"training_runs/r .*training_run_id"):
        await rest.get_training_run("r")


async def test_other_redirections_are_errors(server: ScriptedServer, rest: RestClient) -> None:
    """They are followed where the protocol has them, and nowhere else."""
    server.on("training_runs/r", to("https://elsewhere.invalid/"))
    with pytest.raises(APIStatusError) as caught:
        await rest.get_training_run("r")
    assert 302 == caught.value.status
