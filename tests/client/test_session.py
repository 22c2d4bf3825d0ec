"""The life of a session: how it begins, what ends it, and what it leaves behind."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest
from support.scripted import Call, ScriptedServer, scripted_server

from tinker_async import (
    AuthenticationError,
    ConnectError,
    ResponseError,
    Session,
    SessionClosedError,
    SessionLostError,
)


def error(status: int, detail: str) -> Any:
    body = msgspec.json.encode({"detail": detail})
    return status, {"content-type": "application/json"}, body


def open_sockets() -> int:
    """How many sockets this process has; other files come and go with the event loop."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(str(descriptor.readlink()))
    return sum(link.startswith("socket:") for link in links)


def finish_of(server: ScriptedServer) -> Any:
    (call,) = server.seen("sessions/s1/finish")
    return call.json


async def test_a_session_shakes_hands_and_says_goodbye(
    server: ScriptedServer, session: Session
) -> None:
    """Config, dynamic config, session; then finish, with the key on every request."""
    with anyio.fail_after(5):
        async with session as entered:
            assert session is entered
            assert session.session_id == "s1"

    names = [call.path.removeprefix("/api/v1/") for call in server.calls]
    assert names == [
        "client/config",
        "client/dynamic_config",
        "create_session",
        "sessions/s1/finish",
    ]
    assert {"tml-test"} == {call.headers["x-api-key"] for call in server.calls}
    assert finish_of(server) == {"reason": {"type": "success"}, "detail": None}


async def test_a_server_without_configuration_gets_the_defaults(
    server: ScriptedServer, session: Session
) -> None:
    """404 on both configuration endpoints is tolerated."""
    server.on("client/config", lambda _: error(404, "no"))
    server.on("client/dynamic_config", lambda _: error(404, "no"))
    with anyio.fail_after(5):
        async with session:
            assert server.seen("create_session")


