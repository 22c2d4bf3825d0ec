"""The promises of the fake server. No task belongs to them: a promise knows when it is due.

The rule: a result stays until it was delivered and many others were after it; an id
that was ours and is no longer known is 410, any other 404.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import anyio
import msgspec

from tinker_async.testing.answers import Refusal
from tinker_async.testing.ledger import SampleLine

Kind: TypeAlias = Literal["sample", "forward_backward", "json"]

_REMEMBERED = 4096
"""Delivered results that can be fetched again."""


class Promise:
    """One result to come."""

    __slots__ = (
        "_changed",
        "due_s",
        "kind",
        "line",
        "model_id",
        "on_change",
        "outcome",
        "request_id",
        "session_id",
    )

    def __init__(self, request_id: str, kind: Kind, session_id: str, model_id: str | None) -> None:
        self.request_id = request_id
        self.kind: Kind = kind
        self.session_id = session_id
        self.model_id = model_id
        self.outcome: Any = msgspec.UNSET
        """The result or a `FailedResponse`, once it is computed."""
        self.due_s = 0.0
        """When the result may be seen."""
        self.line: SampleLine | None = None
        self.on_change: Callable[[], None] | None = None
        """Who else wants to know."""
        self._changed = anyio.Event()

    @property
    def computed(self) -> bool:
        """Whether there is an outcome, seen or not."""
        return self.outcome is not msgspec.UNSET

    def settle(self, outcome: Any, *, due_s: float) -> None:
        """Store the outcome, to be seen at `due_s`. A later one replaces it."""
        self.outcome, self.due_s = outcome, due_s
        self.wake()

    def wake(self) -> None:
        """Let the waiters look again."""
        self._changed.set()
        self._changed = anyio.Event()
        if self.on_change is not None:
            self.on_change()

    async def change(self, longest_s: float) -> None:
        """Return when something has changed, or after `longest_s`."""
        changed = self._changed
        with anyio.move_on_after(longest_s):
            await changed.wait()


class PromiseBook:
    """All promises since the last restart."""

    def __init__(self, make_id: Callable[[str, str, str, int], str]) -> None:
        self._make_id = make_id
        self._issued = 0
        self._promises: dict[str, Promise] = {}
        self._delivered: deque[str] = deque()

    def make(self, kind: Kind, session_id: str, model_id: str | None = None) -> Promise:
        """Return a new promise."""
        self._issued += 1
        number = self._issued
        request_id = self._make_id("request", f"r{number}", "", number)
        promise = Promise(request_id, kind, session_id, model_id)
        self._promises[promise.request_id] = promise
        return promise

    def get(self, request_id: str) -> Promise:
        """Return a promise.

        Raises:
            Refusal: 410 when it is lost, 404 when there never was one.
        """
        promise = self._promises.get(request_id)
        if promise is not None:
            return promise
        number = request_id.removeprefix("r")
        ours = number.isdigit() and 1 <= int(number) <= self._issued
        raise Refusal(410 if ours else 404, f"no request {request_id!r} (any more)")

    def find(self, request_id: str | None) -> Promise | None:
        """Return a promise, or None."""
        return None if request_id is None else self._promises.get(request_id)

    def delivered(self, promise: Promise) -> None:
        """Note that a result was handed out; one of long ago leaves."""
        self._delivered.append(promise.request_id)
        if len(self._delivered) > _REMEMBERED:
            self._promises.pop(self._delivered.popleft(), None)

    def fetched(self, request_ids: list[str]) -> None:
        """Forget results that a client says it has."""
        for request_id in request_ids:
            promise = self._promises.get(request_id)
            if promise is not None and promise.line is not None:
                del self._promises[request_id]

    def lose_all(self) -> None:
        """Forget everything, as a server that starts anew."""
        for promise in self._promises.values():
            promise.wake()
        self._promises.clear()
        self._delivered.clear()

    def wake_all(self) -> None:
        """Let every waiter look again."""
        for promise in self._promises.values():
            promise.wake()
