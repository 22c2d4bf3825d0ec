"""What a session says of itself is what the genuine official client says, request by request.

Both clients have the same conversation with a fake service, whose switches are all on: the token,
the session's life, samplers that are shared, polled for together and given up, loads in place.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import msgspec
import pytest
from official.endpoints import COMPARED, endpoint_of
from official.recorded import Request, Requests, recorded
from support.scripted import scripted_server

import tinker_async as ta
from tinker_async import session as session_module
from tinker_async.background import roll
from tinker_async.testing import FakeService
from tinker_async.testing.exchange import Exchange
from tinker_async.wire.messages import ClientConfigResponse

pytest.importorskip("tinker", reason="the official client is in the extra `judge`")

CONVERSATION = Path(__file__).with_name("session_conversation.py")
BOUND_S = 120
KEY = "tml-judge"
CONFIG = ClientConfigResponse(
    pjwt_auth_enabled=True, sample_join_sampling_session=True, sample_use_retrieve_futures=True
)
PROMPT = ta.ModelInput.from_ints([1, 2, 3, 4])
UNWANTED = 99
"""The seed of the sample that is given up: the server does not finish it."""
DEFAULTS: dict[str, dict[str, Any]] = {
    "asample": {
        **dict.fromkeys(("prompt_logprobs", "record_stability_info"), False),
        **dict.fromkeys(("topk_prompt_logprobs", "topk_sample_logprobs"), 0),
        "prompt_alt_tokens_k": 0,
        "num_samples": 1,
    },
    "sampling_params": {"temperature": 1.0, "top_k": -1, "top_p": 1.0},
    "create_model": {"optimizer_config": {"type": "adamw"}},
    "lora_config": dict.fromkeys(("train_mlp", "train_attn", "train_unembed"), True),
    "save_weights": {"overwrite": False},
    "load_weights": {"optimizer": False},
    "retrieve_future": {"allow_metadata_only": False},
}
"""What is meant where a body, or a part of it, says nothing."""
ONCE_FOR_EACH_CALL = (
    *("client/config", "client/dynamic_config", "create_session", "finish", "healthz"),
    *("create_sampling_session", "join_sampling_session", "asample", "cancel_future"),
    *("create_model", "get_info", "save_weights", "load_weights", "retrieve_future"),
)
REPEATED = ("auth/token", "session_heartbeat", "retrieve_futures", "telemetry")
"""How often is each client's choice: what they say is compared, not how often they say it."""


# The two conversations


@asynccontextmanager
async def serving() -> AsyncGenerator[tuple[str, str, Requests]]:
    """A fake service that never finishes the unwanted sample; its URL, key and requests."""
    service = FakeService(config=CONFIG)
    with recorded() as requests, pytest.MonkeyPatch.context() as patch:
        answer = Exchange.answer

        async def answered(exchange: Exchange, body: bytes) -> Any:
            takes_s = 600.0 if f'"seed":{UNWANTED}'.encode() in body else 0.0
            settings = service.state.settings
            service.state.settings = msgspec.structs.replace(settings, sample_s=takes_s)
            return await answer(exchange, body)

        patch.setattr(Exchange, "answer", answered)
        async with service.serve() as url:
            yield url, service.api_key, requests


async def official() -> tuple[dict[str, Any], Requests]:
    async with serving() as (url, key, requests):
        with anyio.fail_after(BOUND_S):
            process = await anyio.run_process(
                [sys.executable, str(CONVERSATION), url, key],
                env={**os.environ, "TINKER_TELEMETRY": "1"},
                stderr=subprocess.PIPE,
                check=False,
            )
    assert process.returncode == 0, process.stderr.decode()
    found: dict[str, Any] = json.loads(process.stdout)
    return found, requests


async def ours() -> tuple[dict[str, Any], Requests]:
    found: dict[str, Any] = {}
    async with serving() as (url, key, requests):
        with anyio.fail_after(BOUND_S):
            with pytest.raises(ZeroDivisionError):
                await whole(url, key, found, requests)
            async with ta.Session(url, key, telemetry=True, check_inputs=False) as session:
                await session.create_sampling_client(base_model="toy")
    return found, requests


