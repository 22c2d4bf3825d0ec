"""What the fake server keeps of an account: what was used, and what was done.

The rule: only what was carried out is in it, each thing once, by the server's own time of day.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias

import msgspec

from tinker_async.data.usage import (
    AuditLogEntry,
    BillingEventInfo,
    BillingUsageEvent,
    CheckpointBillingEvent,
    SamplingPrefillBillingEvent,
    SamplingSampleBillingEvent,
    TrainingBillingEvent,
)

UsageKind: TypeAlias = Literal["training", "sampling_prefill", "sampling_sample", "checkpoint"]

PROJECT = "project-fake"
"""Where sessions are that name no project."""
PROJECTS = (PROJECT, "project-other")
"""What there is."""
USER = "tml:user:fake"


class _Bucket(msgspec.Struct, frozen=True):
    start: datetime
    session_id: str
    base_model: str
    kind: UsageKind


class Account:
    """The ledger of the one account that the fake server has.

    Args:
        time: Gives the server's time of day.
    """

    def __init__(self, time: Callable[[], datetime]) -> None:
        self._time = time
        self._used: Counter[_Bucket] = Counter()
        self.events: list[AuditLogEntry] = []
        """What was done, in order."""
        self.copies: dict[str, tuple[bytes, str]] = {}
        """Body and path of each copy, by its idempotency key."""

    def note_use(self, session_id: str, base_model: str, kind: UsageKind, count: int) -> None:
        """Note tokens, or checkpoints."""
        start = self._time().replace(minute=0, second=0, microsecond=0)
        self._used[_Bucket(start, session_id, base_model, kind)] += count

    def note_event(self, event: str, **details: Any) -> None:
        """Note something that was done, `<resource>_<action>`."""
        entry = AuditLogEntry(timestamp=self._time(), event=event, event_details=details)
        self.events.append(entry)

    def usage(
        self, start: datetime, end: datetime, project_of: Callable[[str], str]
    ) -> list[BillingUsageEvent]:
        """Return what was used between two times, by hour."""
        return [
            BillingUsageEvent(
                bucket_start=bucket.start,
                bucket_end=bucket.start + timedelta(hours=1),
                event_info=_info(bucket.kind, count),
                base_model=bucket.base_model,
                user_id=USER,
                session_id=bucket.session_id,
                project_id=project_of(bucket.session_id),
            )
            for bucket, count in self._used.items()
            if start <= bucket.start < end
        ]


def _info(kind: UsageKind, count: int) -> BillingEventInfo:
    if kind == "training":
        return TrainingBillingEvent(token_count=count)
    if kind == "sampling_prefill":
        return SamplingPrefillBillingEvent(cached=False, token_count=count)
    if kind == "sampling_sample":
        return SamplingSampleBillingEvent(token_count=count)
    return CheckpointBillingEvent(count=count)