async def test_tags_and_metadata_travel_and_absent_fields_do_not(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older servers refuse fields they do not know."""
    monkeypatch.setenv("TINKER_TAGS", "a, b")
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", user_metadata={"k": 1}, project_id="p"):
            pass

    (call,) = server.seen("create_session")
    assert call.json == {
        "type": "create_session",
        "tags": ["a", "b"],
        "user_metadata": {"k": 1},
        "sdk_version": "0.38.0",
        "project_id": "p",
    }


async def test_nothing_listening_is_told_at_once() -> None:
    """A wrong address is a ConnectError that names it, not minutes of retries."""
    async with scripted_server() as server:
        url = server.url
    with anyio.fail_after(5), pytest.raises(ConnectError, match=str(server.port)):
        async with Session(url, "tml-x"):
            pass


async def test_a_wrong_key_is_an_authentication_error(
    server: ScriptedServer, session: Session
) -> None:
    """The server's text is kept, the key is not."""
    server.on("client/config", lambda _: error(401, "unknown key"))
    with anyio.fail_after(5), pytest.raises(AuthenticationError, match="unknown key") as caught:
        async with session:
            pass
    assert "tml-test" not in str(caught.value)


async def test_a_server_that_is_none_of_ours_is_a_response_error(
    server: ScriptedServer, session: Session
) -> None:
    """HTML instead of JSON names the endpoint."""
    server.on("client/config", lambda _: (200, {"content-type": "text/html"}, b"<html>"))
    with anyio.fail_after(5), pytest.raises(ResponseError, match="client/config"):
        async with session:
            pass


async def test_the_users_exception_leaves_as_itself(
    server: ScriptedServer, session: Session
) -> None:
    """Not in a group, with its own cause; the server hears `errored`."""
    cause = KeyError("deep")
    with anyio.fail_after(5), pytest.raises(ValueError, match="mine") as caught:
        async with session:
            raise ValueError("mine") from cause

    assert cause is caught.value.__cause__
    assert finish_of(server) == {"reason": {"type": "errored"}, "detail": "ValueError: mine"}


async def test_the_users_own_group_leaves_unchanged(session: Session) -> None:
    """Only our own level of grouping is undone."""
    group = ExceptionGroup("two", [ValueError("a"), TypeError("b")])
    with anyio.fail_after(5), pytest.raises(ExceptionGroup) as caught:
        async with session:
            raise group
    assert group.exceptions == caught.value.exceptions


async def test_cancelling_the_block_is_an_interruption(
    server: ScriptedServer, session: Session
) -> None:
    """The block ends at once; the server is still told."""
    with anyio.fail_after(5), anyio.CancelScope() as scope:
        async with session:
            scope.cancel()
            await anyio.sleep_forever()

    assert scope.cancelled_caught
    assert finish_of(server)["reason"]["type"] == "interrupted"


async def test_the_servers_end_of_the_session_ends_the_block(
    server: ScriptedServer, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """410 on a heartbeat cancels the block; a lone SessionLostError leaves, with the reason."""
    monkeypatch.setattr("tinker_async.session._HEARTBEAT_S", 0.01)
    server.on("session_heartbeat", lambda _: error(410, "evicted"))
    with anyio.fail_after(5), pytest.raises(SessionLostError, match="evicted"):
        async with session:
            await anyio.sleep_forever()


async def test_missed_heartbeats_are_tolerated(
    server: ScriptedServer, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failures are not the end; the beat goes on."""
    monkeypatch.setattr("tinker_async.session._HEARTBEAT_S", 0.01)
    enough = anyio.Event()
    beats: list[Call] = []

    def beat(call: Call) -> Any:
        beats.append(call)
        if len(beats) == 5:
            enough.set()
        return error(503, "busy") if len(beats) % 2 else {}

    server.on("session_heartbeat", beat)
    with anyio.fail_after(5):
        async with session:
            await enough.wait()

    assert beats[0].json == {"type": "session_heartbeat", "session_id": "s1"}


async def test_a_session_is_entered_once_and_used_inside(session: Session) -> None:
    """Before, after and a second time: an error that says what to do."""
    with anyio.fail_after(5):
        with pytest.raises(SessionClosedError, match="async with"):
            await session.get_server_capabilities()
        async with session:
            pass
        with pytest.raises(SessionClosedError, match="inside"):
            await session.create_lora_training_client("m")
        with pytest.raises(SessionClosedError, match="once"):
            async with session:
                pass


@pytest.mark.parametrize("way", ["return", "exception", "cancellation"])
async def test_no_task_thread_or_socket_is_left(way: str) -> None:
    """Whichever way the block is left, with a sample and a training operation under way."""
    async with scripted_server() as server:
        threads = threading.active_count()
        sockets = open_sockets()
        held, release = anyio.Event(), anyio.Event()

        async def hold(_: Call) -> Any:
            if server.seen("asample") and server.seen("optim_step"):
                held.set()
            await release.wait()
            return {}

        server.on("retrieve_future", lambda call: _create_or(call, hold))
        with anyio.fail_after(5):
            await _leave(server, held, way)
            release.set()
            # Sockets close in the loop's own time; a leak would never pass this.
            while server.open_connections or sockets != open_sockets():
                await anyio.lowlevel.checkpoint()

        assert threads == threading.active_count()


def _create_or(call: Call, otherwise: Any) -> Any:
    return {"model_id": "s1:train:0"} if call.json["request_id"] == "r1" else otherwise(call)


async def _leave(server: ScriptedServer, held: anyio.Event, way: str) -> None:
    from tinker_async import AdamParams, ModelInput

    session = Session(server.url, "tml-x", grace_s=0.01)
    scope = anyio.CancelScope()
    try:
        with scope:
            async with session, anyio.create_task_group() as group:
                trainer = await session.create_lora_training_client("m")
                step = trainer.optim_step(AdamParams())
                sampler = await session.create_sampling_client(base_model="m")
                group.start_soon(sampler.sample, ModelInput.from_ints([1]))
                await held.wait()
                if way == "cancellation":
                    scope.cancel()
                    await anyio.sleep_forever()
                group.cancel_scope.cancel()
                if way == "exception":
                    raise ValueError("mine")
    except ValueError:
        assert way == "exception"
    except ExceptionGroup:
        assert way == "exception"
    except SessionClosedError:
        assert way == "return"  # the step was never awaited and did not finish in time
    with pytest.raises(SessionClosedError):
        await step
