"""A lane runs the requests of one model one after another, in the order of their numbers.

Numbers start at 1. What arrives early is held until its predecessors have arrived;
what arrives twice gets the promise of the first time. A request that fails has used
its number up: the lane goes on with the next, unless the model itself is lost.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import anyio
import msgspec
import structlog

from tinker_async.errors import InvalidInputError
from tinker_async.local.engine.failures import ModelLostError
from tinker_async.local.server.budget import Budget
from tinker_async.local.server.promises import Promise
from tinker_async.local.server.refusal import Refusal

Operation: TypeAlias = Callable[[], Awaitable[Any]]
"""Does the work and returns the result."""

log = structlog.get_logger("tinker_async")

_REMEMBERED = 10_000
"""Numbers whose promises are still known, so that a late repetition gets the same answer."""


class _Entry(msgspec.Struct, frozen=True, eq=False):
    promise: Promise
    operation: Operation
    size_bytes: int


class Lane:
    """The queue of one model. `run` is its life; whoever starts it owns it.

    With `in_order` the client sends a request only when the one before is settled, so that a
    number that has been passed over was never sent and is not waited for.
    """

    def __init__(
        self,
        *,
        limit: int,
        limit_bytes: int,
        shared: Budget | None = None,
        in_order: bool = False,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        self.lost: str | None = None
        """Why nothing is carried out any more, once that is so."""
        self._on_lost = on_lost
        self._next = 1
        self._in_order = in_order
        self._shared = shared or Budget()
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._waiting_bytes = 0
        self._held: dict[int, _Entry] = {}
        self._refused: set[int] = set()
        self._held_since_s = 0.0
        self._ready: deque[_Entry] = deque()
        self._seen: OrderedDict[int, tuple[bytes, Promise]] = OrderedDict()
        self._wake = anyio.Event()
        self._closed = False

    def repeated(self, seq_id: int | None, digest: bytes) -> Promise | None:
        """Return the promise of a request that has been here before, or None.

        Raises:
            Refusal: 422 a number below 1; 409 the number was used for something else;
                410 it was used too long ago to tell.
        """
        if seq_id is None:
            return None
        if seq_id < 1:
            raise Refusal(422, f"seq_id must be at least 1, got {seq_id}", field="seq_id")
        known = self._seen.get(seq_id)
        if known is None:
            if seq_id < self._next:
                raise Refusal(410, f"request {seq_id} was done long ago", field="seq_id")
            return None
        if known[0] != digest:
            raise Refusal(409, f"seq_id {seq_id} was used for another request", field="seq_id")
        return known[1]

    def check_room(self, seq_id: int | None, size_bytes: int) -> None:
        """Refuse with 429 when too much is waiting.

        The number that the held ones wait for always has room, or a full lane could
        never drain.
        """
        if seq_id == self._next and self._held:
            return
        waiting = len(self._held) + len(self._ready)
        if waiting and (
            waiting >= self._limit or self._waiting_bytes + size_bytes > self._limit_bytes
        ):
            raise Refusal(429, "too many requests of this model are waiting", retry_after_s=1)
        self._shared.check(size_bytes)

    def admit(
        self,
        seq_id: int | None,
        digest: bytes,
        promise: Promise,
        operation: Operation,
        *,
        size_bytes: int = 0,
    ) -> None:
        """Queue an operation whose number is new; None means: after what is ready now."""
        if self.lost is not None:
            if seq_id is not None:
                self._remember(seq_id, digest, promise)
            promise.settle(self._loss())
            return
        entry = _Entry(promise, operation, size_bytes)
        self._waiting_bytes += size_bytes
        self._shared.take(size_bytes)
        if seq_id is None:
            self._ready.append(entry)
        else:
            self._remember(seq_id, digest, promise)
            if not self._held:
                self._held_since_s = anyio.current_time()
            self._held[seq_id] = entry
            if self._in_order:
                self._next = max(self._next, min(self._held))
            promise.waits_for = f"request {self._next} of this model has not arrived yet"
            self._release()
        self._wake.set()

    def _remember(self, seq_id: int, digest: bytes, promise: Promise) -> None:
        self._seen[seq_id] = (digest, promise)
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)

    def pass_over(self, seq_id: int | None) -> None:
        """Note that a request was refused before it came in here.

        Its number may come again, as some clients send it, and is not waited for when a later one
        comes, as others do.
        """
        if seq_id is not None and seq_id >= self._next:
            if len(self._refused) < self._limit:
                self._refused.add(seq_id)
            self._release()
            self._wake.set()

    def _release(self) -> None:
        while self._held:
            entry = self._held.pop(self._next, None)
            if entry is None:
                if self._next not in self._refused:
                    return
                self._refused.discard(self._next)
                self._next += 1
                continue
            self._refused.discard(self._next)
            entry.promise.waits_for = None
            self._ready.append(entry)
            self._next += 1
            self._held_since_s = anyio.current_time()

    def give_up_gap(self, waited_s: float) -> None:
        """Lose the model if requests have been held for longer than this: one before them is lost."""
        if self._held and anyio.current_time() - self._held_since_s >= waited_s:
            self.lose(f"request {self._next} of it never arrived")

    def lose(self, reason: str) -> None:
        """Give the model up: what waits fails, and so does all that comes. The first reason counts."""
        if self.lost is not None or self._closed:
            return
        self.lost = reason
        self._fail_waiting(self._loss())
        if self._on_lost is not None:
            self._on_lost(reason)

    def _loss(self) -> ModelLostError:
        return ModelLostError(
            f"this training run is corrupted: {self.lost}; go on from a checkpoint of it"
        )

    def _fail_waiting(self, error: Exception) -> None:
        for entry in (*self._ready, *self._held.values()):
            self._done_with(entry)
            entry.promise.settle(error)
        self._ready.clear()
        self._held.clear()

    async def run(self) -> None:
        """Carry out operations until `close`."""
        while not self._closed:
            while self._ready and not self._closed:
                entry = self._ready.popleft()
                try:
                    await self._carry_out(entry)
                finally:
                    self._done_with(entry)
            if not self._closed:
                self._wake = anyio.Event()
                await self._wake.wait()

    def _done_with(self, entry: _Entry) -> None:
        self._waiting_bytes -= entry.size_bytes
        self._shared.give_back(entry.size_bytes)

    async def _carry_out(self, entry: _Entry) -> None:
        if entry.promise.settled:
            return
        try:
            outcome: Any = await entry.operation()
        except InvalidInputError as error:
            outcome = error
        except Exception as error:  # the boundary: one operation's fault must not end the lane
            log.exception("operation_failed", request_id=entry.promise.request_id)
            outcome = error
        entry.promise.settle(outcome)
        if isinstance(outcome, ModelLostError):
            self.lose(outcome.message)

    def close(self, reason: str) -> None:
        """Fail all that waits; `run` returns after the operation that is running."""
        self._closed = True
        self._fail_waiting(InvalidInputError(reason, field="model_id"))
        self._wake.set()
