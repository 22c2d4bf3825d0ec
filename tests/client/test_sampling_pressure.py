"""Back-pressure of samples against a real socket: 429, paused queues, turns, bytes, policies."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from typing import Any

import anyio
import pytest
from support.sampled import PROMPT, Held, Sampled, sampler_of, until
from support.scripted import Call, ScriptedServer

from tinker_async import (
    AttemptFailed,
    BillingError,
    BillingPaused,
    Event,
    InternalServerError,
    InvalidInputError,
    ModelInput,
    PromiseLostError,
    RateLimitError,
    RequestTimeoutError,
    RetryPolicy,
    SamplingClient,
    SamplingParams,
    Session,
    SubmissionsPaused,
)

QUICK = RetryPolicy(base_s=0.002, max_s=0.01)


@pytest.fixture
def sampled(server: ScriptedServer) -> Sampled:
    """The scripted server, sampling."""
    return Sampled(server)


@pytest.fixture
def quick(sampled: Sampled) -> Session:
    """A session that pauses for milliseconds."""
    return Session(sampled.server.url, "tml-test", retry=QUICK)


class Capacity:
    """Refuses a sample while as many as it can hold are under way; results come at once."""

    def __init__(self, sampled: Sampled, most: int) -> None:
        self.sampled = sampled
        self.most = most
        self.under_way = 0
        self.refusals = 0
        sampled.server.on("asample", self.sample)
        sampled.server.on("retrieve_future", self.retrieve)

    def sample(self, call: Call) -> Any:
        if self.under_way == self.most:
            self.refusals += 1
            return 429, {}, b""
        self.under_way += 1
        return self.sampled.sample(call)

    async def retrieve(self, call: Call) -> Any:
        await anyio.sleep(0.001)
        self.under_way -= 1
        return self.sampled.retrieve(call)


# 429


async def test_a_server_that_takes_few_at_once_gets_all_samples_by_and_by(
    quick: Session, sampled: Sampled
) -> None:
    """Each under one number, however often it is refused; refusals stay few."""
    sampled.limits(sample_max_concurrent_requests=32)
    capacity = Capacity(sampled, 3)
    got: list[int] = []
    with anyio.fail_after(30):
        async with quick as session:
            sampler = await sampler_of(session)

            async def one() -> None:
                response = await sampler.sample(PROMPT)
                got.append(int(response.sequences[0].tokens[0]))

            async with anyio.create_task_group() as tasks:
                for _ in range(200):
                    tasks.start_soon(one)
            statistics = session.statistics().sampling

    assert list(range(200)) == sorted(got)
    assert len(sampled.promises) == 200
    assert capacity.refusals < 100
    assert 1 <= statistics.samples.limit < 32
    assert (32, 0, 0) == (
        statistics.ceiling,
        statistics.samples.in_use,
        statistics.dispatch_bytes.in_use,
    )


async def test_after_a_refusal_half_as_many_are_sent(quick: Session, sampled: Sampled) -> None:
    """Those refused give their places back and go first; then successes let more be sent."""
    sampled.limits(sample_max_concurrent_requests=8)
    with anyio.fail_after(10):
        refusing = Held(lambda _: (429, {}, b""))
        sampled.server.on("asample", refusing)
        async with quick as session:
            sampler = await sampler_of(session)
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(sampler.sample, PROMPT)
                await until(lambda: refusing.came == 8)
                accepting = Held(sampled.sample)
                sampled.server.on("asample", accepting)
                refusing.let_go()
                await until(lambda: accepting.came == 4)
                await anyio.wait_all_tasks_blocked()
                samples = session.statistics().sampling.samples
                assert (4, 4, 16) == (samples.limit, samples.in_use, samples.waiting)
                assert len(sampled.sent) == 12
                accepting.let_go()
            for _ in range(20):
                await sampler.sample(PROMPT)
            assert session.statistics().sampling.samples.limit == 8

    assert list(range(8)) == sorted(sampled.sent[:8])
    assert {*sampled.sent[8:12]} < {*range(8)}
    assert list(range(40)) == sorted({*sampled.sent})


@pytest.mark.parametrize(
    ("header", "value", "least_s", "most_s"),
    [
        ("retry-after", "30", 25, 34),
        ("retry-after", "30.5", 25, 34),
        ("retry-after-ms", "30000", 25, 34),
        ("retry-after", "date", 25, 34),
        ("retry-after", "9999", 55, 67),
        ("retry-after", "soon", 0, 1.2),
    ],
)
async def test_all_new_samples_wait_as_long_as_the_server_asks(
    session: Session, sampled: Sampled, header: str, value: str, least_s: float, most_s: float
) -> None:
    """In each form; at most a minute; the pauses of others' requests are the same one."""
    if value == "date":
        value = format_datetime(datetime.now(UTC) + timedelta(seconds=32), usegmt=True)
    sampled.server.on("asample", lambda _: (429, {header: value}, b""))
    with anyio.fail_after(10):
        async with session:
            first, second = await sampler_of(session), await sampler_of(session)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(first.sample, PROMPT)
                await until(lambda: session.statistics().sampling.backing_off_for_s > 0)
                wait_s = session.statistics().sampling.backing_off_for_s
                tasks.start_soon(second.sample, PROMPT)
                await anyio.wait_all_tasks_blocked()
                tasks.cancel_scope.cancel()

    assert least_s < wait_s < most_s
    assert sampled.sent == [0]


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("where", ["session", "call"])
@pytest.mark.parametrize("then", [[503, 429, 503], [503, 503, 503]])
async def test_attempts_on_the_wire_are_as_many_as_the_policy_says(
    sampled: Sampled, most: int, where: str, then: list[int]
) -> None:
    """A 429 counts as any other failure; the error says how many there were."""
    policy = RetryPolicy(max_attempts=most, base_s=0.002, max_s=0.01)
    answers = iter([429, *then])
    sampled.server.on("asample", lambda _: (next(answers), {}, b""))
    with anyio.fail_after(10):
        by_session = policy if where == "session" else None
        async with Session(sampled.server.url, "tml-test", retry=by_session) as session:
            sampler = await sampler_of(session)
            with pytest.raises((RateLimitError, InternalServerError)) as caught:
                await sampler.sample(PROMPT, retry=policy if where == "call" else None)
            samples = session.statistics().sampling.samples

    assert most == len(sampled.sent)
    assert most == caught.value.attempts
    assert samples.in_use == 0


