"""What arrived at the fake server, what it was answered, and what was done.

Entries are added as things happen and never removed. The rule: an answer counts as
answered when its last bytes are handed to the connection, which then takes them.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal, TypeAlias

import msgspec

Outcome: TypeAlias = Literal["pending", "answered", "lost"]


class Entry(msgspec.Struct, gc=False):
    """One request as it arrived."""

    number: int
    """From 1, in order of arrival."""
    at_s: float
    """Arrival, on the event loop's clock."""
    endpoint: str
    """As in `FaultScript.on`; empty for a path that does not exist."""
    method: str
    path: str
    body_bytes: int = 0
    session_id: str | None = None
    model_id: str | None = None
    sampler_id: str | None = None
    seq_id: int | None = None
    request_id: str | None = None
    """The promise that was asked for, or was given."""
    fault: str | None = None
    status: int | None = None
    """Of the answer that was made; None when there was none."""
    outcome: Outcome = "pending"
    """`answered`; `lost`: cut off by a fault, or nobody was there any more to take it."""
    ended_s: float | None = None


class Executed(msgspec.Struct, frozen=True, gc=False):
    """One operation of a model that was carried out (or failed), in order."""

    model_id: str
    seq_id: int | None
    """None for making the model."""
    name: str
    failed: bool


class SampleLine(msgspec.Struct, gc=False):
    """One sample: one `seq_id` of one sampler."""

    sampler_id: str
    seq_id: int | None
    request_id: str
    num_samples: int
    asked: int = 1
    """How often its request was processed: repetitions count, and make nothing anew."""
    answered: int = 0
    """How often its result was delivered."""
    failed: int = 0
    """How often its failure was delivered, a cancellation included."""
    cancelled: int = 0
    """How often it was cancelled."""


class Ledger:
    """Everything the fake server knows of its past: `service.ledger`."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        """Requests in order of arrival."""
        self.executed: list[Executed] = []
        """Operations of models in order of execution."""
        self.samples: list[SampleLine] = []
        """Samples in order of creation."""
        self.connections = 0
        """How many were made."""
        self.open_connections = 0

    def of(self, endpoint: str) -> list[Entry]:
        """Return the requests of an endpoint."""
        return [entry for entry in self.entries if entry.endpoint == endpoint]

    def count(self, endpoint: str) -> int:
        """Return how many requests of an endpoint have arrived."""
        return len(self.of(endpoint))

    def gaps(self, model_id: str) -> list[int]:
        """Return the numbers that are missing among those a model has executed."""
        done = {one.seq_id for one in self._executed_by(model_id)} - {None}
        highest = max((number for number in done if number is not None), default=0)
        return [number for number in range(1, highest + 1) if number not in done]

    def order(self, model_id: str) -> list[str]:
        """Return the names of a model's operations in order of execution."""
        return [one.name for one in self._executed_by(model_id) if one.seq_id is not None]

    def _executed_by(self, model_id: str) -> list[Executed]:
        return [one for one in self.executed if one.model_id == model_id]

    def duplicates(self) -> dict[tuple[str, int], int]:
        """Return how often each number arrived that arrived more than once.

        Keys are model or sampler and number. A repetition is no fault of the client: it
        is how a lost answer is asked for again.
        """
        seen = Counter(
            (owner, entry.seq_id)
            for entry in self.entries
            if entry.seq_id is not None and (owner := entry.model_id or entry.sampler_id)
        )
        return {key: times for key, times in seen.items() if times > 1}

    def cancels(self) -> list[str]:
        """Return the promises whose cancellation was asked for, in order, repetitions included."""
        return [entry.request_id or "" for entry in self.of("cancel_future")]

    def samples_answered_once(self) -> bool:
        """Whether each sample's result was delivered exactly once; at most once if cancelled."""
        return all(
            line.answered == 1 or (line.cancelled and not line.answered) for line in self.samples
        )

    def unanswered(self) -> list[SampleLine]:
        """Return the samples that nobody got: neither delivered nor cancelled."""
        return [line for line in self.samples if not (line.answered or line.cancelled)]

    def pending(self) -> list[Entry]:
        """Return the requests that are being answered now."""
        return [entry for entry in self.entries if entry.outcome == "pending"]

    def __repr__(self) -> str:
        return (
            f"<Ledger: {len(self.entries)} requests, {len(self.executed)} operations, "
            f"{len(self.samples)} samples>"
        )
