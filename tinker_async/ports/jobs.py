"""Jobs as data, and a runner for them inside this process.

A job says what is to be done, for whom and how urgently, as JSON that any scheduler can carry; it
never says how. The rule: a job is done by a function that the program registered for its kind, and
runs inside the runner's block, so that no job outlives it.
"""

from __future__ import annotations

import math
import random
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from heapq import heappop, heappush
from typing import Any, Literal, Protocol, Self, TypeAlias

import anyio
import anyio.abc
import msgspec
from anyio import AsyncContextManagerMixin

from tinker_async.durable import settings
from tinker_async.durable.records import check_json
from tinker_async.durable.recovery_policy import RecoveryPolicy
from tinker_async.errors import InvalidInputError, TinkerError
from tinker_async.lone_errors import lone_errors
from tinker_async.session import Session

Priority: TypeAlias = Literal["realtime", "interactive", "batch", "offline"]
JobState: TypeAlias = Literal["queued", "running", "waiting", "succeeded", "failed", "cancelled"]
"""`waiting`: it failed, and is tried again."""

PRIORITIES: tuple[Priority, ...] = ("realtime", "interactive", "batch", "offline")
_SHARES: dict[str, float] = {"realtime": 1.0, "interactive": 1.0, "batch": 0.5, "offline": 0.25}
"""Of the samples that may be under way at a time, how many a job of a priority may have."""
_OVER = ("succeeded", "failed", "cancelled")
_MOST_DOUBLINGS = 30

spread = random.Random().random  # noqa: S311  # jitter, no secret


class JobRetry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When a job that failed is tried again.

    Args:
        max_attempts: The first included.
        backoff: `exponential` doubles the pause with each attempt, `fixed` does not.
        initial_s: The first pause, in seconds, drawn between half of it and all.
        max_s: The longest.
        errors: Names of error classes that are worth another attempt; a name stands for the
            class's subclasses too. Empty: all those of the library that say so themselves
            (`retryable`).

    Raises:
        InvalidInputError: A value is none of these.
    """

    max_attempts: int = 3
    backoff: Literal["exponential", "fixed"] = "exponential"
    initial_s: float = 1.0
    max_s: float = 60.0
    errors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        settings.whole(self.max_attempts, 1, "max_attempts")
        settings.one_of(self.backoff, ("exponential", "fixed"), "backoff")
        settings.seconds(self.initial_s, "initial_s")
        settings.seconds(self.max_s, "max_s", least=float(self.initial_s))

    def wants(self, error: BaseException) -> bool:
        """Whether an error is worth another attempt."""
        if not self.errors:
            return isinstance(error, TinkerError) and error.retryable
        return any(cls.__name__ in self.errors for cls in type(error).__mro__)

    def delay_s(self, attempt: int, random: Callable[[], float] = spread) -> float:
        """Return the seconds to wait after attempt number `attempt` (from 1) failed."""
        doublings = min(attempt - 1, _MOST_DOUBLINGS) if self.backoff == "exponential" else 0
        return min(self.initial_s * 2.0**doublings, self.max_s) * (0.5 + random() / 2)

    def recovery(self) -> RecoveryPolicy:
        """Return the recovery of a durable training that is this job."""
        return RecoveryPolicy(
            enabled=self.max_attempts > 1,
            max_attempts=max(self.max_attempts - 1, 1),
            backoff_s=self.initial_s,
            max_backoff_s=self.max_s,
        )


def _new_id() -> str:
    return uuid.uuid4().hex


class Job(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One piece of work, as JSON.

    Args:
        kind: Which function does it, such as `training` or `evaluation`.
        priority: How urgent it is.
        payload: What the function is given.
        resources: What it needs, in names that scheduler and program agree on; not looked at here.
        constraints: Where and when it may run; `deadline_s` (seconds from its start to its end,
            retries included) is obeyed here, all others are the scheduler's.
        retry: When it is tried again.
        tenant: For whom; the runner picks the session by it.
        metadata: Anything.
        job_id: Unique.

    Raises:
        InvalidInputError: Something is no JSON, or of the wrong kind; `field` is which.
    """

    kind: str
    priority: Priority = "batch"
    payload: dict[str, Any] = msgspec.field(default_factory=dict)
    resources: dict[str, Any] = msgspec.field(default_factory=dict)
    constraints: dict[str, Any] = msgspec.field(default_factory=dict)
    retry: JobRetry = msgspec.field(default_factory=JobRetry)
    tenant: str | None = None
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    job_id: str = msgspec.field(default_factory=_new_id)

    def __post_init__(self) -> None:
        settings.check(bool(self.kind), "kind", "must be a name")
        settings.check(bool(self.job_id), "job_id", "must be a name")
        settings.one_of(self.priority, PRIORITIES, "priority")
        for field in ("payload", "resources", "constraints", "metadata"):
            check_json(getattr(self, field), field)
        if "deadline_s" in self.constraints:
            settings.seconds(self.constraints["deadline_s"], "constraints.deadline_s")

    @classmethod
    def from_json(cls, text: bytes | str) -> Self:
        """Read a job.

        Raises:
            InvalidInputError: It is none; the message says where.
        """
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError as error:
            raise InvalidInputError(f"job: {error}", field="job") from error

    def to_json(self) -> bytes:
        """Write it; what has its default is left out."""
        return msgspec.json.encode(self)

    @property
    def deadline_s(self) -> float:
        """Seconds that it may take in all; infinite where it does not say."""
        return float(self.constraints.get("deadline_s", math.inf))


class JobStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a job is doing."""

    job_id: str
    state: JobState
    attempts: int = 0
    error: str | None = None
    """Class and text of the last attempt's error."""
    result: Any = None
    """What the function returned."""

    @property
    def is_over(self) -> bool:
        """Whether nothing follows."""
        return self.state in _OVER


class Scheduler(Protocol):
    """What any scheduler does with jobs; `JobRunner` is the one that comes along."""

    async def submit(self, job: Job) -> str:
        """Take a job and return its id, without waiting for it."""
        ...

    async def status(self, job_id: str) -> JobStatus:
        """Return how it is doing."""
        ...

    async def cancel(self, job_id: str) -> bool:
        """End it; return whether it was not over."""
        ...

    def events(self, job_id: str) -> AsyncIterator[JobStatus]:
        """Give its status now, and each change until it is over."""
        ...


class JobContext(msgspec.Struct, frozen=True, eq=False):
    """What the function of a job is given besides it."""

    job: Job
    attempt: int
    session: Any
    """Its tenant's, as `sessions` has it."""

    def samples_in_flight(self, limit: int | None = None) -> int:
        """Return the job's part of a limit of samples under way, by its priority; at least 1.

        For `SamplingClient.map(max_in_flight=...)`: urgent jobs find room beside large ones.

        Args:
            limit: Default the session's own, as its server has it at this moment.

        Raises:
            InvalidInputError: No limit is given, and the job's session is no `Session`, which has one.
            SessionClosedError: No limit is given, and the session is not open.
        """
        if limit is None:
            settings.check(isinstance(self.session, Session), "limit", "the job has no session")
            limit = self.session.statistics().sampling.samples.limit
        return max(int(limit * _SHARES[self.job.priority]), 1)

    @property
    def recovery(self) -> RecoveryPolicy:
        """How a durable training that is this job is brought back."""
        return self.job.retry.recovery()


JobFunction: TypeAlias = Callable[[JobContext], Awaitable[Any]]


