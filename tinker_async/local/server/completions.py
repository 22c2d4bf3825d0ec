"""Which samples of a sampler are done, for clients that ask for all of them at once.

Positions count up from 1. A completion leaves when a cursor has passed it or its result has
been fetched: whoever fetched it knows.
"""

from __future__ import annotations

from collections import OrderedDict

import anyio
import msgspec

from tinker_async.data.results import SampleResponse
from tinker_async.local.server.promises import Promise

CLONE_NUMBERS = 1_000_000_000
"""So many sequence numbers each clone of a sampler has."""


class Completion(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One entry of the answer."""

    state: str
    """`finished` or `failed`"""
    request_id: str
    response_payload_uncompressed_size: int | None = None


class Completions:
    """Those of one clone of one sampler, oldest first."""

    def __init__(self) -> None:
        self.last = 0
        """The newest position"""
        self._kept: OrderedDict[str, tuple[int, Completion]] = OrderedDict()
        self._news: anyio.Event | None = None

    def __len__(self) -> int:
        return len(self._kept)

    def note(self, promise: Promise) -> None:
        """Note that a sample is done."""
        self.last += 1
        self._kept[promise.request_id] = (self.last, _completion(promise))
        self.wake()

    def trim(self, cursor: int) -> None:
        """Forget what this cursor has passed."""
        while self._kept and next(iter(self._kept.values()))[0] <= cursor:
            self._kept.popitem(last=False)

    def forget(self, request_id: str) -> None:
        """Forget a sample whose result has been fetched. Unknown ids pass."""
        self._kept.pop(request_id, None)

    def after(self, cursor: int) -> list[Completion]:
        """Return what is done and not passed by the cursor, in order."""
        return [completion for position, completion in self._kept.values() if position > cursor]

    def wake(self) -> None:
        """Let the waiters look again."""
        if self._news is not None:
            self._news.set()
            self._news = None

    async def wait(self) -> None:
        """Return when something has been added, or when woken."""
        if self._news is None:
            self._news = anyio.Event()
        await self._news.wait()


def _completion(promise: Promise) -> Completion:
    outcome = promise.outcome
    if not isinstance(outcome, SampleResponse):
        return Completion("failed", promise.request_id)
    # Clients reserve so much memory for it: near enough without encoding it.
    size_bytes = sum(
        sequence.tokens.nbytes + (0 if sequence.logprobs is None else sequence.logprobs.nbytes)
        for sequence in outcome.sequences
    )
    if outcome.prompt_logprobs is not None:
        size_bytes += outcome.prompt_logprobs.nbytes
    if outcome.topk_prompt_logprobs is not None:
        size_bytes += 2 * outcome.topk_prompt_logprobs.logprobs.nbytes
    return Completion("finished", promise.request_id, size_bytes)
