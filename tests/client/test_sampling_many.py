"""Samples that the session waits for, mappings with bounded memory, and groups."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

import anyio
import pytest
from support.sampled import PROMPT, Held, Sampled, sampler_of, until
from support.scripted import Call, ScriptedServer

from tinker_async import (
    APIFuture,
    InvalidInputError,
    ModelInput,
    OperationWithdrawnError,
    RequestFailedError,
    RequestTimeoutError,
    SampleResponse,
    SampleTask,
    SamplingClient,
    SamplingParams,
    Session,
    SessionClosedError,
)


@pytest.fixture
def sampled(server: ScriptedServer) -> Sampled:
    """The scripted server, sampling."""
    return Sampled(server)


def fail_some(sampled: Sampled, numbers: set[int]) -> None:
    """Let the samples with these numbers fail."""

    def retrieve(call: Call) -> Any:
        if sampled.number(call) in numbers:
            return {"error": "out of luck", "category": "server"}
        return sampled.retrieve(call)

    sampled.server.on("retrieve_future", retrieve)


def token(response: SampleResponse) -> int:
    return int(response.sequences[0].tokens[0])


# submit_sample


async def test_submitted_samples_run_in_the_session_and_many_may_wait_for_one(
    session: Session, sampled: Sampled
) -> None:
    """The caller goes on at once; a waiter that is cancelled disturbs nobody."""
    with anyio.fail_after(10):
        held = Held(sampled.retrieve)
        sampled.server.on("retrieve_future", held)
        got: list[int] = []
        async with session:
            sampler = await sampler_of(session)
            future = sampler.submit_sample(PROMPT, SamplingParams(max_tokens=1))
            assert isinstance(future, APIFuture)

            async def wait() -> None:
                got.append(token(await future))

            with anyio.move_on_after(0.02):
                await future
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(wait)
                await until(lambda: held.came == 1)
                assert (False, "r1") == (future.done, future.request_id)
                held.let_go()

    assert got == [0, 0, 0]
    assert sampled.sent == [0]
    assert sampled.cancelled == []


async def test_cancelling_a_submitted_sample_cancels_it_on_the_server_once(
    session: Session, sampled: Sampled
) -> None:
    """Also when it was sent already; its place is free."""
    with anyio.fail_after(10):
        held = Held(sampled.retrieve)
        sampled.server.on("retrieve_future", held)
        async with session:
            sampler = await sampler_of(session)
            future = sampler.submit_sample(PROMPT)
            await until(lambda: held.came == 1)
            assert [True, False] == [future.cancel(), future.cancel()]
            with pytest.raises(OperationWithdrawnError):
                await future
            await until(lambda: bool(sampled.cancelled))
            assert session.statistics().sampling.samples.in_use == 0

    assert sampled.cancelled == [0]


async def test_submitted_samples_may_finish_when_the_block_ends(
    session: Session, sampled: Sampled
) -> None:
    """As queued operations do; after an exception they are given up, and the server is told."""
    futures: list[APIFuture[SampleResponse]] = []
    with anyio.fail_after(10):
        async with session:
            sampler = await sampler_of(session)
            futures += [sampler.submit_sample(PROMPT) for _ in range(5)]
        assert [0, 1, 2, 3, 4] == sorted([token(await future) for future in futures])

        sampled.server.on("retrieve_future", Held(sampled.retrieve))
        with pytest.raises(ZeroDivisionError):
            async with Session(sampled.server.url, "tml-test") as another:
                sampler = await sampler_of(another)
                future = sampler.submit_sample(PROMPT)
                await until(lambda: future.request_id is not None)
                raise ZeroDivisionError
        with pytest.raises(SessionClosedError):
            await future

    assert sampled.cancelled == [0]


async def test_a_submitted_samples_failure_or_time_out_settles_its_future_alone(
    session: Session, sampled: Sampled
) -> None:
    """The session goes on."""
    fail_some(sampled, {0})
    with anyio.fail_after(10):
        async with session:
            sampler = await sampler_of(session)
            with pytest.raises(RequestFailedError, match="out of luck"):
                await sampler.submit_sample(PROMPT)
            sampled.server.on("retrieve_future", Held(sampled.retrieve))
            with pytest.raises(RequestTimeoutError, match="after it was accepted"):
                await sampler.submit_sample(PROMPT, timeout=0.1)
            await until(lambda: sampled.cancelled == [1])
            fail_some(sampled, set())
            assert token(await sampler.submit_sample(PROMPT)) == 2


async def test_a_result_that_breaks_the_decoder_costs_one_sample(
    session: Session, sampled: Sampled
) -> None:
    """Not the session: the error is typed and names where it came from."""
    answers = iter([{"type": "sample", "sequences": [{"stop_reason": 3, "tokens": "x"}]}])
    sampled.server.on("retrieve_future", lambda call: next(answers, None) or sampled.retrieve(call))
    with anyio.fail_after(10):
        async with session:
            sampler = await sampler_of(session)
            future = sampler.submit_sample(PROMPT)
            with pytest.raises(Exception, match="understood") as caught:
                await future
            assert token(await sampler.sample(PROMPT)) == 1

    assert type(caught.value).__name__ == "ResponseError"


# map


def polled(sampled: Sampled, times: int) -> bool:
    return len(sampled.server.seen("retrieve_future")) == times


async def test_a_mapping_hands_over_results_as_they_complete(
    session: Session, sampled: Sampled
) -> None:
    """Out of order where a slow one is first; each with its index and its own request."""
    with anyio.fail_after(10):
        slow = Held(sampled.retrieve)
        sampled.server.on(
            "retrieve_future",
            lambda call: slow(call) if sampled.number(call) == 0 else sampled.retrieve(call),
        )
        tasks = [SampleTask(PROMPT, SamplingParams(seed=n), tag=f"t{n}") for n in range(8)]
        got: list[tuple[int, object]] = []
        async with session:
            sampler = await sampler_of(session)
            async with sampler.map(tasks, max_in_flight=3) as outcomes:
                async for outcome in outcomes:
                    assert outcome.task is tasks[outcome.index]
                    outcome.result()
                    got.append((outcome.index, outcome.task.tag))
                    if len(got) == 7:
                        slow.let_go()

    assert [(n, f"t{n}") for n in range(8)] == sorted(got)
    by_seed = {call.json["seq_id"]: call.json["sampling_params"]["seed"] for call in seen(sampled)}
    assert len({*by_seed.values()}) == 8
    assert got[-1][0] == by_seed[0]


def seen(sampled: Sampled) -> list[Call]:
    return sampled.server.seen("asample")


async def test_a_mapping_takes_no_more_than_it_may_hold(session: Session, sampled: Sampled) -> None:
    """From an endless source: what is not read is not replaced."""
    taken = 0

    async def prompts() -> AsyncGenerator[ModelInput]:
        nonlocal taken
        for number in itertools.count(1):
            taken += 1
            yield ModelInput.from_ints([number])

    with anyio.fail_after(10):
        async with session:
            sampler = await sampler_of(session)
            async with (
                aclosing(prompts()) as source,
                sampler.map(source, max_in_flight=4) as outcomes,
            ):
                await until(lambda: len(sampled.server.seen("retrieve_future")) == 4)
                for _ in range(20):
                    await anyio.lowlevel.checkpoint()
                assert taken == 4
                for read in range(1, 4):
                    await anext(outcomes)
                    await until(partial(polled, sampled, 4 + read))
                    assert taken == 4 + read
            assert session.statistics().sampling.samples.in_use == 0

    assert len(sampled.sent) == 7


async def test_a_mappings_failures_are_outcomes_and_the_others_go_on(
    session: Session, sampled: Sampled
) -> None:
    """Asking such an outcome for its result raises the error."""
    fail_some(sampled, {1, 3})
    with anyio.fail_after(10):
        async with session:
            sampler = await sampler_of(session)
            async with sampler.map([PROMPT] * 5, max_in_flight=1) as outcomes:
                found = [outcome async for outcome in outcomes]

    assert [0, 1, 2, 3, 4] == [outcome.index for outcome in found]
    assert [False, True, False, True, False] == [outcome.error is not None for outcome in found]
    with pytest.raises(RequestFailedError):
        found[1].result()


async def test_leaving_a_mapping_cancels_what_is_under_way(
    session: Session, sampled: Sampled
) -> None:
    """Also by an exception, which leaves as itself."""
    with anyio.fail_after(10):
        held = Held(sampled.retrieve)
        sampled.server.on("retrieve_future", held)
        async with session:
            sampler = await sampler_of(session)
            with pytest.raises(ZeroDivisionError):
                async with sampler.map([PROMPT] * 9, max_in_flight=3):
                    await until(lambda: held.came == 3)
                    raise ZeroDivisionError
            await until(lambda: len(sampled.cancelled) == 3)
            with pytest.raises(InvalidInputError, match="max_in_flight"):
                async with sampler.map([PROMPT], max_in_flight=0):
                    pass

    assert [0, 1, 2] == sorted(sampled.cancelled)


async def test_a_mapping_of_few_starts_no_more_tasks_than_that(
    session: Session, sampled: Sampled
) -> None:
    """Whoever has no limit in mind may write a large one; of nothing comes nothing."""
    with anyio.fail_after(10):
        async with session:
            sampler = await sampler_of(session)
            for number in (2, 0):
                async with sampler.map([PROMPT] * number, max_in_flight=10**9) as outcomes:
                    assert number == len([one async for one in outcomes])


# sample_group


async def test_a_group_gives_those_that_succeeded_if_they_are_enough(
    session: Session, sampled: Sampled
) -> None:
    """In order; each with a seed of its own; the slow one is given up by its own deadline."""
    seeds: dict[int, int] = {}

    async def retrieve(call: Call) -> Any:
        number = sampled.number(call)
        if seeds[number] == 12:
            await anyio.sleep_forever()
        if seeds[number] == 11:
            return {"error": "out of luck", "category": "server"}
        return sampled.retrieve(call)

    def sample(call: Call) -> Any:
        seeds[call.json["seq_id"]] = call.json["sampling_params"]["seed"]
        return sampled.sample(call)

    sampled.server.on("asample", sample)
    sampled.server.on("retrieve_future", retrieve)
    with anyio.fail_after(10):
        async with session:
            sampler = await sampler_of(session)
            responses = await sampler.sample_group(
                PROMPT, 4, SamplingParams(seed=10), least=2, timeout=0.5
            )
            await until(lambda: bool(sampled.cancelled))

    assert [10, 13] == [seeds[token(response)] for response in responses]
    assert [12] == [seeds[number] for number in sampled.cancelled]


async def test_a_group_that_cannot_have_enough_fails_at_once(
    session: Session, sampled: Sampled
) -> None:
    """The others are cancelled, on the server too."""

    async def retrieve(call: Call) -> Any:
        if sampled.number(call) == 1:
            await until(lambda: len(sampled.server.seen("retrieve_future")) == 3)
            return {"error": "out of luck", "category": "server"}
        return await anyio.sleep_forever()

    sampled.server.on("retrieve_future", retrieve)
    with anyio.fail_after(10):
        async with session:
            sampler = await sampler_of(session)
            with pytest.raises(RequestFailedError, match="out of luck") as caught:
                await sampler.sample_group(PROMPT, 3)
            await until(lambda: len(sampled.cancelled) == 2)

    assert caught.value.__notes__ == ["1 of 3 samples failed; 3 had to succeed"]
    assert [0, 2] == sorted(sampled.cancelled)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [({"n": 0}, "n"), ({"n": 2, "least": 3}, "least"), ({"n": 2, "least": -1}, "least")],
)
async def test_a_group_says_what_is_wrong_with_its_arguments(
    session: Session, sampled: Sampled, arguments: dict[str, int], field: str
) -> None:
    """Before anything is sent."""
    with anyio.fail_after(10):
        async with session:
            sampler: SamplingClient = await sampler_of(session)
            with pytest.raises(InvalidInputError) as caught:
                await sampler.sample_group(PROMPT, **arguments)  # type: ignore[arg-type]  # numbers

    assert field == caught.value.field
    assert sampled.sent == []
