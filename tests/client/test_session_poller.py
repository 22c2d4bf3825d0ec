"""One request for all samples of a sampler: results come as without it, whatever becomes of it."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support.sampled import PROMPT, Sampled, sampler_of, until
from support.scripted import Call, ScriptedServer

from tinker_async import (
    QueueStateChanged,
    RequestFailedError,
    RequestTimeoutError,
    SampleResponse,
    SamplingClient,
    SamplingParams,
    Session,
)
from tinker_async.background import roll, session_poller
from tinker_async.background.roll import FEW_ASKING, LONG_S, Roll
from tinker_async.testing import FakeService, faults, run_in_virtual_time
from tinker_async.wire.messages import ClientConfigResponse, FutureCompletion

POLLED = ClientConfigResponse(sample_use_retrieve_futures=True, sample_max_concurrent_requests=40)
MANY = FEW_ASKING + 48
PARAMS = SamplingParams(max_tokens=3)


@pytest.fixture
def sampled(server: ScriptedServer) -> Sampled:
    """The scripted server, sampling."""
    return Sampled(server)


def polled(**options: Any) -> FakeService:
    return FakeService(config=POLLED, **options)


async def draw(sampler: SamplingClient, number: int = MANY) -> list[SampleResponse]:
    found: list[SampleResponse] = []

    async def one() -> None:
        found.append(await sampler.sample(PROMPT, PARAMS))

    async with anyio.create_task_group() as tasks:
        for _ in range(number):
            tasks.start_soon(one)
    return found


def tokens(found: list[SampleResponse]) -> list[list[int]]:
    return sorted(one.sequences[0].tokens.tolist() for one in found)


def done(*names: str, size: int | None = None) -> list[FutureCompletion]:
    return [FutureCompletion(name, response_payload_uncompressed_size=size) for name in names]


async def test_many_samples_are_told_by_one_request() -> None:
    """The results are those of single polls; each is fetched once, and few polls are held."""
    alone = FakeService(sample_s=0.05)
    service = polled(sample_s=0.05)
    with anyio.fail_after(20):
        async with alone.session() as session:
            right = await draw(await sampler_of_toy(session))
        async with service.session() as session:
            found = await draw(await sampler_of_toy(session))

    assert tokens(right) == tokens(found)
    assert MANY == service.ledger.count("retrieve_future")
    assert 1 <= service.ledger.count("retrieve_futures") <= MANY // 4
    assert service.ledger.samples_answered_once()
    assert [] == service.ledger.pending()


async def sampler_of_toy(session: Session) -> SamplingClient:
    return await session.create_sampling_client(base_model="toy")


async def test_few_samples_ask_for_themselves() -> None:
    """A list would only add to what they send."""
    service = polled(sample_s=0.01)
    with anyio.fail_after(20):
        async with service.session() as session:
            await draw(await sampler_of_toy(session), FEW_ASKING)

    assert FEW_ASKING == service.ledger.count("retrieve_future")
    assert 0 == service.ledger.count("retrieve_futures")


@pytest.mark.parametrize(("most", "in_use"), [(None, MANY), (5, 5)])
async def test_the_servers_limit_of_samples_is_not_minded(most: int | None, in_use: int) -> None:
    """It is for polls that are held; the user's own is."""
    service = polled()
    with anyio.fail_after(20):
        await _draw_all(service, most, in_use)


async def _draw_all(service: FakeService, most: int | None, in_use: int) -> None:
    async with service.session(max_samples_in_flight=most) as session:
        sampler = await sampler_of_toy(session)
        service.pause()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(draw, sampler)
            samples = session.statistics().sampling.samples
            while samples.in_use + samples.waiting < MANY:
                await anyio.lowlevel.checkpoint()
                samples = session.statistics().sampling.samples
            assert (in_use, MANY - in_use) == (samples.in_use, samples.waiting)
            tasks.cancel_scope.cancel()


async def test_a_server_without_it_is_polled_for_each_sample() -> None:
    """Found once for all samplers of the session, and told."""
    service = polled(sample_s=0.02)
    service.faults.on("retrieve_futures", faults.Status(405))
    with anyio.fail_after(20):
        async with service.session() as session:
            assert session.server.features["session_poller"].supported
            first, second = await sampler_of_toy(session), await sampler_of_toy(session)
            assert MANY == len(await draw(first))
            assert MANY == len(await draw(second))
            known = session.server.features["session_poller"]
            limit = session.statistics().sampling.ceiling

    assert (False, "answer") == (known.supported, known.learned_from)
    assert 1 == service.ledger.count("retrieve_futures")
    assert POLLED.sample_max_concurrent_requests == limit


