"""How long a session's end may take that has samples to give up, and how many are told at once."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest
from support.sampled import PROMPT

from tinker_async import RetryPolicy, SamplingClient
from tinker_async.testing import FakeService, faults, run_in_virtual_time
from tinker_async.testing.ledger import Entry
from tinker_async.wire.messages import DynamicConfigResponse

PROMISED_S = 5.0
"""By docs/discussion/reliability.md."""
LONG_S = 10_000.0


async def given_up(sampler: SamplingClient, number: int, reached: Callable[[], bool]) -> None:
    """Start samples, and cancel them when they are as far as wanted."""
    async with anyio.create_task_group() as tasks:
        for _ in range(number):
            tasks.start_soon(sampler.sample, PROMPT)
        await until(reached)
        tasks.cancel_scope.cancel()


def exit_of(service: FakeService, waits_for: str, number: int = 1) -> float:
    """Return how long a block takes to end in which samples were given up just before."""

    async def main() -> float:
        async with service.session(retry=RetryPolicy(base_s=0.01)) as session:
            sampler = await session.create_sampling_client(base_model="toy")
            ledger = service.ledger
            await given_up(sampler, number, lambda: ledger.count(waits_for) >= number)
            began = anyio.current_time()
        return anyio.current_time() - began

    return run_in_virtual_time(main)


@pytest.mark.parametrize("number", [1, 100])
def test_a_sample_whose_request_is_never_answered_does_not_hold_up_the_end(number: int) -> None:
    """It is asked for again, to learn its id, in vain; the server still hears of the end."""
    service = FakeService()
    service.faults.on("asample", faults.Stall())
    took_s = exit_of(service, "asample", number)

    assert 0 < took_s <= PROMISED_S
    (finish,) = service.ledger.of("finish")
    assert "answered" == finish.outcome


@pytest.mark.parametrize("number", [1, 200])
def test_a_cancel_that_is_never_answered_does_not_hold_up_the_end(number: int) -> None:
    """As before, where the ids are known: more of them than are told at once."""
    service = FakeService(sample_s=LONG_S)
    service.faults.on("cancel_future", faults.Stall())
    took_s = exit_of(service, "retrieve_future", number)

    assert 0 < took_s <= PROMISED_S
    assert "answered" == service.ledger.of("finish")[0].outcome


def test_a_server_that_answers_nothing_any_more_does_not_hold_up_the_end() -> None:
    """Not even the last word."""
    service = FakeService(sample_s=LONG_S)
    for endpoint in ("cancel_future", "finish"):
        service.faults.on(endpoint, faults.Stall())
    took_s = exit_of(service, "retrieve_future")

    assert 0 < took_s <= PROMISED_S


def test_what_is_told_quickly_is_told_of_every_sample() -> None:
    """Also of those that were still in line when the block ended."""
    service = FakeService(sample_s=LONG_S)
    service.faults.on("cancel_future", faults.Stall(seconds=0.5, commit=True))
    took_s = exit_of(service, "retrieve_future", 200)

    assert 0 < took_s <= PROMISED_S
    assert 200 == len({*service.ledger.cancels()})


def test_how_many_are_told_at_once_follows_the_servers_config() -> None:
    """`sample_cancel_max_batch_size` counts from the session's start, and from each refresh on."""
    service = FakeService(sample_s=LONG_S)
    service.faults.on("cancel_future", faults.Stall(seconds=1.0, commit=True))
    sizes = (2, 5, 1)

    async def main() -> list[int]:
        service.switches = switches(sizes[0])
        found = []
        async with service.session() as session:
            sampler = await session.create_sampling_client(base_model="toy")
            for size in sizes:
                service.switches = switches(size)
                await anyio.sleep(11)  # the shortest time between refreshes is ten seconds
                found.append(await most_told_at_once(service, sampler))
        return found

    assert [*sizes] == run_in_virtual_time(main)


def switches(size: int) -> DynamicConfigResponse:
    return DynamicConfigResponse(
        refresh_interval_sec=1, sample_cancel_enabled=True, sample_cancel_max_batch_size=size
    )


async def most_told_at_once(service: FakeService, sampler: SamplingClient) -> int:
    ledger, number = service.ledger, 10
    polls, cancels = ledger.count("retrieve_future"), ledger.count("cancel_future")
    await given_up(sampler, number, lambda: ledger.count("retrieve_future") >= polls + number)
    await until(lambda: len(answered(service)) == cancels + number)
    entries = answered(service)[cancels:]
    return max(sum(within(one, other) for other in entries) for one in entries)


def answered(service: FakeService) -> list[Entry]:
    return [one for one in service.ledger.of("cancel_future") if one.outcome == "answered"]


def within(one: Entry, other: Entry) -> bool:
    """Whether one arrived while the other was being answered."""
    return other.ended_s is not None and other.at_s <= one.at_s < other.ended_s


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110  # in virtual time, by the server's ledger
        await anyio.sleep(0.01)
