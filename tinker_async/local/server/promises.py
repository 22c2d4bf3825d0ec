"""Promises: results that are fetched later, as often as the client likes.

A result stays until it has been delivered; after that it may leave when the
delivered ones together exceed a budget of bytes. An id that was ours and is no
longer known is 410 (lost), one that never was ours is 404.
"""

from __future__ import annotations

import re
import secrets
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol, TypeAlias

import anyio
import msgspec

from tinker_async.errors import InvalidInputError
from tinker_async.local.server.faults import fault_of
from tinker_async.local.server.refusal import Refusal
from tinker_async.wire.messages import FailedResponse

Kind: TypeAlias = Literal["sample", "forward_backward", "json"]


class Listing(Protocol):
    """A list of promises that are done; polls of the whole list wait for it."""

    def note(self, promise: Promise) -> None:
        """Note that a promise is settled."""
        ...

    def forget(self, request_id: str) -> None:
        """Forget a promise whose result has been fetched."""
        ...

    def wake(self) -> None:
        """Let the waiters look again."""
        ...


_OURS = re.compile(r"r-[0-9a-f]{8}-\d+")


class Promise:
    """One result to come. Settled once; later settlements are ignored."""

    __slots__ = (
        "_changed",
        "_outcome",
        "kind",
        "listing",
        "model_id",
        "request_id",
        "session_id",
        "waits_for",
    )

    def __init__(self, request_id: str, kind: Kind, session_id: str, model_id: str | None) -> None:
        self.request_id = request_id
        self.kind: Kind = kind
        self.session_id = session_id
        self.model_id = model_id
        self.waits_for: str | None = None
        """Why it is not running yet, for people."""
        self.listing: Listing | None = None
        """Where it is noted that the result is there."""
        self._outcome: Any = msgspec.UNSET
        self._changed: anyio.Event | None = None

    @property
    def settled(self) -> bool:
        """Whether the result is there."""
        return self._outcome is not msgspec.UNSET

    @property
    def outcome(self) -> Any:
        """The result, or a `FailedResponse`. Only when settled."""
        return self._outcome

    def settle(self, outcome: Any) -> None:
        """Store the result; an exception becomes a `FailedResponse`."""
        if self.settled:
            return
        self._outcome = failed(outcome) if isinstance(outcome, BaseException) else outcome
        self.wake()
        if self.listing is not None:
            self.listing.note(self)

    def forget(self) -> None:
        """Free the result; lanes keep the promise itself to recognise repetitions."""
        self._outcome = None

    def wake(self) -> None:
        """Let the waiters look again."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def wait(self) -> None:
        """Return when settled or woken."""
        if not self.settled:
            if self._changed is None:
                self._changed = anyio.Event()
            await self._changed.wait()


def failed(error: BaseException) -> FailedResponse:
    """Return what a client is told about an exception of an operation."""
    if isinstance(error, InvalidInputError):
        return FailedResponse(error=str(error), category="user")
    error = fault_of(error) or error
    return FailedResponse(error=f"{type(error).__name__}: {error}", category="server")


class PromiseBook:
    """All promises of this server process."""

    def __init__(self, *, delivered_limit_bytes: int) -> None:
        self._start = secrets.token_hex(4)
        self._issued = 0
        self._promises: dict[str, Promise] = {}
        self._delivered: OrderedDict[str, int] = OrderedDict()
        self._delivered_bytes = 0
        self._limit_bytes = delivered_limit_bytes
        self.stopping = False
        self._waited_for: list[Listing] = []

    def make(self, kind: Kind, *, session_id: str, model_id: str | None = None) -> Promise:
        """Return a new promise."""
        self._issued += 1
        request_id = f"r-{self._start}-{self._issued}"
        promise = Promise(request_id, kind, session_id, model_id)
        self._promises[request_id] = promise
        return promise

    def get(self, request_id: str) -> Promise:
        """Return a promise.

        Raises:
            Refusal: 410 when it is lost (restart, or delivered long ago), 404 when unknown.
        """
        promise = self._promises.get(request_id)
        if promise is not None:
            return promise
        if _OURS.fullmatch(request_id):
            raise Refusal(410, f"the result of {request_id} is gone", field="request_id")
        raise Refusal(404, f"no request {request_id!r}", field="request_id")

    def delivered(self, promise: Promise, size_bytes: int) -> None:
        """Note that a result has been handed out; old ones may leave."""
        if promise.listing is not None:
            promise.listing.forget(promise.request_id)
        size_bytes += _KEPT_BYTES
        self._delivered_bytes -= self._delivered.pop(promise.request_id, 0)
        self._delivered[promise.request_id] = size_bytes
        self._delivered_bytes += size_bytes
        while self._delivered_bytes > self._limit_bytes and len(self._delivered) > 1:
            request_id, size = self._delivered.popitem(last=False)
            self._delivered_bytes -= size
            gone = self._promises.pop(request_id, None)
            if gone is not None:
                gone.forget()

    def fetched(self, request_id: str, session_id: str) -> None:
        """Free a result that its client says it has. Those of other sessions, and unknown ids, pass."""
        promise = self._promises.get(request_id)
        if promise is not None and promise.settled and promise.session_id == session_id:
            self._drop(request_id)
            promise.forget()

    @contextmanager
    def waiting_for(self, listing: Listing) -> Iterator[None]:
        """Wake the waiters of a listing, too, when the server stops inside the block."""
        self._waited_for.append(listing)
        try:
            yield
        finally:
            self._waited_for.remove(listing)

    def end_session(self, session_id: str, reason: str, *, keep_unfetched: bool) -> list[Promise]:
        """Fail what is pending and return it; free the results that were delivered.

        A failed one stays, to tell why, until memory is short: it is small. So does what nobody
        has fetched, if `keep_unfetched`, and is else freed.
        """
        pending: list[Promise] = []
        for promise in [p for p in self._promises.values() if p.session_id == session_id]:
            if not promise.settled:
                pending.append(promise)
                # No fault of the request: a client that survives its session makes it again.
                promise.settle(FailedResponse(error=reason, category="unknown"))
                self.delivered(promise, 0)
            elif keep_unfetched and promise.request_id not in self._delivered:
                self.delivered(promise, _UNFETCHED_BYTES)
            else:
                self._drop(promise.request_id)
        return pending

    def _drop(self, request_id: str) -> None:
        self._delivered_bytes -= self._delivered.pop(request_id, 0)
        self._promises.pop(request_id, None)

    def stop(self) -> None:
        """Answer every held poll now; the server is going down."""
        self.stopping = True
        for promise in self._promises.values():
            promise.wake()
        for listing in self._waited_for:
            listing.wake()

    def statistics(self) -> dict[str, int]:
        """Return how many promises there are, and the bytes of the delivered ones."""
        return {
            "promises": len(self._promises),
            "pending": sum(not promise.settled for promise in self._promises.values()),
            "delivered_bytes": self._delivered_bytes,
        }


_KEPT_BYTES = 4096
"""What a result counts for besides its encoded size: a small one takes some 2.5 kB as objects."""
_UNFETCHED_BYTES = 64 * 1024
"""What an unfetched result of an ended session counts for: its size is not known without encoding."""
