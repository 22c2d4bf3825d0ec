"""Handles: what travels, what does not, and numbers that no two processes share."""

from __future__ import annotations

import pickle
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
import numpy as np
import pytest
from support.scripted import Call, ScriptedServer, promise_body

from tinker_async import (
    ConfigError,
    GoneError,
    InvalidInputError,
    ModelInput,
    SampledSequence,
    SampleResponse,
    SamplerHandle,
    SamplingClient,
    SamplingParams,
    Session,
    SessionClosedError,
)
from tinker_async.wire.sampling import encode_sample_response

PROMPT = ModelInput.from_ints([1, 2, 3])
STRETCH = 1_000_000_000
SNAPSHOT = "s1:sample:0"


class Numbered:
    """Samples as a real server: a number that comes again gets the promise of the first time.

    The one token of a sample is its seed.
    """

    def __init__(self, server: ScriptedServer) -> None:
        self.server = server
        self.seeds: dict[str, int] = {}
        self.known: dict[tuple[str, int], Any] = {}
        server.on("asample", self.sample)
        server.on("retrieve_future", self.retrieve)

    def sample(self, call: Call) -> Any:
        sent = call.json
        key = (sent["sampling_session_id"], sent["seq_id"])
        if key not in self.known:
            self.known[key] = self.server.promise()
            self.seeds[self.known[key]["request_id"]] = sent["sampling_params"]["seed"]
        return self.known[key]

    def retrieve(self, call: Call) -> Any:
        sequence = SampledSequence(
            tokens=np.asarray([self.seeds[call.json["request_id"]]], np.int32),
            logprobs=np.asarray([-0.5], np.float32),
            stop_reason="length",
        )
        return promise_body(encode_sample_response(SampleResponse(sequences=[sequence])))


@pytest.fixture
def numbered(server: ScriptedServer) -> Numbered:
    """The scripted server, sampling."""
    return Numbered(server)


@asynccontextmanager
async def bounded(session: Session) -> AsyncGenerator[Session]:
    with anyio.fail_after(10):
        async with session:
            yield session


async def draw(sampler: SamplingClient, seed: int) -> int:
    response = await sampler.sample(PROMPT, SamplingParams(max_tokens=1, seed=seed))
    return int(response.sequences[0].tokens[0])


# What travels


async def test_a_handle_is_json_that_names_the_sampler_and_holds_no_secret(
    server: ScriptedServer,
) -> None:
    """The address and the ids, the credential not; it survives JSON and pickle."""
    async with bounded(Session(server.url, "tml-geheim")) as session:
        sampler = await session.create_sampling_client(base_model="m")
        handle = sampler.handle()

    assert msgspec.json.decode(handle.to_json()) == {
        "type": "sampler_handle",
        "base_url": server.url,
        "sampling_session_id": "s1:sample:0",
        "base_model": "m",
    }
    assert handle == SamplerHandle.from_json(handle.to_json())
    assert handle == SamplerHandle.from_json(handle.to_json().encode())
    assert handle == pickle.loads(pickle.dumps(handle))
    assert "geheim" not in repr(handle) + str(pickle.dumps(handle))


async def test_a_closed_session_gives_no_handle(session: Session) -> None:
    """Its samplers are over."""
    async with bounded(session):
        sampler = await session.create_sampling_client(base_model="m")

    with pytest.raises(SessionClosedError):
        sampler.handle()


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "handle"),
        ("{", "handle"),
        ("[]", "handle"),
        (b"\xff", "handle"),
        (b'{"type":"sampler_handle","base_url":"\xff"}', "handle"),
        ("{}", "base_url"),
        ('{"type":"other","base_url":"http://h","sampling_session_id":"s"}', "type"),
        ('{"type":"sampler_handle","sampling_session_id":"s"}', "base_url"),
        ('{"type":"sampler_handle","base_url":"http://h"}', "sampling_session_id"),
        ('{"type":"sampler_handle","base_url":1,"sampling_session_id":"s"}', "base_url"),
        ('{"type":"sampler_handle","base_url":"","sampling_session_id":"s"}', "base_url"),
        (
            '{"type":"sampler_handle","base_url":"http://h","sampling_session_id":""}',
            "sampling_session_id",
        ),
        (
            '{"type":"sampler_handle","base_url":"http://u:geheim@h","sampling_session_id":"s"}',
            "base_url",
        ),
        (
            '{"base_url":"http://h","sampling_session_id":"s","base_model":"m","model_path":"p"}',
            "model_path",
        ),
        (
            '{"type":"sampler_handle","base_url":"http://h","sampling_session_id":"s","model_path":[]}',
            "model_path",
        ),
    ],
)
def test_json_that_is_no_handle_is_refused_naming_the_field(text: str | bytes, field: str) -> None:
    """Never a decoder's error, and never with a password in the message."""
    with pytest.raises(InvalidInputError) as caught:
        SamplerHandle.from_json(text)

    assert field == caught.value.field
    assert str(caught.value).startswith(f"{field}: ")
    assert "geheim" not in str(caught.value)


def test_a_handle_of_a_newer_version_can_be_read() -> None:
    """Fields that this version does not know are left out."""
    text = '{"type":"sampler_handle","new":1,"base_url":"http://h","sampling_session_id":"s"}'

    assert SamplerHandle("http://h", "s") == SamplerHandle.from_json(text)


