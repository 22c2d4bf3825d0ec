"""Cancelled samples: the place is free at once, and the server is told once, or not at all."""

from __future__ import annotations

from functools import partial

import anyio
import pytest
from support.sampled import PROMPT, Held, Sampled, sampler_of, until
from support.scripted import Call, ScriptedServer

from tinker_async import RequestTimeoutError, RetryPolicy, SampleResponse, Session
from tinker_async.background import recalls
from tinker_async.testing import FakeService, faults


@pytest.fixture
def sampled(server: ScriptedServer) -> Sampled:
    """The scripted server, sampling."""
    return Sampled(server)


async def test_a_sample_cancelled_while_its_request_is_on_the_wire_is_cancelled_once(
    session: Session, sampled: Sampled
) -> None:
    """Its id is not known, so the same number is sent again to learn it."""
    with anyio.fail_after(10):
        held = Held(sampled.sample)
        sampled.server.on("asample", held)
        async with session:
            sampler = await sampler_of(session)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(sampler.sample, PROMPT)
                await until(lambda: held.came == 1)
                tasks.cancel_scope.cancel()
            in_use = session.statistics().sampling.samples.in_use
            held.let_go()
            await until(lambda: bool(sampled.cancelled))
            answer = await sampler.sample(PROMPT)

    assert in_use == 0
    assert [0, 0, 1] == sampled.sent
    assert sampled.cancelled == [0]
    assert answer.sequences[0].tokens.tolist() == [1]


async def test_a_sample_whose_time_is_over_while_it_is_being_sent_is_cancelled_once(
    session: Session, sampled: Sampled
) -> None:
    """As with any other cancellation; the error has the facts."""
    with anyio.fail_after(10):
        held = Held(sampled.sample)
        sampled.server.on("asample", held)
        async with session:
            sampler = await sampler_of(session)
            with pytest.raises(RequestTimeoutError, match="before it was accepted") as caught:
                await sampler.sample(PROMPT, timeout=0.05)
            held.let_go()
            await until(lambda: bool(sampled.cancelled))

    assert ("sample", 1) == (caught.value.operation, caught.value.attempts)
    assert [0, 0] == sampled.sent
    assert sampled.cancelled == [0]


async def test_a_sample_that_was_never_sent_is_not_told(session: Session, sampled: Sampled) -> None:
    """Cancelled in line for a place: the server never hears of it, and the line goes on."""
    sampled.limits(sample_max_concurrent_requests=1)
    with anyio.fail_after(10):
        held = Held(sampled.retrieve)
        sampled.server.on("retrieve_future", held)
        got: list[SampleResponse] = []
        async with session:
            sampler = await sampler_of(session)

            async def draw() -> None:
                got.append(await sampler.sample(PROMPT))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(draw)
                await until(lambda: held.came == 1)
                with anyio.move_on_after(0.02):
                    await draw()
                tasks.start_soon(draw)
                held.let_go()

    assert [0, 1] == sampled.sent
    assert len(got) == 2
    assert sampled.cancelled == []


async def test_a_sample_that_waits_for_its_turn_to_be_sent_is_not_told(
    sampled: Sampled,
) -> None:
    """It has a place and was refused once: nothing of it is on the server."""
    sampled.server.on("asample", lambda _: (429, {"retry-after": "60"}, b""))
    with anyio.fail_after(10):
        async with Session(sampled.server.url, "tml-test") as session:
            sampler = await sampler_of(session)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(sampler.sample, PROMPT)
                await until(lambda: session.statistics().sampling.backing_off_for_s > 0)
                tasks.cancel_scope.cancel()
            assert session.statistics().sampling.cancels == 0

    assert sampled.sent == [0]
    assert sampled.cancelled == []


async def test_a_sample_whose_first_request_failed_on_the_way_is_cancelled_all_the_same(
    sampled: Sampled,
) -> None:
    """Cancelled between two attempts, of which the first may have arrived."""

    def fail_late(call: Call) -> object:
        sampled.sample(call)
        sampled.server.on("asample", sampled.sample)
        return 503, {}, b""

    sampled.server.on("asample", fail_late)
    with anyio.fail_after(10):
        patient = RetryPolicy(base_s=60, max_s=60)
        async with Session(sampled.server.url, "tml-test", retry=patient) as session:
            sampler = await sampler_of(session)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(sampler.sample, PROMPT)
                await until(lambda: sampled.sent == [0])
                await anyio.wait_all_tasks_blocked()
                tasks.cancel_scope.cancel()
            await until(lambda: bool(sampled.cancelled))

    assert [0, 0] == sampled.sent
    assert sampled.cancelled == [0]


