"""An API key is sent in one header to one server, and is told to nobody else."""

from __future__ import annotations

import json
import pickle
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import structlog
from support.scripted import Call, ScriptedServer, scripted_server

from tinker_async import RetryPolicy, Session, TinkerError
from tinker_async.config import Secret, resolve_config
from tinker_async.data.datum import Datum
from tinker_async.data.model_input import ModelInput
from tinker_async.data.params import AdamParams, SamplingParams
from tinker_async.errors import APIStatusError, ConfigError, InvalidInputError

KEY = "tml-never-to-be-seen"
QUICK = RetryPolicy(max_attempts=2, base_s=0.001, max_s=0.001)
PROMPT = ModelInput.from_ints([1, 2, 3])
DATUM = Datum(PROMPT, {"target_tokens": [2, 3, 4], "weights": [1, 1, 1]})


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    """A scripted server."""
    async with scripted_server() as running:
        yield running


def echo(status: int) -> Callable[[Call], Any]:
    """Answer with an error that repeats the key, as a careless proxy does."""

    def answer(call: Call) -> Any:
        said = {"detail": f"key {call.headers['x-api-key']} is not allowed"}
        return status, {"content-type": "application/json"}, json.dumps(said).encode()

    return answer


def everything_of(value: object) -> str:
    """Return all that a program could print of a value without reaching into it."""
    parts = [repr(value), str(value), f"{value}"]
    if isinstance(value, BaseException):
        parts += [str(vars(value)), str(value.args), str(pickle.dumps(value))]
        parts += [everything_of(e) for e in (value.__cause__, value.__context__) if e is not None]
    return "\n".join(parts)


def test_a_secret_prints_as_none() -> None:
    """Neither a Secret nor what holds one says what it is."""
    config = resolve_config("http://h", KEY, environ={})
    for value in (Secret(KEY), [Secret(KEY)], config, {"config": config}, Session("http://h", KEY)):
        assert KEY not in everything_of(value)
    assert config.api_key.reveal() == KEY


async def test_no_object_of_a_session_prints_its_key(server: ScriptedServer) -> None:
    """Sessions, clients and futures are printed without the key, before and after the block."""
    async with Session(server.url, KEY, retry=QUICK) as session:
        sampler = await session.create_sampling_client(base_model="m")
        trainer = await session.create_lora_training_client("m", rank=4)
        future = trainer.optim_step(AdamParams())
        objects = [session, sampler, trainer, future, session.rest, sampler.handle()]
        objects += [getattr(thing, "__dict__", None) for thing in list(objects)]
        for thing in objects:
            assert KEY not in everything_of(thing)
        assert KEY not in sampler.handle().to_json()
        await future
    assert KEY not in everything_of(session)
    assert {KEY} == {call.headers["x-api-key"] for call in server.calls}


async def test_the_key_is_only_in_its_header(server: ScriptedServer) -> None:
    """No path, body or other header of any request has the key."""
    async with Session(server.url, KEY, retry=QUICK) as session:
        sampler = await session.create_sampling_client(base_model="m")
        sequence = {"tokens": [7], "stop_reason": "stop"}
        server.on("retrieve_future", lambda _call: {"sequences": [sequence]})
        await sampler.sample(PROMPT, SamplingParams(max_tokens=1))
    for call in server.calls:
        others = {name: value for name, value in call.headers.items() if name != "x-api-key"}
        assert KEY not in f"{call.path} {others} {call.body!r}"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 429, 500])
async def test_a_key_that_the_server_repeats_is_not_in_the_error(
    server: ScriptedServer, status: int
) -> None:
    """The server's text is kept without the key, in the error, its facts and its pickle."""
    server.on("create_sampling_session", echo(status))
    async with Session(server.url, KEY, retry=QUICK) as session:
        with pytest.raises(APIStatusError) as caught:
            await session.create_sampling_client(base_model="m")
    assert KEY not in everything_of(caught.value)
    assert "is not allowed" in caught.value.detail


async def test_a_key_in_the_text_of_a_failed_operation_is_not_in_the_error(
    server: ScriptedServer,
) -> None:
    """The same holds for an operation that failed after it was accepted."""
    server.on("retrieve_future", lambda _call: {"error": f"no {KEY}", "category": "user"})
    async with Session(server.url, KEY, retry=QUICK) as session:
        sampler = await session.create_sampling_client(base_model="m")
        with pytest.raises(TinkerError) as caught:
            await sampler.sample(PROMPT)
    assert KEY not in everything_of(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{KEY}@host",
        f"https://{KEY}@host/path",
        f"http://:{KEY}@host",
        f"http://host?key={KEY}",
        f"http://host#{KEY}",
        f"http://user:{KEY}@[",
    ],
)
def test_a_password_in_the_url_is_refused_without_repeating_it(url: str) -> None:
    """A base_url that carries a secret is a ConfigError which does not print it."""
    with pytest.raises(ConfigError) as caught:
        resolve_config(url, "tml-x", environ={})
    assert KEY not in everything_of(caught.value)


def test_a_malformed_key_is_refused_without_repeating_it() -> None:
    """A key that cannot be one is not in the error that says so."""
    for key in (f"{KEY} x", f"{KEY}ä", f"{KEY}\n\x00"):
        with pytest.raises(ConfigError) as caught:
            resolve_config("http://h", key, environ={})
        assert KEY not in everything_of(caught.value)
    with pytest.raises(ConfigError) as caught:
        resolve_config(None, "never-to-be-seen", environ={})
    assert "never-to-be-seen" not in everything_of(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_an_error_and_takes_the_key_nowhere(
    server: ScriptedServer, status: int
) -> None:
    """The client follows no redirect: another host gets neither a request nor the key."""
    async with scripted_server() as other:
        place = {"location": f"{other.url}/api/v1/create_sampling_session"}
        server.on("create_sampling_session", lambda _call: (status, place, b""))
        async with Session(server.url, KEY, retry=QUICK) as session:
            with pytest.raises(APIStatusError) as caught:
                await session.create_sampling_client(base_model="m")
        assert status == caught.value.status
        assert [] == other.calls


async def test_the_log_of_failures_and_retries_has_no_key(server: ScriptedServer) -> None:
    """At every level: repeated requests, failed operations, the server's messages."""
    failures = iter([503, 429])

    def reluctant(call: Call) -> Any:
        status = next(failures, 0)
        return echo(status)(call) if status else {"sampling_session_id": "s1:sample:0"}

    server.on("create_sampling_session", reluctant)
    server.on("create_session", lambda _call: {"session_id": "s1", "warning_message": "soon"})
    policy = RetryPolicy(max_attempts=5, base_s=0.001, max_s=0.001)
    with structlog.testing.capture_logs() as logs:
        async with Session(server.url, KEY, retry=policy) as session:
            await session.create_sampling_client(base_model="m")
            trainer = await session.create_lora_training_client("m", rank=4)
            server.on("retrieve_future", lambda _call: (500, {}, b"oh"))
            with pytest.raises(TinkerError):
                await trainer.optim_step(AdamParams())
    assert {"request_repeated", "server_message"} <= {entry["event"] for entry in logs}
    assert KEY not in str(logs)


def test_a_handle_has_no_room_for_a_secret() -> None:
    """A handle of a URL with a password is refused, and does not repeat it."""
    from tinker_async import SamplerHandle

    for url in (f"http://u:{KEY}@h", f"http://{KEY}@h"):
        with pytest.raises(InvalidInputError) as caught:
            SamplerHandle(base_url=url, sampling_session_id="s")
        assert KEY not in everything_of(caught.value)