class _Entry:
    """A job in the runner."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.status = JobStatus(job_id=job.job_id, state="queued")
        self.scope = anyio.CancelScope()
        self.changed = anyio.Event()

    def change(self, **fields: Any) -> None:
        self.status = msgspec.structs.replace(self.status, **fields)
        self.changed.set()
        self.changed = anyio.Event()


class JobRunner(AsyncContextManagerMixin):
    """A scheduler in this process. `async with JobRunner(functions) as runner:`.

    The most urgent job runs first, jobs of one priority in the order of their coming, and so many
    at a time. Leaving the block normally waits for all jobs; an exception cancels them. A job that
    fails is on its status and disturbs nobody.

    Args:
        functions: What does the jobs, by kind.
        sessions: What jobs of a tenant are given as their session; None is for those without.
        concurrency: Most jobs that run at a time.
        kept: Jobs that are over and can still be asked for; the oldest are forgotten first.

    Raises:
        InvalidInputError: A limit is none.
    """

    def __init__(
        self,
        functions: Mapping[str, JobFunction],
        *,
        sessions: Mapping[str | None, Any] | None = None,
        concurrency: int = 1,
        kept: int = 1000,
    ) -> None:
        settings.whole(concurrency, 1, "concurrency")
        settings.whole(kept, 0, "kept")
        self._functions = dict(functions)
        self._sessions = dict(sessions or {})
        self._free = concurrency
        self._kept = kept
        self._entries: dict[str, _Entry] = {}
        self._over: list[str] = []
        self._queue: list[tuple[int, int, _Entry]] = []
        self._count = 0
        self._tasks: anyio.abc.TaskGroup | None = None

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        settings.check(self._tasks is None, "runner", "it is in use")
        try:
            with lone_errors():
                async with anyio.create_task_group() as tasks:
                    self._tasks = tasks
                    yield self
        finally:
            self._tasks = None
            for _, _, entry in sorted(self._queue):
                self._end(entry, state="cancelled")
            self._queue.clear()

    async def submit(self, job: Job) -> str:
        """Take a job and return its id, without waiting for it.

        Raises:
            InvalidInputError: No function does it, its tenant is unknown, its id is taken, or the
                runner is outside its block.
        """
        settings.check(self._tasks is not None, "job", "the runner takes jobs inside its block")
        settings.check(job.kind in self._functions, "kind", f"no function does {job.kind!r}")
        known = job.tenant is None or job.tenant in self._sessions
        settings.check(known, "tenant", f"there is no session of {job.tenant!r}")
        settings.check(job.job_id not in self._entries, "job_id", f"{job.job_id!r} is taken")
        entry = self._entries[job.job_id] = _Entry(job)
        self._count += 1
        heappush(self._queue, (PRIORITIES.index(job.priority), self._count, entry))
        self._start_next()
        return job.job_id

    async def status(self, job_id: str) -> JobStatus:
        """Return how a job is doing.

        Raises:
            InvalidInputError: There is none of this id, or it is forgotten.
        """
        return self._entry(job_id).status

    async def result(self, job_id: str) -> JobStatus:
        """Wait until a job is over and return its last status; errors as `status`."""
        entry = self._entry(job_id)
        while not entry.status.is_over:
            await entry.changed.wait()
        return entry.status

    async def cancel(self, job_id: str) -> bool:
        """End a job; return whether it was not over. Errors as `status`."""
        entry = self._entry(job_id)
        if entry.status.is_over:
            return False
        entry.scope.cancel()
        if entry.status.state == "queued":
            self._queue = sorted(one for one in self._queue if one[2] is not entry)
            self._end(entry, state="cancelled")
        return True

    async def events(self, job_id: str) -> AsyncIterator[JobStatus]:
        """Give a job's status now, and each that follows until it is over; errors as `status`.

        Whoever reads slowly misses what was between.
        """
        entry = self._entry(job_id)
        while True:
            changed, status = entry.changed, entry.status
            yield status
            if status.is_over:
                return
            if entry.status is status:
                await changed.wait()

    # Running

    def _entry(self, job_id: str) -> _Entry:
        entry = self._entries.get(job_id)
        if entry is None:
            raise InvalidInputError(f"job_id: there is no job {job_id!r}", field="job_id")
        return entry

    def _start_next(self) -> None:
        while self._free and self._queue and self._tasks is not None:
            entry = heappop(self._queue)[2]
            self._free -= 1
            entry.change(state="running")
            self._tasks.start_soon(self._run, entry, name=f"job {entry.job.job_id}")

    async def _run(self, entry: _Entry) -> None:
        state: dict[str, Any] = {"state": "cancelled"}
        try:
            with entry.scope, anyio.move_on_after(entry.job.deadline_s) as limit:
                state = await self._attempts(entry)
            if limit.cancelled_caught:
                state = {"state": "failed", "error": f"its {entry.job.deadline_s} s are over"}
        finally:
            self._free += 1
            self._end(entry, **state)
        self._start_next()

    async def _attempts(self, entry: _Entry) -> dict[str, Any]:
        job, function = entry.job, self._functions[entry.job.kind]
        attempt = 0
        while True:
            attempt += 1
            entry.change(state="running", attempts=attempt)
            try:
                context = JobContext(job, attempt, self._sessions.get(job.tenant))
                return {"state": "succeeded", "result": await function(context), "error": None}
            except Exception as error:  # noqa: BLE001  # a job's failure is its own, not the runner's
                text = f"{type(error).__name__}: {error}"
                if attempt >= job.retry.max_attempts or not job.retry.wants(error):
                    return {"state": "failed", "error": text}
            entry.change(state="waiting", error=text)
            await anyio.sleep(job.retry.delay_s(attempt))

    def _end(self, entry: _Entry, **fields: Any) -> None:
        entry.change(**fields)
        self._over.append(entry.job.job_id)
        while len(self._over) > self._kept:
            del self._entries[self._over.pop(0)]