@pytest.mark.parametrize(
    ("fault", "times", "most_s"),
    [
        (faults.Status(503), 2, 4),
        (faults.TooMany(2.0, form="seconds"), 1, 4),
        (faults.Reset(), 2, 4),
        (faults.BadJson(), 2, 4),
        (faults.Status(400), 2, 4),
        (faults.Status(503), None, 5),
        (faults.Status(403), None, 3),
        (faults.Status(402), None, 3),
        (faults.BadJson(), None, 5),
        (faults.Untold(), 1, 60),
        (faults.Stall(), 1, 90),
        (faults.Stall(), None, 90),
    ],
    ids=str,
)
def test_results_come_however_it_fails(
    fault: faults.Fault, times: int | None, most_s: float
) -> None:
    """After the pauses that the protocol names, or by asking for each sample."""
    service = polled(sample_s=1.0)
    service.faults.on("retrieve_futures", fault, times=times)

    async def main() -> float:
        async with service.session() as session:
            began = anyio.current_time()
            found = await draw(await sampler_of_toy(session))
            assert MANY == len(found)
            return anyio.current_time() - began

    assert run_in_virtual_time(main) <= most_s
    assert service.ledger.samples_answered_once()
    assert MANY == len(service.ledger.samples)


def test_after_a_rest_it_is_used_again() -> None:
    """Failures are no reason to do without it for ever."""
    service = polled(sample_s=5.0)
    rule = service.faults.on("retrieve_futures", faults.Status(503))

    async def main() -> None:
        async with service.session() as session:
            sampler = await sampler_of_toy(session)
            await draw(sampler)
            rule.remove()
            asked = service.ledger.count("retrieve_futures")
            await draw(sampler)
            assert asked == service.ledger.count("retrieve_futures")
            await anyio.sleep(31)
            await draw(sampler)
            assert asked < service.ledger.count("retrieve_futures")

    run_in_virtual_time(main)


def test_what_a_list_has_left_out_is_found_while_others_go_on() -> None:
    """A sample that was never told asks after a minute, and then all that were left out with it."""
    service = polled(sample_s=2.0)
    service.faults.on("retrieve_futures", faults.Untold(), occurrence=1)

    async def main() -> float:
        async with service.session() as session:
            sampler = await sampler_of_toy(session)
            began = anyio.current_time()
            took_s = 0.0

            async def early() -> None:
                nonlocal took_s
                await draw(sampler)
                took_s = anyio.current_time() - began

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(early)
                while not took_s and anyio.current_time() < began + 300:
                    await anyio.sleep(1.0)
                    tasks.start_soon(draw, sampler, 2 * MANY)
            return took_s

    assert 0 < run_in_virtual_time(main) < LONG_S + 10
    assert service.ledger.samples_answered_once()


async def test_a_paused_queue_is_told_and_holds_new_samples_back() -> None:
    """By those that ask for themselves."""
    service = polled(hold_s=0.02)
    states: list[str] = []

    def tell(event: object) -> None:
        if isinstance(event, QueueStateChanged):
            states.append(event.state)

    with anyio.fail_after(20):
        async with service.session(on_event=tell) as session:
            sampler = await sampler_of_toy(session)
            service.pause("paused_capacity")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(draw, sampler)
                await until(lambda: "paused_capacity" in states)
                assert session.statistics().sampling.queue_paused_for_s > 0
                service.resume()
            assert 0 == session.statistics().sampling.queue_paused_for_s
    assert "active" in states


async def test_cancelled_samples_are_told_once_and_the_poll_ends_with_the_last() -> None:
    """Nothing is held for samples that nobody waits for."""
    service = polled()
    with anyio.fail_after(20):
        async with service.session() as session:
            sampler = await sampler_of_toy(session)
            service.pause()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(draw, sampler)
                await until(lambda: service.ledger.count("retrieve_futures") == 1)
                await until(lambda: len(service.ledger.samples) == MANY)
                with pytest.raises(RequestTimeoutError):
                    await sampler.sample(PROMPT, timeout=0.02)
                tasks.cancel_scope.cancel()
            await until(lambda: not service.ledger.pending())
            await until(lambda: len(service.ledger.cancels()) == MANY + 1)
            names = {task.name or "" for task in anyio.get_running_tasks()}
            assert not [name for name in names if "SessionPoller" in name]
            service.resume()
            assert MANY == len(await draw(sampler))

    assert sorted(line.request_id for line in service.ledger.samples[: MANY + 1]) == sorted(
        service.ledger.cancels()
    )


