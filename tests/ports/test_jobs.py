"""Jobs: as JSON, and in the runner of this process."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st
from support.wire_values import quick

from tinker_async import ConnectError, InvalidInputError, RateLimitError, TransportError
from tinker_async.ports import Job, JobContext, JobRetry, JobRunner, Scheduler
from tinker_async.testing import FakeService

AT_ONCE = JobRetry(initial_s=0, max_s=0)
json_values = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3)


def job(kind: str = "work", **rest: Any) -> Job:
    return Job(kind=kind, **{"retry": AT_ONCE, **rest})


# As data


@quick
@given(
    st.builds(
        Job,
        kind=st.text(min_size=1, max_size=5),
        priority=st.sampled_from(["realtime", "interactive", "batch", "offline"]),
        payload=json_values,
        resources=json_values,
        metadata=json_values,
        tenant=st.none() | st.text(max_size=5),
        retry=st.builds(JobRetry, max_attempts=st.integers(1, 9), errors=st.just(("ValueError",))),
    )
)
def test_a_job_comes_back_from_json_as_it_was(made: Job) -> None:
    """Whatever scheduler carries it."""
    assert made == Job.from_json(made.to_json())


def test_the_defaults_are_those_of_the_specification() -> None:
    """Three attempts, exponential, from 1 s to 60 s."""
    retry = Job.from_json('{"kind": "training", "job_id": "a"}').retry

    assert (3, "exponential", 1.0, 60.0) == (
        *(retry.max_attempts, retry.backoff),
        *(retry.initial_s, retry.max_s),
    )
    assert [1, 2, 4, 8] == [retry.delay_s(n, lambda: 1.0) for n in range(1, 5)]
    assert (0.5, 60) == (retry.delay_s(1, lambda: 0.0), retry.delay_s(999, lambda: 1.0))
    fixed = JobRetry(backoff="fixed")
    assert [1, 1] == [fixed.delay_s(n, lambda: 1.0) for n in (1, 2)]


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("kind", {"kind": ""}),
        ("job_id", {"kind": "a", "job_id": ""}),
        ("priority", {"kind": "a", "priority": "urgent"}),
        ("payload", {"kind": "a", "payload": {"a": (1,)}}),
        ("constraints.deadline_s", {"kind": "a", "constraints": {"deadline_s": "soon"}}),
    ],
)
def test_a_job_that_cannot_be_right_is_refused_and_named(field: str, wrong: dict[str, Any]) -> None:
    """When it is made, not when it runs."""
    with pytest.raises(InvalidInputError) as caught:
        Job(**wrong)
    assert field == caught.value.field


@pytest.mark.parametrize("text", ["", "[]", '{"priority": "batch"}', '{"kind": 3}'])
def test_text_that_is_no_job_is_told_as_such(text: str) -> None:
    """As our own error."""
    with pytest.raises(InvalidInputError, match="job: "):
        Job.from_json(text)


@pytest.mark.parametrize(
    "wrong", [{"max_attempts": 0}, {"backoff": "linear"}, {"initial_s": 5, "max_s": 1}]
)
def test_a_retry_that_cannot_be_right_is_refused(wrong: dict[str, Any]) -> None:
    """By name."""
    with pytest.raises(InvalidInputError):
        JobRetry(**wrong)


def test_errors_are_named_with_their_subclasses() -> None:
    """Or all that say themselves that another attempt can help."""
    limited = RateLimitError("slow down", status=429)
    named = JobRetry(errors=("TransportError", "KeyError"))

    assert [True, False, True, False] == [
        named.wants(error) for error in (ConnectError("no"), limited, KeyError(), ValueError())
    ]
    assert [True, True, False] == [
        JobRetry().wants(error) for error in (TransportError("no"), limited, KeyError())
    ]


def test_a_job_says_how_its_training_is_brought_back() -> None:
    """The first attempt is no recovery."""
    recovery = JobRetry(max_attempts=4, initial_s=2, max_s=20).recovery()

    assert (True, 3, 2, 20) == (
        *(recovery.enabled, recovery.max_attempts),
        *(recovery.backoff_s, recovery.max_backoff_s),
    )
    assert not JobRetry(max_attempts=1).recovery().enabled


# In the runner


class Work:
    """A function that notes who ran, waits until it may end, and fails as often as told."""

    def __init__(self, *, held: bool = False) -> None:
        self.ran: list[Any] = []
        self.contexts: list[JobContext] = []
        self.failures: list[Exception] = []
        self.free = anyio.Event()
        if not held:
            self.free.set()

    async def __call__(self, context: JobContext) -> Any:
        self.ran.append(context.job.payload.get("n"))
        self.contexts.append(context)
        await self.free.wait()
        await checkpoint()
        if self.failures:
            raise self.failures.pop(0)
        return {"n": context.job.payload.get("n")}


async def test_a_job_is_done_with_its_payload_and_its_tenants_session() -> None:
    """And its result is on its status."""
    work = Work()
    async with JobRunner({"work": work}, sessions={"a": "session of a", None: "own"}) as runner:
        scheduler: Scheduler = runner
        job_id = await scheduler.submit(job(payload={"n": 1}, tenant="a"))
        other = await runner.submit(job())
        status = await runner.result(job_id)
        await runner.result(other)

    assert ("succeeded", {"n": 1}, 1, None) == (
        *(status.state, status.result, status.attempts),
        status.error,
    )
    assert ["session of a", "own"] == [one.session for one in work.contexts]
    assert json.dumps(status.result)


async def test_the_most_urgent_job_runs_first() -> None:
    """Of one priority in the order of their coming; so many at a time."""
    work = Work(held=True)
    async with JobRunner({"work": work}) as runner:
        await runner.submit(job(payload={"n": "first"}))
        for n, priority in enumerate(["offline", "batch", "realtime", "batch", "interactive"]):
            await runner.submit(job(payload={"n": n}, priority=priority))
        await anyio.wait_all_tasks_blocked()
        assert ["first"] == work.ran
        work.free.set()

    assert ["first", 2, 4, 1, 3, 0] == work.ran


def test_a_priority_is_a_share_of_the_sessions_limit() -> None:
    """Large jobs leave room for urgent ones, and every job gets on."""
    shares = [
        JobContext(job(priority=priority), 1, None).samples_in_flight(limit)
        for limit in (100, 1)
        for priority in ("realtime", "interactive", "batch", "offline")
    ]

    assert [100, 100, 50, 25, 1, 1, 1, 1] == shares


async def test_a_jobs_share_is_of_what_its_session_may_have() -> None:
    """As the server says, without the program having to know; without a session it has to."""
    async with FakeService().session() as session:
        limit = session.statistics().sampling.samples.limit
        shares = [
            JobContext(job(priority=priority), 1, session).samples_in_flight()
            for priority in ("interactive", "batch", "offline")
        ]
    with pytest.raises(InvalidInputError) as caught:
        JobContext(job(), 1, None).samples_in_flight()

    assert [limit, limit // 2, limit // 4] == shares
    assert "limit" == caught.value.field


async def test_a_failure_worth_it_is_tried_again() -> None:
    """Until the attempts are used up; others end the job at once."""
    work = Work()
    work.failures = [ConnectError("a"), ConnectError("b"), ConnectError("c"), ValueError("d")]
    async with JobRunner({"work": work}) as runner:
        spent = await runner.result(await runner.submit(job()))
        at_once = await runner.result(await runner.submit(job()))
        good = await runner.result(await runner.submit(job()))

    assert ("failed", 3) == (spent.state, spent.attempts)
    assert (spent.error or "").startswith("ConnectError: c")
    assert ("failed", 1, "ValueError: d") == (at_once.state, at_once.attempts, at_once.error)
    assert "succeeded" == good.state


async def test_jobs_can_be_cancelled_in_every_state() -> None:
    """Queued or running; what is over stays as it is; the next one runs."""
    work = Work(held=True)
    async with JobRunner({"work": work}) as runner:
        running, queued, last = [await runner.submit(job(payload={"n": n})) for n in range(3)]
        await anyio.wait_all_tasks_blocked()
        assert await runner.cancel(queued)
        assert await runner.cancel(running)
        with anyio.fail_after(5):
            assert "cancelled" == (await runner.result(running)).state
            assert "cancelled" == (await runner.result(queued)).state
        assert not await runner.cancel(running)
        work.free.set()
        with anyio.fail_after(5):
            assert "succeeded" == (await runner.result(last)).state
    assert [0, 2] == work.ran


async def test_a_deadline_ends_a_job() -> None:
    """As a failure of its own."""
    async with JobRunner({"work": Work(held=True)}) as runner:
        job_id = await runner.submit(job(constraints={"deadline_s": 0.01}))
        with anyio.fail_after(5):
            status = await runner.result(job_id)

    assert ("failed", "its 0.01 s are over") == (status.state, status.error)


async def test_the_events_of_a_job_end_with_it() -> None:
    """From where it is, each change once."""
    work = Work(held=True)
    seen: list[str] = []
    async with JobRunner({"work": work}) as runner:
        await runner.submit(job())
        job_id = await runner.submit(job())
        with anyio.fail_after(5):
            async for status in runner.events(job_id):
                seen.append(status.state)
                work.free.set()

    assert ("queued", "succeeded") == (seen[0], seen[-1])


async def test_leaving_by_an_error_cancels_all_jobs() -> None:
    """It leaves as itself, and no job outlives the block."""
    work = Work(held=True)
    runner = JobRunner({"work": work})
    with pytest.raises(KeyError):
        async with runner:
            ids = [await runner.submit(job()) for _ in range(2)]
            await anyio.wait_all_tasks_blocked()
            raise KeyError

    assert ["cancelled"] * 2 == [(await runner.status(one)).state for one in ids]


async def test_what_the_runner_cannot_do_is_refused_at_once() -> None:
    """No function, no tenant, an id that is taken, a block that is over."""
    async with JobRunner({"work": Work()}) as runner:
        await runner.submit(job(job_id="a"))
        for wrong in (job("other"), job(tenant="nobody"), job(job_id="a")):
            with pytest.raises(InvalidInputError):
                await runner.submit(wrong)
        with pytest.raises(InvalidInputError, match="no job 'b'"):
            await runner.status("b")
    with pytest.raises(InvalidInputError, match="inside its block"):
        await runner.submit(job())


async def test_jobs_that_are_over_are_forgotten_in_time() -> None:
    """A runner may live for months."""
    async with JobRunner({"work": Work()}, kept=1) as runner:
        first = await runner.submit(job())
        await runner.result(first)
        await runner.result(await runner.submit(job()))
        with pytest.raises(InvalidInputError):
            await runner.status(first)