async def test_a_lost_promise_is_drawn_again_within_the_same_policy(sampled: Sampled) -> None:
    """`max_attempts=1` draws once; 3 draws three times."""
    sampled.server.on("retrieve_future", lambda _: (410, {}, b""))
    with anyio.fail_after(10):
        async with Session(sampled.server.url, "tml-test") as session:
            sampler = await sampler_of(session)
            with pytest.raises(PromiseLostError):
                await sampler.sample(PROMPT, retry=RetryPolicy(max_attempts=1))
            assert sampled.sent == [0]
            with pytest.raises(PromiseLostError) as caught:
                await sampler.sample(PROMPT, retry=RetryPolicy(max_attempts=3))

    assert [0, 1, 2, 3] == sampled.sent
    assert caught.value.attempts == 3


async def test_a_server_that_refuses_everything_for_the_window_is_an_error(
    sampled: Sampled,
) -> None:
    """Time counts from the session's first refusal without a success since."""
    policy = RetryPolicy(window_s=0.1, max_attempts=10**6, base_s=0.01, max_s=0.02)
    sampled.server.on("asample", lambda _: (429, {}, b""))
    with anyio.fail_after(10):
        async with Session(sampled.server.url, "tml-test", retry=policy) as session:
            sampler = await sampler_of(session)
            with pytest.raises(RateLimitError):
                await sampler.sample(PROMPT)

    assert len(sampled.sent) > 1


# Paused queues


class Paused:
    """The first sample's queue is paused until the test says what becomes of it."""

    def __init__(self, sampled: Sampled) -> None:
        self.sampled = sampled
        self.polls = 0
        self.state: str | None = "paused_rate_limit"
        sampled.server.on("retrieve_future", self.retrieve)

    def retrieve(self, call: Call) -> Any:
        if self.sampled.number(call) > 0 or self.state is None:
            return self.sampled.retrieve(call)
        self.polls += 1
        return {
            "type": "try_again",
            "request_id": call.json["request_id"],
            "queue_state": self.state,
            "queue_state_reason": "too many",
        }


@pytest.mark.parametrize("how", ["active", "completed", "given up"])
async def test_new_samples_wait_while_a_queue_is_paused(
    session: Session, sampled: Sampled, how: str
) -> None:
    """Polls go on; the gate opens with `active`, a result, or when nobody waits any more."""
    with anyio.fail_after(10):
        paused = Paused(sampled)
        async with session:
            first, second = await sampler_of(session), await sampler_of(session)
            async with anyio.create_task_group() as others, anyio.create_task_group() as tasks:
                tasks.start_soon(first.sample, PROMPT)
                await until(lambda: session.statistics().sampling.paused_samples == 1)
                others.start_soon(second.sample, PROMPT)
                polls = paused.polls
                await until(lambda: paused.polls >= polls + 2)
                statistics = session.statistics().sampling
                assert statistics.queue_paused_for_s > 30
                assert len(sampled.sent) == 1
                if how == "given up":
                    tasks.cancel_scope.cancel()
                else:
                    paused.state = "active" if how == "active" else None
                with anyio.CancelScope(shield=True):
                    await until(lambda: len(sampled.sent) == 2)
                    paused.state = None
            statistics = session.statistics().sampling

    assert (0, 0) == (statistics.paused_samples, statistics.queue_paused_for_s)