async def whole(url: str, key: str, found: dict[str, Any], requests: Requests) -> None:
    """A session with all that can be said of it, which ends badly."""
    async with ta.Session(
        url,
        key,
        user_metadata={"purpose": "test"},
        project_id="project-fake",
        display_name="Night run",
        telemetry=True,
        check_inputs=False,
    ) as session:
        await sampling(session, found, requests)
        await training(session, found)
        found["health"] = (await session.rest.healthz()).status
        await until(lambda: bool(requests["session_heartbeat"]))
        raise ZeroDivisionError("because")


async def sampling(session: ta.Session, found: dict[str, Any], requests: Requests) -> None:
    sampler = await session.create_sampling_client(base_model="toy")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sampler.sample, PROMPT, params(UNWANTED), 1)
        await until(lambda: bool(requests["retrieve_futures"]))
        tasks.cancel_scope.cancel()
    await until(lambda: bool(requests["cancel_future"]))
    found["tokens"] = (await sampler.sample(PROMPT, params(5), 2)).sequences[0].tokens.tolist()
    # A handle that says no more than a snapshot's: it is joined, and not made anew.
    handle = msgspec.structs.replace(sampler.handle(), base_model=None)
    clone = await session.create_sampling_client_from_handle(handle)
    found["of_clone"] = (await clone.sample(PROMPT, params(5), 1)).sequences[0].tokens.tolist()
    found["scores"] = (await clone.compute_logprobs(PROMPT)).tolist()[1:]


async def training(session: ta.Session, found: dict[str, Any]) -> None:
    trainer = await session.create_lora_training_client(
        "toy", rank=4, seed=2, train_unembed=False, user_metadata={"run": "one"}
    )
    found["rank"] = (await trainer.get_info()).lora_rank
    path = (await trainer.save_state("kept")).path
    await trainer.load_state(path)
    await trainer.load_state_with_optimizer(path, "a-foreign-token")


def params(seed: int) -> ta.SamplingParams:
    return ta.SamplingParams(max_tokens=2, seed=seed)


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110  # the recorder notes, and wakes nobody
        await anyio.sleep(0.01)


# Held against each other


@pytest.fixture(scope="module")
def theirs() -> tuple[dict[str, Any], Requests]:
    """What the official client found, and what it sent."""
    return anyio.run(official)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_HEARTBEAT_S", 0.1)
    monkeypatch.setattr(roll, "FEW_ASKING", 0)  # or a few samples would each ask for themselves
    for name in ("TINKER_PROJECT_ID", "TINKER_TAGS"):
        monkeypatch.delenv(name, raising=False)


def filled(part: str, value: Any) -> Any:
    """A body, or a part of it, with its defaults; `null` is as good as nothing."""
    if isinstance(value, list):
        return [filled(part, one) for one in value]
    if not isinstance(value, dict):
        return value
    said = {name: filled(name, one) for name, one in value.items() if one is not None}
    return {**DEFAULTS.get(part, {}), **said}


def meaning(endpoint: str, request: Request) -> dict[str, Any]:
    """What a request says."""
    body = filled(endpoint, request.json)
    if endpoint == "retrieve_future" and request.headers["accept"] == "application/json":
        # Ours asks for the sizes of tensors alone: results of this form are small.
        del body["allow_metadata_only"]
    return {
        "method": request.method,
        "path": request.path.partition("?")[0],
        "query": request.query,
        "type": request.headers.get("content-type") if request.body else None,
        "body": body,
    }


def said(endpoint: str, requests: Requests) -> list[dict[str, Any]]:
    assert requests[endpoint], f"{endpoint} was not asked"
    return [meaning(endpoint, request) for request in requests[endpoint]]


async def test_a_session_says_what_the_official_one_says(theirs: Any) -> None:
    """In the same order, with the same words, and is given the same."""
    their_finds, their_requests = theirs
    our_finds, our_requests = await ours()

    assert {*ONCE_FOR_EACH_CALL, *REPEATED} == {*their_requests}
    assert {*their_requests} == {*our_requests}
    for endpoint in ONCE_FOR_EACH_CALL:
        assert said(endpoint, their_requests) == said(endpoint, our_requests), endpoint
    assert first(their_requests, "auth/token") == first(our_requests, "auth/token")
    assert first(their_requests, "session_heartbeat") == first(our_requests, "session_heartbeat")
    assert polled(their_requests) == polled(our_requests)
    assert told(their_requests) == told(our_requests)
    assert their_finds == our_finds
    asked = {endpoint_of(one.method, one.path) for each in our_requests.values() for one in each}
    of_keys = {"GET /auth/apikey/me", "DELETE /auth/apikey/me"}
    assert {*COMPARED["test_session_requests"]} == asked | of_keys


