"""One sample from its place in line to its result, and the samples that a session waits for itself.

Rule: a sample's request is sent again only under its own number; a new number is a new sample,
drawn when the server has lost the promise of the first. Whatever ends the wait early frees
the place at once and leaves what the server is to be told to the pool.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

import anyio
import anyio.abc
from msgspec.structs import replace

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller, decode_json
from tinker_async.api.progress import Progress
from tinker_async.api.promises import RETRIEVE_ANY, poll, result_of, retrieve
from tinker_async.api.retry import RetryPolicy
from tinker_async.background.sampling_pool import SamplingPool
from tinker_async.background.session_poller import SessionPoller
from tinker_async.data.results import SampleResponse
from tinker_async.errors import (
    APIStatusError,
    OperationWithdrawnError,
    PromiseLostError,
    RateLimitError,
    RequestFailedError,
    SessionClosedError,
    TinkerError,
    TransportError,
)
from tinker_async.futures import APIFuture
from tinker_async.logs import log
from tinker_async.transport import Response
from tinker_async.wire import json as wire_json
from tinker_async.wire.messages import SampleRequest, UntypedAPIFuture
from tinker_async.wire.promises import PromiseResult


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

Drawn: TypeAlias = tuple[PromiseResult, tuple[str, ...], int]
"""The result, what its sequences are called if the server has said it, the sample's number."""


class Drawer:
    """Draws the samples of one sampler, which takes its turns with the others of the session."""

    def __init__(
        self,
        caller: Caller,
        pool: SamplingPool,
        first_seq_id: int,
        poller: SessionPoller | None = None,
    ) -> None:
        self._caller = caller
        self._pool = pool
        self._poller = poller
        self._next_seq_id = first_seq_id

    async def draw(  # noqa: C901, PLR0912, PLR0915  # thousands wait here: each part of it would be one more coroutine
        self, draw: AnyDraw, request: SampleRequest, nbytes: int, policy: RetryPolicy
    ) -> Drawn:
        """Draw one sample; return its result, its sequences' ids and its number.

        Args:
            draw: Where its progress goes.
            request: What to ask for; its `seq_id` is given here.
            nbytes: What the request counts as while it is sent.
            policy: When to repeat what failed.
        """
        places, room, poller = self._pool.places, self._pool.room, self._poller
        if not places.take():
            await places.acquire(1, self)
        draw.holds_place = True
        resubmissions = 0
        try:
            while True:
                seq_id, self._next_seq_id = self._next_seq_id, self._next_seq_id + 1
                if not self._pool.try_dispatch(nbytes):
                    await self._pool.start_dispatch(nbytes, self)
                sequence_ids = await self._submit(draw, request, seq_id, nbytes, policy)
                completed, failed, reserved = False, False, 0
                try:
                    request_id = draw.request_id or ""
                    if poller is not None:
                        waiter = poller.join(request_id)
                        if waiter is not None:
                            await waiter
                        size_bytes = poller.size_of(request_id)
                        if size_bytes:
                            if not room.take(size_bytes):
                                await room.acquire(size_bytes, self)
                            reserved = size_bytes
                    silence_s = self._caller.silence_limit_s
                    polled: Response | TransportError
                    try:
                        polled = await poll(
                            self._caller, request_id, RETRIEVE_ANY, silence_s, sized=not reserved
                        )
                    except TransportError as error:
                        polled = error
                    result = result_of(self._caller, polled, RETRIEVE_ANY, draw) or await retrieve(
                        self._caller,
                        request_id,
                        endpoint=RETRIEVE_ANY,
                        policy=policy,
                        progress=draw,
                        polled=polled,
                        room=None if reserved else room,
                        turn=None if poller is None else partial(poller.wait_again, request_id),
                    )
                    completed = True
                except PromiseLostError as error:
                    # A sample has no effect on the server: it can simply be drawn again.
                    if (
                        resubmissions == self._pool.most_redraws
                        or draw.attempts >= policy.max_attempts
                    ):
                        raise
                    log.info("sample_resubmitted", request_id=error.request_id)
                    resubmissions += 1
                except BaseException as error:
                    self._given_up(draw, error)
                    failed = isinstance(error, RequestFailedError)
                    raise
                else:
                    return result, sequence_ids, seq_id
                finally:
                    if reserved:
                        room.release(reserved)  # it is decoded before anybody else runs
                    if poller is not None:
                        poller.leave(request_id, fetched=completed or failed)
                    if draw.queue_state is not None or self._pool.queue_paused:
                        self._pool.ended(draw, completed=completed)
        finally:
            if draw.holds_place:
                draw.holds_place = False
                places.release()

    def _given_up(self, draw: AnyDraw, error: BaseException) -> None:
        """Let the server know of a sample that it need not go on with."""
        ends = (TransportError, APIStatusError, anyio.get_cancelled_exc_class())
        if draw.request_id is not None and isinstance(error, ends):
            self._pool.abandon(draw.request_id)

    async def _submit(
        self, draw: AnyDraw, request: SampleRequest, seq_id: int, nbytes: int, policy: RetryPolicy
    ) -> tuple[str, ...]:
        """Have the server take the sample; return the ids of its sequences if it says them.

        The request's bytes have been taken from the dispatch budget, and are given back.
        """
        pool, body = self._pool, b""
        draw.on_wire = False
        try:
            while True:
                window = pool.pressure.window
                try:
                    body = body or wire_json.encode(replace(request, seq_id=seq_id))
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
                    promise = decode_json(
                        response.body, UntypedAPIFuture, endpoints.SAMPLE.path, draw
                    )
                    draw.request_id = promise.request_id
                    return tuple(promise.sample_sequence_ids or ())
                finally:
                    pool.end_dispatch(nbytes)
                await self._take_a_place_again(draw)
                if not pool.try_dispatch(nbytes):
                    await pool.start_dispatch(nbytes, self)
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
        self._ended = SessionClosedError("the session ended before the sample had its result")
        self._on_settled: Callable[[APIFuture[Any]], None] = _nothing
        self._under_way = 0
        self._idle = anyio.Event()

    def open(
        self, tasks: anyio.abc.TaskGroup, on_settled: Callable[[APIFuture[Any]], None]
    ) -> None:
        """Let samples be submitted: into `tasks`, until it ends."""
        self._tasks = tasks
        self._on_settled = on_settled

    def retire(self, reason: SessionClosedError) -> None:
        """Let what is cut short from now on fail with this reason."""
        self._ended = reason

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
        response: SampleResponse | None = None
        try:
            with future.while_wanted():
                response = await work()
            if response is not None:
                future.resolve(response)
        except TinkerError as error:
            future.fail(error)
        finally:
            future.fail(self._ended)
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
