"""One sample from its place in line to its result, and the samples that a session waits for itself.

Rule: a sample's request is sent again only under its own number; a new number is a new sample,
drawn when the server has lost the promise of the first. Whatever ends the wait early frees
the place at once and leaves what the server is to be told to the pool.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import anyio
import anyio.abc

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller, decode_json
from tinker_async.api.progress import Progress
from tinker_async.api.promises import RETRIEVE_ANY, retrieve
from tinker_async.api.retry import RetryPolicy
from tinker_async.background.sampling_pool import SamplingPool
from tinker_async.data.results import SampleResponse
from tinker_async.errors import (
    APIStatusError,
    OperationWithdrawnError,
    PromiseLostError,
    RateLimitError,
    SessionClosedError,
    TinkerError,
    TransportError,
)
from tinker_async.futures import APIFuture
from tinker_async.logs import log
from tinker_async.wire import json as wire_json
from tinker_async.wire.messages import SampleRequest, UntypedAPIFuture
from tinker_async.wire.promises import PromiseResult

_MOST_RESUBMISSIONS = 5


class Draw(Progress):
    """One sample under way."""

    __slots__ = ("_pool", "holds_place")

    def __init__(self, operation: str, pool: SamplingPool) -> None:
        super().__init__(operation)
        self._pool = pool
        self.holds_place = False
        """Whether it has one of the pool's places."""

    def note_queue_state(self, state: str, reason: str | None) -> bool:
        """Record what the server said, and let new samples wait while it is a pause."""
        self._pool.queue_told(self, state)
        return super().note_queue_state(state, reason)


class SampleFuture(APIFuture[SampleResponse]):
    """A sample that the session waits for; cancelling it cancels it on the server, too."""

    __slots__ = ("_pool", "holds_place")

    def __init__(self, operation: str, pool: SamplingPool) -> None:
        super().__init__(operation)
        self._pool = pool
        self.holds_place = False

    def note_queue_state(self, state: str, reason: str | None) -> bool:
        """As `Draw`."""
        self._pool.queue_told(self, state)
        return super().note_queue_state(state, reason)

    def cancel(self) -> bool:
        """Give the sample up, sent or not: its place is freed, and the server is told if it was.

        Returns:
            Whether it was given up. Waiters then get `OperationWithdrawnError`.
        """
        if self.done:
            return False
        self._observed = True
        self.fail(OperationWithdrawnError(f"{self.operation} was cancelled"))
        return True


AnyDraw: TypeAlias = Draw | SampleFuture

Drawn: TypeAlias = tuple[PromiseResult, UntypedAPIFuture, int]
"""The result, the promise that it is of, and the number of the sample."""