async def test_a_result_of_another_sample_opens_the_gate(
    session: Session, sampled: Sampled
) -> None:
    """One of the two under way is paused, the other has its result: the queue moves."""
    with anyio.fail_after(10):
        paused = Paused(sampled)
        held = Held(sampled.retrieve)

        def retrieve(call: Call) -> Any:
            return held(call) if sampled.number(call) == 1 else paused.retrieve(call)

        sampled.server.on("retrieve_future", retrieve)
        async with session:
            sampler = await sampler_of(session)
            async with anyio.create_task_group() as tasks:
                held_one = Held(sampled.sample)
                tasks.start_soon(sampler.sample, PROMPT)
                tasks.start_soon(sampler.sample, PROMPT)
                await until(lambda: held.came == 1 and paused.polls > 0)
                tasks.start_soon(sampler.sample, PROMPT)
                await anyio.wait_all_tasks_blocked()
                assert len(sampled.sent) == 2
                sampled.server.on("asample", held_one)
                held.let_go()
                await until(lambda: held_one.came == 1)
                paused.state = None
                held_one.let_go()


# Turns and bytes


async def test_a_sampler_with_thousands_in_line_does_not_hold_up_another_with_one(
    session: Session, sampled: Sampled
) -> None:
    """They take turns: the one sample is at most the next but one."""
    sampled.limits(sample_max_concurrent_requests=2)
    order: list[str] = []

    async def one(sampler: SamplingClient) -> None:
        await sampler.sample(PROMPT)
        order.append(sampler.sampling_session_id)

    with anyio.fail_after(60):
        held = Held(sampled.retrieve)
        sampled.server.on("retrieve_future", held)
        async with session:
            busy, small = await sampler_of(session), await sampler_of(session)
            async with anyio.create_task_group() as tasks:
                for _ in range(1000):
                    tasks.start_soon(one, busy)
                await until(lambda: held.came == 2)
                tasks.start_soon(one, small)
                await anyio.wait_all_tasks_blocked()
                assert session.statistics().sampling.samples.waiting == 999
                held.let_go()
                await until(lambda: small.sampling_session_id in order)
                tasks.cancel_scope.cancel()

    assert order.index(small.sampling_session_id) <= 5


async def test_requests_are_sent_within_the_servers_bytes(
    session: Session, sampled: Sampled
) -> None:
    """Two of 600 bytes do not fit in 1,000; a third one that fits does not overtake."""
    sampled.limits(sample_dispatch_bytes_semaphore_size=1000)
    large, small = ModelInput.from_ints([1] * 60), ModelInput.from_ints([1])
    with anyio.fail_after(10):
        held = Held(sampled.sample)
        sampled.server.on("asample", held)
        async with session:
            sampler = await sampler_of(session)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(sampler.sample, large)
                await until(lambda: held.came == 1)
                tasks.start_soon(sampler.sample, large)
                await anyio.wait_all_tasks_blocked()
                tasks.start_soon(sampler.sample, small)
                await anyio.wait_all_tasks_blocked()
                used = session.statistics().sampling.dispatch_bytes
                assert (1000, 600, 2) == (used.limit, used.in_use, used.waiting)
                assert held.came == 1
                held.let_go()
            assert session.statistics().sampling.dispatch_bytes.in_use == 0

    assert len(sampled.sent) == 3


# What the user sets and sees


async def test_pauses_are_told_as_events_once_each(sampled: Sampled) -> None:
    """A burst of refusals is one event, with the limit from then on; a paused queue another."""
    sampled.limits(sample_max_concurrent_requests=8)
    events: list[Event] = []
    with anyio.fail_after(10):
        refusing = Held(lambda _: (429, {}, b""))
        sampled.server.on("asample", refusing)
        paused = Paused(sampled)
        async with Session(
            sampled.server.url, "tml-test", retry=QUICK, on_event=events.append
        ) as session:
            sampler = await sampler_of(session)
            async with anyio.create_task_group() as tasks:
                for _ in range(8):
                    tasks.start_soon(sampler.sample, PROMPT)
                await until(lambda: refusing.came == 8)
                sampled.server.on("asample", sampled.sample)
                refusing.let_go()
                await until(lambda: paused.polls > 0)
                paused.state = None

    told = [event for event in events if isinstance(event, SubmissionsPaused)]
    assert ["rate_limit", "queue"] == [event.cause for event in told]
    assert told[0].limit == 4
    refused = [event for event in events if isinstance(event, AttemptFailed)]
    assert {("sample", 429)} == {(event.operation, event.status) for event in refused}
    assert len(refused) == 8


