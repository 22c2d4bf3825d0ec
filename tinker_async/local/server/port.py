"""The bridge to the engine thread: jobs go in, results come back in the event loop.

The engine thread never waits for the event loop: a result is posted and the
thread goes on computing. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import anyio
from anyio.lowlevel import current_token

from tinker_async.local.engine.failures import EngineStoppedError
from tinker_async.local.engine.jobs import Job, Result, Sample

Done = Callable[[Result], None]
Watch = Callable[[Job], Done | None]
"""Called with each job; what it returns is called in the event loop with the job's result."""


class Engine(Protocol):
    """What the server needs of `EngineThread`."""

    def submit(self, job: Job, done: Done) -> None:
        """Queue a job; `done` is called once, in the engine thread."""
        ...

    def cancel_sample(self, key: str) -> None:
        """Stop a sample that is queued or running."""
        ...

    def waits_for_room(self, job: Job) -> str | None:
        """Return why a job has not begun, if it is for want of room, else None."""
        ...


class EnginePort:
    """An `Engine` as the event loop sees it. Make it inside the loop that will use it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._post = poster()
        self._watch: Watch | None = None
        self._on_stopped: Callable[[], None] | None = None
        self._under_way: dict[str, Job] = {}
        # A callback of asyncio's loop is in no task, and there anyio cannot tell which loop it is.
        self.tick: Callable[[], float] = getattr(
            current_token().native_token, "time", anyio.current_time
        )
        """The loop's clock, in seconds, which callbacks can read as well."""

    def watch(self, watch: Watch) -> None:
        """Have every job noted from now on; `watch` must be quick and must not raise."""
        self._watch = watch

    def on_stopped(self, call: Callable[[], None]) -> None:
        """Have this called when a job comes back because the engine has stopped."""
        self._on_stopped = call

    def submit(self, job: Job, done: Done) -> None:
        """Queue a job; `done` is called once in the event loop, with result or exception."""
        post, name = self._post, _name_of(job)
        ended = None if self._watch is None else self._watch(job)
        if name:
            self._under_way[name] = job

        def told(result: Result) -> None:
            # All in one callback: nobody looks in between.
            if self._under_way.get(name) is job:
                del self._under_way[name]
            done(result)
            if ended is not None:
                ended(result)
            if isinstance(result, EngineStoppedError) and self._on_stopped is not None:
                self._on_stopped()

        self._engine.submit(job, lambda result: post(told, result))

    def waits_for_room(self, name: str) -> str | None:
        """Return why a model's job, or a sample by its key, has not begun, if it is for want of room."""
        job = self._under_way.get(name)
        return None if job is None else self._engine.waits_for_room(job)

    async def run(self, job: Job) -> Any:
        """Queue a job and return its result. Cancelling stops the wait, not the job.

        Raises:
            InvalidInputError: What the user sent was at fault.
            Exception: Whatever else the job raised: the engine is at fault.
        """
        finished = anyio.Event()
        results: list[Result] = []

        def done(result: Result) -> None:
            results.append(result)
            finished.set()

        self.submit(job, done)
        await finished.wait()
        if isinstance(results[0], BaseException):
            raise results[0]
        return results[0]

    def cancel_sample(self, key: str) -> None:
        """Stop a sample that is queued or running."""
        self._engine.cancel_sample(key)


def _name_of(job: Job) -> str:
    """The model's id, of which one job at a time is under way, or a sample's key."""
    name: str = job.key if isinstance(job, Sample) else getattr(job, "model_id", "")
    return name


def poster() -> Callable[[Done, Result], None]:
    """Return a function that calls `done(result)` in this event loop, from any thread.

    It does not wait, and does nothing when the loop has ended.
    """
    native: Any = current_token().native_token
    # trio's token and asyncio's loop each have a call that may come from any thread
    # and does not block; anyio's own `from_thread.run_sync` would block the engine.
    call = getattr(native, "run_sync_soon", None) or native.call_soon_threadsafe

    def post(done: Done, result: Result) -> None:
        try:
            call(done, result)
        except RuntimeError:
            return  # the loop has ended: nobody is left to hear

    return post
