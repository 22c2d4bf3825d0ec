"""What a session tells while it works: events, a hook for each, and streams of them.

An event is a plain struct. Emitting one never waits and never fails: a hook's exception is
logged and forgotten, and a stream that nobody reads drops its oldest events and counts them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self, TypeAlias

import anyio
import msgspec

from tinker_async.logs import log

_KEPT = 1000


class AttemptFailed(msgspec.Struct, frozen=True, tag=True):
    """A request failed; it is repeated after `delay_s`, or given up when that is None."""

    operation: str
    endpoint: str
    attempt: int
    """Requests made for this call so far, from 1."""
    error: str
    """The error's class."""
    message: str
    status: int | None
    delay_s: float | None


class QueueStateChanged(msgspec.Struct, frozen=True, tag=True):
    """The server said that an operation's place in its queue is another than before."""

    operation: str
    request_id: str
    state: str
    """`active`, `paused_capacity`, `paused_rate_limit`, or what a newer server wrote."""
    reason: str | None
    since: float
    """`anyio.current_time()` of the change."""


class SubmissionsPaused(msgspec.Struct, frozen=True, tag=True):
    """New samples wait: after a 429 (`rate_limit`) or while the server's queue is paused (`queue`)."""

    cause: str
    pause_s: float
    limit: int
    """Samples that may be under way from now on."""


class BillingPaused(msgspec.Struct, frozen=True, tag=True):
    """The server answered 402; requests are repeated until `limit_s` after the first one."""

    operation: str
    detail: str
    paused_for_s: float
    limit_s: float


class ModelPoisoned(msgspec.Struct, frozen=True, tag=True):
    """A request of a model was lost, so its later ones cannot be ordered."""

    model_id: str
    operation: str
    seq_id: int
    error: str
    message: str


class HeartbeatMissed(msgspec.Struct, frozen=True, tag=True):
    """A heartbeat was not answered; the session goes on."""

    silent_s: float
    error: str


class SessionRenewed(msgspec.Struct, frozen=True, tag=True):
    """The session was lost, and goes on under a new id: for its durable runs."""

    session_id: str
    """The new one."""
    lost_session_id: str
    cause: str
    """`ended` or `unknown`, as the server said, or `process`: the embedded engine's ended."""
    message: str
    attempts: int
    """Openings that it took, from 1."""
    lost_for_s: float


class DurableEvent(msgspec.Struct, frozen=True):
    """Base of what a durable run tells: checkpoints, and the steps of a recovery."""

    run_id: str
    """The training run that it is about."""


Event: TypeAlias = (
    AttemptFailed
    | QueueStateChanged
    | SubmissionsPaused
    | BillingPaused
    | ModelPoisoned
    | HeartbeatMissed
    | SessionRenewed
    | DurableEvent
)

EventHook: TypeAlias = Callable[[Event], None]


class EventStream:
    """An async iterator of events, from its making until the session ends."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=_KEPT)
        self._wake = anyio.Event()
        self._ended = False
        self.dropped = 0
        """Events that were lost because nobody read them in time."""

    def put(self, event: Event) -> None:
        """Add an event; the oldest goes when a thousand are unread."""
        self.dropped += len(self._events) == _KEPT
        self._events.append(event)
        self._wake.set()

    def end(self) -> None:
        """Let the iteration end after the events that are there."""
        self._ended = True
        self._wake.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self._ended:
                raise StopAsyncIteration
            self._wake = anyio.Event()
            await self._wake.wait()
        return self._events.popleft()


class Events:
    """Hands each event to the hook and to every open stream."""

    def __init__(self, hook: EventHook | None = None) -> None:
        self._hook = hook
        self._streams: list[EventStream] = []
        self._ended = False

    @property
    def wanted(self) -> bool:
        """Whether anybody listens: who emits often looks before it makes an event."""
        return self._hook is not None or bool(self._streams)

    def emit(self, event: Event) -> None:
        """Tell everybody who listens."""
        if self._hook is not None:
            try:
                self._hook(event)
            except Exception as error:  # noqa: BLE001  # a user's hook must not stop the work
                log.error("event_hook_failed", error=type(error).__name__, message=str(error))
        for stream in self._streams:
            stream.put(event)

    @contextmanager
    def stream(self) -> Iterator[EventStream]:
        """Open a stream for a block."""
        stream = EventStream()
        if self._ended:
            stream.end()
        self._streams.append(stream)
        try:
            yield stream
        finally:
            self._streams.remove(stream)

    def end(self) -> None:
        """End all streams: the session is over."""
        self._ended = True
        for stream in self._streams:
            stream.end()