def first(requests: Requests, endpoint: str) -> dict[str, Any]:
    return said(endpoint, requests)[0]


def polled(requests: Requests) -> dict[str, Any]:
    """How polling begins, and of which samplers it is; when it is done is a matter of timing."""
    bodies = [request.json for request in requests["retrieve_futures"]]
    assert all(
        body["retrieved_request_ids"] == sorted(body["retrieved_request_ids"]) for body in bodies
    )
    assert all(body.get("timeout", 0) == 0 for body in bodies)
    return {
        "first": first(requests, "retrieve_futures"),
        "targets": {json.dumps(body["target"], sort_keys=True) for body in bodies},
        "fields": {*bodies[0]},
    }


def told(requests: Requests) -> dict[str, Any]:
    """What telemetry says of the start, without what is another one each time."""
    batch = requests["telemetry"][0].json
    event = batch.pop("events")[0]
    assert event.keys() >= {"event_id", "timestamp"}
    del event["event_id"], event["timestamp"], batch["process_uuid"]
    return {**meaning("telemetry", requests["telemetry"][0]), "body": {**batch, "first": event}}


async def test_a_key_is_described_by_the_same_request() -> None:
    """The official client asks in its command line, before it keeps a key."""
    from tinker.cli.auth_api import TinkerAuthApi

    details = {"org_details": {"name": "Us"}, "user_details": {"email": "me@us"}}
    async with scripted_server() as server:
        server.on("client/config", lambda _: {})
        server.on(
            "auth/apikey/me", lambda _: {"key_id": 1, "name": "k", "note": "", "details": details}
        )

        def ask() -> str:
            with httpx.Client() as http:
                return str(TinkerAuthApi(http, base_url=server.url).get_self_api_key(KEY).name)

        with anyio.fail_after(BOUND_S):
            name = await anyio.to_thread.run_sync(ask)
            async with ta.RestClient.connect(server.url, KEY) as rest:
                ours = await rest.whoami()
        their, our = server.seen("auth/apikey/me")

    assert ours.api_key is not None
    assert ("k", "k", "me@us") == (name, ours.api_key.name, ours.email)
    assert ("GET", "/api/v1/auth/apikey/me", b"") == (their.method, their.path, their.body)
    assert (their.method, their.path, their.body) == (our.method, our.path, our.body)
    assert KEY == their.headers["x-api-key"] == our.headers["x-api-key"]


async def test_a_key_is_ended_by_the_same_request() -> None:
    """The key itself is the permission, in both: also where ours is exchanged for a token."""
    from tinker.cli.auth_api import TinkerAuthApi

    async with scripted_server() as server:
        server.on("client/config", lambda _: {"pjwt_auth_enabled": True})
        server.on("auth/token", lambda _: {"jwt": "eyJhbGciOiJub25lIn0.e30."})
        server.on("auth/apikey/me", lambda _: (204, {}, b""))

        def end() -> None:
            with httpx.Client() as http:
                TinkerAuthApi(http, base_url=server.url).delete_self_api_key(KEY)

        with anyio.fail_after(BOUND_S):
            await anyio.to_thread.run_sync(end)
            async with ta.RestClient.connect(server.url, KEY) as rest:
                await rest.get_server_capabilities()
                await rest.revoke_api_key()
        their, our = server.seen("auth/apikey/me")
        (asked,) = server.seen("get_server_capabilities")

    assert asked.headers["x-api-key"].startswith("eyJ")
    assert ("DELETE", "/api/v1/auth/apikey/me", b"") == (their.method, their.path, their.body)
    assert (their.method, their.path, their.body) == (our.method, our.path, our.body)
    assert KEY == their.headers["x-api-key"] == our.headers["x-api-key"]