async def test_failed_samples_fail_with_their_own_words() -> None:
    """A completion says that, and what went wrong is fetched."""
    service = polled(sample_s=0.02)
    service.faults.on("asample", faults.OperationFails("no memory", "server"), occurrence=MANY)
    failed: list[RequestFailedError] = []
    with anyio.fail_after(20):
        async with service.session() as session:
            sampler = await sampler_of_toy(session)

            async def one() -> None:
                try:
                    await sampler.sample(PROMPT, PARAMS)
                except RequestFailedError as error:
                    failed.append(error)

            async with anyio.create_task_group() as tasks:
                for _ in range(MANY):
                    tasks.start_soon(one)
    assert ["server"] == [error.category for error in failed]
    assert "no memory" in str(failed[0])


async def test_what_it_sends_is_the_protocols(
    server: ScriptedServer, sampled: Sampled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cursor, what was fetched (sorted), the client's number; told at last when all is fetched."""
    monkeypatch.setattr(roll, "FEW_ASKING", 0)
    monkeypatch.setattr(session_poller, "_WORTH_TELLING", 1)
    sampled.limits(sample_use_retrieve_futures=True, sample_join_sampling_session=True)
    server.on("join_sampling_session", lambda _: {"client_counter": 7})
    waves: list[list[str]] = []
    count = 70

    def told(call: Call) -> Any:
        known = {name for wave in waves for name in wave}
        wave = [name for name in sampled.seq_ids if name not in known]
        if call.json.get("timeout") != 0:
            waves.append(wave)
        listed = [{"state": "finished", "request_id": name, "new": 1} for name in wave]
        return {"completions": listed, "cursor": len(known) + len(wave), "more": None}

    def fetched() -> set[str]:
        calls = server.seen("retrieve_futures")
        return {name for call in calls for name in call.json["retrieved_request_ids"]}

    server.on("retrieve_futures", told)
    with anyio.fail_after(20):
        async with Session(server.url, "tml-test") as session:
            handle = (await sampler_of(session)).handle()
            snapshot = type(handle)(handle.base_url, handle.sampling_session_id)
            sampler = await session.create_sampling_client_from_handle(snapshot)
            await draw(sampler, count)
            await until(lambda: {*sampled.seq_ids} == fetched())
            await until(lambda: server.seen("retrieve_futures")[-1].json.get("timeout") == 0)
    sent = [call.json for call in server.seen("retrieve_futures")]
    target = {"type": "sampling_session", "cloned_sampler_id": 7}
    target["sampling_session_id"] = handle.sampling_session_id
    assert {
        "target": target,
        "prev_cursor": 0,
        "retrieved_request_ids": [],
    } == sent[0]
    assert all(target == body["target"] for body in sent)
    assert sorted(body["prev_cursor"] for body in sent) == [body["prev_cursor"] for body in sent]
    lists = [body["retrieved_request_ids"] for body in sent]
    assert all(names == sorted(names) for names in lists)
    assert {7} == {number // 10**9 for number in sampled.sent}


async def test_a_list_that_begins_anew_costs_no_result(
    server: ScriptedServer, sampled: Sampled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cursor goes back: all that wait ask once."""
    monkeypatch.setattr(roll, "FEW_ASKING", 0)
    sampled.limits(sample_use_retrieve_futures=True)
    cursors = iter([9, 0])

    async def told(_: Call) -> Any:
        await until(lambda: len(server.seen("asample")) == 40)
        await anyio.sleep(0.05)  # their answers, too
        cursor = next(cursors, None)
        return (
            {"completions": [], "cursor": cursor} if cursor is not None else await anyio.sleep(60)
        )

    server.on("retrieve_futures", told)
    with anyio.fail_after(20):
        async with Session(server.url, "tml-test") as session:
            found = await draw(await sampler_of(session), 40)
    assert 40 == len(found)


# Large results


async def test_large_results_wait_for_room(server: ScriptedServer, sampled: Sampled) -> None:
    """The server says how large one is; it is sent when that many bytes may be on their way."""
    sampled.limits(inflight_response_bytes_semaphore_size=1000)
    under_way: list[str] = []
    most = 0

    async def retrieve(call: Call) -> Any:
        nonlocal most
        if call.json.get("allow_metadata_only"):
            return {"status": "complete_metadata", "response_payload_size": 600}
        under_way.append(call.json["request_id"])
        most = max(most, len(under_way))
        await anyio.sleep(0.01)
        under_way.remove(call.json["request_id"])
        return sampled.retrieve(call)

    server.on("retrieve_future", retrieve)
    with anyio.fail_after(20):
        async with Session(server.url, "tml-test") as session:
            assert 6 == len(await draw(await sampler_of(session), 6))
    assert 1 == most


async def test_results_whose_size_was_told_wait_for_room_at_once(
    server: ScriptedServer, sampled: Sampled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without being asked for it again."""
    monkeypatch.setattr(roll, "FEW_ASKING", 0)
    sampled.limits(sample_use_retrieve_futures=True, inflight_response_bytes_semaphore_size=1000)
    told: set[str] = set()

    def futures(_: Call) -> Any:
        new = [name for name in sampled.seq_ids if name not in told]
        told.update(new)
        size = {"state": "finished", "response_payload_uncompressed_size": 600}
        return {"completions": [{"request_id": name, **size} for name in new], "cursor": len(told)}

    server.on("retrieve_futures", futures)
    with anyio.fail_after(20):
        async with Session(server.url, "tml-test") as session:
            assert 6 == len(await draw(await sampler_of(session), 6))
    asked = [call.json.get("allow_metadata_only", False) for call in server.seen("retrieve_future")]
    assert [False] * 6 == asked


async def test_large_results_of_the_fake_service_come_whole() -> None:
    """Told or asked for."""
    service = polled(sample_s=0.02, inline_bytes=10)
    with anyio.fail_after(20):
        async with service.session() as session:
            assert MANY == len(await draw(await sampler_of_toy(session)))
    assert 2 * MANY == service.ledger.count("retrieve_future")
    assert service.ledger.samples_answered_once()


# Who waits, and who asks


async def test_who_is_told_before_its_promise_is_here_asks_at_once() -> None:
    found = Roll()
    assert 0 == found.tell(done("early", size=5), 1.0)
    assert found.join("early") is None
    assert 5 == found.size_of("early")
    found.leave("early")
    assert 0 == found.size_of("early")


async def test_only_few_ask_and_the_others_wait_to_be_told() -> None:
    found = Roll()
    waiters = [found.join(f"r{n}") for n in range(FEW_ASKING + 3)]
    assert [None] * FEW_ASKING == waiters[:FEW_ASKING]
    assert 3 == found.waiting
    last = waiters[-1]
    assert last is not None
    assert 1 == found.tell(done(f"r{FEW_ASKING + 2}", "r0", "never"), 1.0)
    assert last.done()
    found.leave("r1")
    found.nothing_told(2.0)
    first = waiters[FEW_ASKING]
    assert first is not None
    assert first.done()
    assert 1 == found.waiting


async def test_who_was_left_out_makes_twice_as_many_ask() -> None:
    """Until the list tells somebody."""
    found = Roll()
    for n in range(4 * FEW_ASKING):
        found.join(f"r{n}")
    found.leave("r0")
    found.nothing_told(100.0)
    late = f"r{FEW_ASKING}"
    assert found.had_waited(late)
    found.found(late, 100.1)
    found.leave(late)
    assert FEW_ASKING - 1 + 1 + FEW_ASKING == 4 * FEW_ASKING - 1 - found.waiting
    found.tell(done(f"r{4 * FEW_ASKING - 1}"), 101.0)
    before = found.waiting
    found.nothing_told(102.0)
    assert before == found.waiting


async def test_a_result_that_took_its_time_was_not_left_out() -> None:
    found = Roll()
    for n in range(2 * FEW_ASKING):
        found.join(f"r{n}")
    found.leave("r0")
    found.nothing_told(100.0)
    before = found.waiting
    found.found(f"r{FEW_ASKING}", 103.0)
    assert before == found.waiting