async def test_many_samples_given_up_at_once_are_each_told_once(
    session: Session, sampled: Sampled
) -> None:
    """Some are polled, some are on the wire; all places are free at once."""
    number = 150
    with anyio.fail_after(20):
        sampled.server.on("retrieve_future", Held(sampled.retrieve))
        async with session:
            sampler = await sampler_of(session)
            async with anyio.create_task_group() as tasks:
                for _ in range(number):
                    tasks.start_soon(sampler.sample, PROMPT)
                await until(lambda: len(sampled.promises) > number // 2)
                tasks.cancel_scope.cancel()
            in_use = session.statistics().sampling.samples.in_use
            await until(lambda: session.statistics().sampling.cancels == 0)

    assert in_use == 0
    assert sorted({*sampled.sent}) == sorted(sampled.cancelled)


async def test_what_is_given_up_as_the_block_ends_is_told_before_the_session_is(
    session: Session, sampled: Sampled
) -> None:
    """The last word to the server comes last."""
    with anyio.fail_after(10):
        sampled.server.on("retrieve_future", Held(sampled.retrieve))
        with pytest.raises(ZeroDivisionError):
            async with session:
                sampler = await sampler_of(session)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(sampler.sample, PROMPT)
                    await until(lambda: bool(sampled.server.seen("retrieve_future")))
                    tasks.cancel_scope.cancel()
                raise ZeroDivisionError

    assert sampled.cancelled == [0]
    assert sampled.server.calls[-1].path == "/api/v1/sessions/s1/finish"


async def test_a_cancel_that_is_not_answered_holds_up_neither_others_nor_the_end(
    session: Session, sampled: Sampled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is bounded, and the rest goes on."""
    monkeypatch.setattr(recalls, "_PATIENCE_S", 0.05)

    async def cancel(call: Call) -> object:
        if sampled.number(call) == 0:
            await anyio.sleep_forever()
        return sampled.cancel(call)

    sampled.server.on("cancel_future", cancel)
    with anyio.fail_after(10):
        sampled.server.on("retrieve_future", Held(sampled.retrieve))
        async with session:
            sampler = await sampler_of(session)
            for number in range(2):
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(sampler.sample, PROMPT)
                        await until(partial(polled, sampled, number + 1))
                        scope.cancel()
            await until(lambda: sampled.cancelled == [1])


@pytest.mark.parametrize(
    "fault", [faults.GoAway(), faults.DropReply()], ids=["certainly unheard", "perhaps heard"]
)
async def test_a_cancel_whose_connection_ends_before_the_answer_is_told_again(
    fault: faults.Fault,
) -> None:
    """A lost one would let the server draw for nobody; hearing of it twice does no harm."""
    service = FakeService()
    service.faults.on("cancel_future", fault, occurrence=1)
    service.faults.on("retrieve_future", faults.Stall(), occurrence=range(1, 50))
    with anyio.fail_after(10):
        async with service.session() as session:
            sampler = await session.create_sampling_client(base_model="toy")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(sampler.sample, PROMPT)
                await until(lambda: bool(service.ledger.of("retrieve_future")))
                tasks.cancel_scope.cancel()
            await until(lambda: len(service.ledger.of("cancel_future")) == 2)

    assert ["lost", "answered"] == [one.outcome for one in service.ledger.of("cancel_future")]


def polled(sampled: Sampled, times: int) -> bool:
    return len(sampled.server.seen("retrieve_future")) == times


async def test_a_server_that_does_not_want_to_hear_of_them_hears_nothing(
    session: Session, sampled: Sampled
) -> None:
    """Neither cancels nor requests that are only to find out an id."""
    sampled.server.on("client/dynamic_config", lambda _: {"sample_cancel_enabled": False})
    with anyio.fail_after(10):
        held = Held(sampled.sample)
        sampled.server.on("asample", held)
        async with session:
            sampler = await sampler_of(session)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(sampler.sample, PROMPT)
                await until(lambda: held.came == 1)
                tasks.cancel_scope.cancel()
            assert session.statistics().sampling.cancels == 0

    assert sampled.sent == [0]
    assert sampled.cancelled == []