class Drawer:
    """Draws the samples of one sampler, which takes its turns with the others of the session."""

    def __init__(self, caller: Caller, pool: SamplingPool, first_seq_id: int) -> None:
        self._caller = caller
        self._pool = pool
        self._next_seq_id = first_seq_id

    async def draw(
        self,
        draw: AnyDraw,
        make_request: Callable[..., SampleRequest],
        nbytes: int,
        policy: RetryPolicy,
    ) -> Drawn:
        """Draw one sample; return its result, its promise and its number.

        Args:
            draw: Where its progress goes.
            make_request: Makes the request from `seq_id`.
            nbytes: What the request counts as while it is sent.
            policy: When to repeat what failed.
        """
        places = self._pool.places
        if not places.take():
            await places.acquire(1, self)
        draw.holds_place = True
        resubmissions = 0
        try:
            while True:
                try:
                    return await self._draw_once(draw, make_request, nbytes, policy)
                except PromiseLostError as error:
                    # A sample has no effect on the server: it can simply be drawn again.
                    if resubmissions == _MOST_RESUBMISSIONS or draw.attempts >= policy.max_attempts:
                        raise
                    log.info("sample_resubmitted", request_id=error.request_id)
                    resubmissions += 1
        finally:
            if draw.holds_place:
                draw.holds_place = False
                places.release()

    async def _draw_once(
        self,
        draw: AnyDraw,
        make_request: Callable[..., SampleRequest],
        nbytes: int,
        policy: RetryPolicy,
    ) -> Drawn:
        seq_id, self._next_seq_id = self._next_seq_id, self._next_seq_id + 1
        promise = await self._submit(draw, make_request(seq_id=seq_id), nbytes, policy)
        draw.request_id = promise.request_id
        completed = False
        try:
            result = await retrieve(
                self._caller,
                promise.request_id,
                endpoint=RETRIEVE_ANY,
                policy=policy,
                progress=draw,
            )
            completed = True
        except anyio.get_cancelled_exc_class():
            self._pool.abandon(promise.request_id)
            raise
        except (TransportError, APIStatusError):
            self._pool.abandon(promise.request_id)  # given up: the server need not go on
            raise
        finally:
            if draw.queue_state is not None or self._pool.queue_paused:
                self._pool.ended(draw, completed=completed)
        return result, promise, seq_id

    async def _submit(
        self, draw: AnyDraw, request: SampleRequest, nbytes: int, policy: RetryPolicy
    ) -> UntypedAPIFuture:
        pool, body = self._pool, b""
        draw.on_wire = False
        try:
            while True:
                if not pool.try_dispatch(nbytes):
                    await pool.start_dispatch(nbytes, self)
                window = pool.pressure.window
                try:
                    body = body or wire_json.encode(request)
                    response = await self._caller.call(
                        endpoints.SAMPLE,
                        (body,),
                        policy=policy,
                        never_repeat=(RateLimitError,),
                        progress=draw,
                        attempts_before=draw.attempts,
                    )
                except RateLimitError as error:
                    self._refused(draw, error, nbytes, policy, window)
                else:
                    if not pool.pressure.calm:
                        pool.accepted(window)
                    return decode_json(response.body, UntypedAPIFuture, endpoints.SAMPLE.path, draw)
                finally:
                    pool.end_dispatch(nbytes)
                await self._take_a_place_again(draw)
        except anyio.get_cancelled_exc_class():
            if draw.on_wire:
                pool.abandon_unknown(body, nbytes)
            raise

    def _refused(
        self, draw: AnyDraw, error: RateLimitError, nbytes: int, policy: RetryPolicy, window: int
    ) -> None:
        """Hold the session's samples back after a 429, and raise it if the policy is used up."""
        pool = self._pool
        draw.on_wire = error.delivery_in_doubt
        pause_s = pool.back_off(error, nbytes, policy=policy, window=window)
        again = policy.next_delay(
            error,
            attempt=draw.attempts,
            failing_for_s=pool.pressure.failing_for_s(anyio.current_time()),
        )
        self._caller.note_failure(
            error,
            endpoints.SAMPLE,
            draw.operation,
            draw.attempts,
            None if again is None else pause_s,
        )
        if again is None:
            raise error

    async def _take_a_place_again(self, draw: AnyDraw) -> None:
        """Give the place back, which may be one too many now, and wait at the line's head."""
        places = self._pool.places
        draw.holds_place = False
        places.release()
        await places.acquire(1, self, again=True)
        draw.holds_place = True


class Submissions:
    """The samples that the session waits for itself, in tasks of its own."""

    def __init__(self) -> None:
        self._tasks: anyio.abc.TaskGroup | None = None
        self._on_settled: Callable[[APIFuture[Any]], None] = _nothing
        self._under_way = 0
        self._idle = anyio.Event()

    def open(
        self, tasks: anyio.abc.TaskGroup, on_settled: Callable[[APIFuture[Any]], None]
    ) -> None:
        """Let samples be submitted: into `tasks`, until it ends."""
        self._tasks = tasks
        self._on_settled = on_settled

    def start(
        self, future: SampleFuture, work: Callable[[], Awaitable[SampleResponse]]
    ) -> SampleFuture:
        """Do the work in the session's own task group, and settle the future with what it gives.

        Raises:
            SessionClosedError: The session is not open.
        """
        if self._tasks is None:
            raise SessionClosedError("the session is not open")
        future.on_settled(self._on_settled)
        self._under_way += 1
        self._tasks.start_soon(self._carry_out, future, work)
        return future

    async def _carry_out(
        self, future: SampleFuture, work: Callable[[], Awaitable[SampleResponse]]
    ) -> None:
        try:
            with future.while_wanted():
                future.resolve(await work())
        except TinkerError as error:
            future.fail(error)
        finally:
            future.fail(SessionClosedError("the session ended before the sample had its result"))
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until nothing is under way."""
        while self._under_way:
            self._idle = anyio.Event()
            await self._idle.wait()


def _nothing(_: APIFuture[Any]) -> None:
    pass