# Whose it is


async def test_a_handle_of_another_server_is_refused_naming_both(
    session: Session, server: ScriptedServer
) -> None:
    """Before anything is sent: the same name may mean other weights there."""
    async with bounded(session):
        before = len(server.calls)
        with pytest.raises(ConfigError) as caught:
            await session.create_sampling_client_from_handle(
                SamplerHandle("https://elsewhere", "s", base_model="m")
            )

    assert "https://elsewhere" in str(caught.value)
    assert server.url in str(caught.value)
    assert all(call.path.endswith("/finish") for call in server.calls[before:])


@pytest.mark.parametrize(
    "weights", [{"base_model": "m"}, {"model_path": "tinker://r/sampler_weights/w"}]
)
async def test_named_weights_get_a_sampler_of_ones_own(
    session: Session, server: ScriptedServer, numbered: Numbered, weights: dict[str, str]
) -> None:
    """It does not depend on the other session, and its numbers start at 0."""
    server.on("create_sampling_session", lambda _: {"sampling_session_id": "own"})
    async with bounded(session):
        handle = SamplerHandle(server.url, "of another session", **weights)
        sampler = await session.create_sampling_client_from_handle(handle)
        assert 7 == await draw(sampler, 7)
        passed_on = sampler.handle()

    (call,) = server.seen("create_sampling_session")
    assert call.json == {
        "type": "create_sampling_session",
        "session_id": "s1",
        "sampling_session_seq_id": 0,
        **weights,
    }
    assert [("own", 0)] == list(numbered.known)
    assert SamplerHandle(server.url, "own", **weights) == passed_on


async def test_a_snapshot_stays_a_snapshot_when_its_base_model_is_known(
    session: Session, server: ScriptedServer
) -> None:
    """Taking it for the base model would sample from other weights, without a word."""
    server.on(f"samplers/{SNAPSHOT}", lambda _: {"sampler_id": SNAPSHOT, "base_model": "m"})
    handle = SamplerHandle(server.url, SNAPSHOT)
    async with bounded(session):
        sampler = await session.create_sampling_client_from_handle(handle)
        assert "m" == await sampler.get_base_model()
        assert handle == sampler.handle()

    assert [] == server.seen("create_sampling_session")


async def test_a_snapshot_that_is_gone_fails_the_first_sample(
    session: Session, server: ScriptedServer
) -> None:
    """With the server's own words."""
    server.on("asample", lambda _: (410, {}, b'{"detail":"the sampling session is over"}'))
    async with bounded(session):
        sampler = await session.create_sampling_client_from_handle(
            SamplerHandle(server.url, SNAPSHOT)
        )
        with pytest.raises(GoneError, match="is over"):
            await draw(sampler, 0)


# Whose numbers


async def test_many_clients_of_a_snapshot_never_take_each_others_samples(
    server: ScriptedServer, numbered: Numbered
) -> None:
    """Each gets the answers to its own requests, also where workers seed `random` alike."""
    clients, samples = 6, 30
    found: dict[int, int] = {}
    handle = SamplerHandle(server.url, SNAPSHOT)

    async def work(first_seed: int) -> None:
        async with Session(server.url, "tml-test") as session:
            random.seed(0)
            sampler = await session.create_sampling_client_from_handle(handle)

            async def one(seed: int) -> None:
                found[seed] = await draw(sampler, seed)

            async with anyio.create_task_group() as tasks:
                for seed in range(first_seed, first_seed + samples):
                    tasks.start_soon(one, seed)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for number in range(clients):
                tasks.start_soon(work, number * samples)

    assert {seed: seed for seed in range(clients * samples)} == found
    assert clients * samples == len(numbered.known)
    assert {SNAPSHOT} == {sampler for sampler, _ in numbered.known}
    stretches = {number // STRETCH for _, number in numbered.known}
    assert clients == len(stretches)
    assert 1 <= min(stretches)
    assert max(number for _, number in numbered.known) < 2**63 - STRETCH


async def test_the_client_that_made_the_sampler_counts_from_zero(
    server: ScriptedServer, session: Session, numbered: Numbered
) -> None:
    """The stretch that no other client draws."""
    async with bounded(session):
        sampler = await session.create_sampling_client(base_model="m")
        assert [5, 6] == [await draw(sampler, 5), await draw(sampler, 6)]

    assert [0, 1] == [number for _, number in numbered.known]


async def test_a_server_that_hands_out_numbers_is_asked_for_them(
    session: Session, server: ScriptedServer, numbered: Numbered
) -> None:
    """One stretch for each client, so that nothing is left to chance."""
    server.on("client/config", lambda _: {"sample_join_sampling_session": True})
    counters = iter([1, 2])
    server.on("join_sampling_session", lambda _: {"client_counter": next(counters)})
    handle = SamplerHandle(server.url, SNAPSHOT)
    async with bounded(session):
        first = await session.create_sampling_client_from_handle(handle)
        second = await session.create_sampling_client_from_handle(handle)
        await draw(first, 0)
        await draw(second, 1)
        await draw(first, 2)

    assert [STRETCH, 2 * STRETCH, STRETCH + 1] == [number for _, number in numbered.known]
    joined = {"type": "join_sampling_session", "sampling_session_id": SNAPSHOT}
    assert [joined, joined] == [call.json for call in server.seen("join_sampling_session")]