async def test_a_users_own_limit_counts_where_it_is_lower(sampled: Sampled) -> None:
    """`max_samples_in_flight` of the session; the server's stays above it."""
    with anyio.fail_after(10):
        held = Held(sampled.retrieve)
        sampled.server.on("retrieve_future", held)
        async with Session(sampled.server.url, "tml-test", max_samples_in_flight=3) as session:
            sampler = await sampler_of(session)
            async with anyio.create_task_group() as tasks:
                for _ in range(9):
                    tasks.start_soon(sampler.sample, PROMPT)
                await until(lambda: held.came == 3)
                await anyio.wait_all_tasks_blocked()
                statistics = session.statistics().sampling
                held.let_go()

    assert (3, 3, 6) == (
        statistics.ceiling,
        statistics.samples.in_use,
        statistics.samples.waiting,
    )


async def test_an_account_without_credit_is_told_at_once_and_waited_for_within_the_limit(
    sampled: Sampled,
) -> None:
    """402 to a sample: an event, then the same number again; without a limit the error."""
    events: list[Event] = []
    answers = iter([402, 402])

    def sample(call: Call) -> Any:
        status = next(answers, None)
        return sampled.sample(call) if status is None else (status, {}, b'{"detail":"pay"}')

    sampled.server.on("asample", sample)
    with anyio.fail_after(10):
        async with Session(sampled.server.url, "tml-test", on_event=events.append) as session:
            sampler = await sampler_of(session)
            with pytest.raises(BillingError, match="pay"):
                await sampler.sample(PROMPT)
            assert session.statistics().sampling.samples.in_use == 0
        async with Session(
            sampled.server.url, "tml-test", on_event=events.append, billing_pause_s=0.05
        ) as session:
            sampler = await sampler_of(session)
            await sampler.sample(PROMPT, retry=RetryPolicy(max_attempts=1))

    assert [0, 0, 0] == sampled.sent
    told = [event for event in events if isinstance(event, BillingPaused)]
    assert [("sample", 0.0), ("sample", 0.05)] == [(one.operation, one.limit_s) for one in told]


async def test_the_sessions_time_limit_holds_for_samples_that_give_none(sampled: Sampled) -> None:
    """And `timeout=None` lifts it."""
    with anyio.fail_after(10):
        held = Held(sampled.retrieve)
        sampled.server.on("retrieve_future", held)
        async with Session(sampled.server.url, "tml-test", timeout=0.3) as session:
            sampler = await sampler_of(session)
            with pytest.raises(RequestTimeoutError, match=r"0\.3 s"):
                await sampler.sample(PROMPT)
            with pytest.raises(RequestTimeoutError, match=r"0\.3 s"):
                await sampler.compute_logprobs(PROMPT)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(sampler.sample, PROMPT, timeout=None))
                with pytest.raises(RequestTimeoutError):
                    await sampler.sample(PROMPT)
                held.let_go()


@pytest.mark.parametrize("limit_s", [0, -1, float("nan")])
async def test_a_time_limit_that_is_none_is_refused(
    session: Session, sampled: Sampled, limit_s: float
) -> None:
    """Nothing is sent."""
    with anyio.fail_after(10):
        async with session:
            sampler = await sampler_of(session)
            for call in (sampler.sample, sampler.compute_logprobs):
                with pytest.raises(InvalidInputError, match="timeout"):
                    await call(PROMPT, timeout=limit_s)
            with pytest.raises(InvalidInputError, match="timeout"):
                sampler.submit_sample(PROMPT, timeout=limit_s)

    assert sampled.sent == []


@pytest.mark.parametrize("checks", [True, False])
async def test_a_sample_longer_than_the_models_context_is_refused_unless_checks_are_off(
    sampled: Sampled, checks: bool
) -> None:
    """By what the server says of its models."""
    sampled.server.on(
        "get_server_capabilities",
        lambda _: {"supported_models": [{"model_name": "m", "max_context_length": 10}]},
    )
    with anyio.fail_after(10):
        async with Session(sampled.server.url, "tml-test", check_inputs=checks) as session:
            sampler = await sampler_of(session)
            await sampler.sample(PROMPT, SamplingParams(max_tokens=7))
            if checks:
                with pytest.raises(InvalidInputError):
                    await sampler.sample(PROMPT, SamplingParams(max_tokens=8))
            else:
                await sampler.sample(PROMPT, SamplingParams(max_tokens=8))

    assert len(sampled.sent) == (1 if checks else 2)
