"""This library's client on this library's server, with the session poller, joins and sizes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from server.desk import KEY
from server.engine_double import CARD, QuickEngine
from support.listed import all_listed

import tinker_async as ta
from tinker_async.local.server.flags import read_flags
from tinker_async.local.server.hosting import Site, bind, host, url_of
from tinker_async.local.server.limits import Limits

FLAGS = read_flags({"sample_use_retrieve_futures": "true", "sample_join_sampling_session": "true"})
PROMPT = ta.ModelInput.from_ints([1, 2, 3])


async def draw(sampler: ta.SamplingClient, number: int) -> list[ta.SampleResponse]:
    found: list[ta.SampleResponse] = []

    async def one() -> None:
        found.append(await sampler.sample(PROMPT, ta.SamplingParams(max_tokens=2)))

    async with anyio.create_task_group() as tasks:
        for _ in range(number):
            tasks.start_soon(one)
    return found


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "h2c"])
async def test_samples_are_told_together(tmp_path: Path, http2: bool) -> None:
    """Results one by one and all at once, of the sampler and of a client that has joined it."""
    listener, stopping, ready = bind("127.0.0.1", 0), anyio.Event(), anyio.Event()
    url, limits = url_of(listener), Limits(inline_bytes=10)
    site = Site(QuickEngine(), CARD, tmp_path, tmp_path, KEY, limits, FLAGS)

    async def serve() -> None:
        await host(site, listener, stopping=stopping, ready=ready.set)

    async def sampled(session: ta.Session) -> list[Any]:
        trainer = await session.create_lora_training_client(CARD.name, rank=8)
        first = await trainer.save_weights_and_get_sampling_client()
        handle = ta.SamplerHandle.from_json(first.handle().to_json())
        second = await session.create_sampling_client_from_handle(handle)
        drawn: list[Any] = []
        for sampler in (first, second):
            responses = await draw(sampler, 40)
            drawn.append({one.sequences[0].sequence_id for one in responses})
        return drawn

    with all_listed(), anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            await ready.wait()
            async with ta.Session(url, KEY, http2=http2) as session:
                first, second = await sampled(session)
                features = session.server.features
            stopping.set()
    assert (40, 40) == (len(first), len(second))
    assert not first & second
    assert (True, "config") == msgspec.structs.astuple(features["session_poller"])[:2]
