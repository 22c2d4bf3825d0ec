"""The server's own books: tokens by hour and session, bytes stored over time, and who did what.

Entries are collected in memory, as cheaply as a dictionary can, and written together now and
then; a kill loses what was not written yet, an orderly stop nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, TypedDict, Unpack

import msgspec

from tinker_async.local.server.rows import CheckpointRow
from tinker_async.local.server.store import Store

HOUR_S = 3600
KEPT_S = 400 * 24 * HOUR_S
"""How long entries are kept."""


class Amounts(TypedDict, total=False):
    """What is counted; all but checkpoints in tokens."""

    training: int
    prefill: int
    prefill_cached: int
    sample: int
    checkpoint: int


_COUNT = (
    "INSERT INTO usage (hour, kind, session_id, amount) VALUES (?, ?, ?, ?) "
    "ON CONFLICT DO UPDATE SET amount = amount + excluded.amount"
)


class Usage(msgspec.Struct, frozen=True):
    """An amount of one kind in one hour (since 1970, UTC) by one session."""

    hour: int
    kind: str
    session_id: str
    amount: int


class AuditEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event, as it is stored and shown."""

    timestamp: datetime
    event: str
    event_details: dict[str, Any]
    model_id: str | None = None
    tinker_path: str | None = None
    purpose: str | None = None


class _Span(msgspec.Struct, frozen=True):
    session_id: str
    size_bytes: int
    from_s: float
    to_s: float


class Ledger:
    """Adds up. What is asked for has been written first, so that an answer is complete."""

    def __init__(self, store: Store, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._clock = clock
        self._usage: Counter[tuple[int, str, str]] = Counter()
        self._rows: list[tuple[str, tuple[Any, ...]]] = []
        self._pruned_hour = 0

    def count(self, session_id: str, **amounts: Unpack[Amounts]) -> None:
        """Add to the current hour."""
        hour = int(self._clock().timestamp()) // HOUR_S
        for kind, amount in amounts.items():
            if isinstance(amount, int) and amount:
                self._usage[hour, kind, session_id] += amount

    def event(self, event: str, details: dict[str, Any]) -> None:
        """Note an event that belongs to no checkpoint."""
        self._note(AuditEntry(self._clock(), event, details))

    def checkpoint_event(
        self, action: str, row: CheckpointRow, *, purpose: str | None = None, **more: Any
    ) -> None:
        """Note what was done with a checkpoint."""
        details = {"tinker_path": row.path, "session_id": row.session_id, **more}
        if purpose is not None:
            details["purpose"] = purpose
        self._note(
            AuditEntry(
                self._clock(),
                f"checkpoint_{action}",
                details,
                model_id=row.run_id,
                tinker_path=row.path,
                purpose=purpose,
            )
        )

    def _note(self, entry: AuditEntry) -> None:
        values = (entry.timestamp.timestamp(), msgspec.json.encode(entry))
        self._rows.append(("INSERT INTO audit (at_s, body) VALUES (?, ?)", values))

    def sampler(self, sampler_id: str, session_id: str, model_path: str | None) -> None:
        """Note a sampling session, to be found when it is over."""
        sql = "INSERT OR REPLACE INTO samplers (id, session_id, model_path) VALUES (?, ?, ?)"
        self._rows.append((sql, (sampler_id, session_id, model_path)))

    def stored(self, row: CheckpointRow, until: datetime) -> None:
        """Note how long a checkpoint that is gone now took up its bytes."""
        values = (row.session_id, row.size_bytes, row.created_at.timestamp(), until.timestamp())
        sql = "INSERT INTO stored (session_id, size_bytes, from_s, to_s) VALUES (?, ?, ?, ?)"
        self._rows.append((sql, values))

    async def write(self) -> None:
        """Write what was collected. When that fails it is kept for the next time."""
        usage, self._usage = self._usage, Counter()
        rows, self._rows = self._rows, []
        hour = int(self._clock().timestamp()) // HOUR_S
        statements = [*rows, *((_COUNT, (*key, amount)) for key, amount in usage.items())]
        if not statements:
            return
        if hour != self._pruned_hour:
            statements += _pruning(hour)
        try:
            await self._store.batch(statements)
        except BaseException:
            # `batch` writes all or nothing, and counts that came meanwhile stay.
            self._usage.update(usage)
            self._rows[:0] = rows
            raise
        self._pruned_hour = hour

    async def samplers_of(self, session_id: str) -> list[str]:
        """Return the ids of all sampling sessions that a session has had."""
        await self.write()
        sql = "SELECT id FROM samplers WHERE session_id = ? ORDER BY length(id), id"
        return [key for (key,) in await self._store.query(sql, (session_id,))]

    async def find_sampler(self, sampler_id: str) -> tuple[str | None] | None:
        """Return the model path of a sampling session in a tuple, or None when there was none."""
        await self.write()
        sql = "SELECT model_path FROM samplers WHERE id = ?"
        rows = await self._store.query(sql, (sampler_id,))
        return rows[0] if rows else None

    async def usage(self, first_hour: int, end_hour: int) -> list[Usage]:
        """Return what was counted in hours from the first to before the end."""
        await self.write()
        sql = "SELECT hour, kind, session_id, amount FROM usage WHERE hour >= ? AND hour < ?"
        return [Usage(*row) for row in await self._store.query(sql, (first_hour, end_hour))]

    async def audit(self, first: datetime, end: datetime) -> list[AuditEntry]:
        """Return the events of a time, oldest first."""
        await self.write()
        sql = "SELECT body FROM audit WHERE at_s >= ? AND at_s < ? ORDER BY at_s, rowid"
        rows = await self._store.query(sql, (first.timestamp(), end.timestamp()))
        return [msgspec.json.decode(body, type=AuditEntry) for (body,) in rows]

    async def byte_seconds(
        self, first_hour: int, end_hour: int, present: Iterable[CheckpointRow]
    ) -> dict[tuple[int, str], float]:
        """Return the bytes stored times seconds, by hour and session.

        Args:
            first_hour: The first hour.
            end_hour: The one after the last.
            present: The checkpoints that exist now.
        """
        await self.write()
        now_s = self._clock().timestamp()
        sql = (
            "SELECT session_id, size_bytes, from_s, to_s FROM stored WHERE to_s > ? AND from_s < ?"
        )
        gone = await self._store.query(sql, (first_hour * HOUR_S, end_hour * HOUR_S))
        spans = [_Span(*row) for row in gone] + [
            _Span(row.session_id, row.size_bytes, row.created_at.timestamp(), now_s)
            for row in present
        ]
        # Many checkpoints times many hours: not for the event loop.
        return await self._store.in_thread(lambda: _spread_all(spans, first_hour, end_hour))


def _spread_all(spans: list[_Span], first_hour: int, end_hour: int) -> dict[tuple[int, str], float]:
    found: dict[tuple[int, str], float] = {}
    for span in spans:
        _spread(span, first_hour, end_hour, found)
    return found


def _spread(
    span: _Span, first_hour: int, end_hour: int, found: dict[tuple[int, str], float]
) -> None:
    first = max(first_hour, int(span.from_s) // HOUR_S)
    for hour in range(first, min(end_hour, int(span.to_s) // HOUR_S + 1)):
        start_s = hour * HOUR_S
        inside_s = min(span.to_s, start_s + HOUR_S) - max(span.from_s, start_s)
        if inside_s > 0:
            key = (hour, span.session_id)
            found[key] = found.get(key, 0.0) + span.size_bytes * inside_s


def _pruning(hour: int) -> list[tuple[str, tuple[Any, ...]]]:
    oldest_s = hour * HOUR_S - KEPT_S
    return [
        ("DELETE FROM usage WHERE hour < ?", (oldest_s // HOUR_S,)),
        ("DELETE FROM stored WHERE to_s < ?", (oldest_s,)),
        ("DELETE FROM audit WHERE at_s < ?", (oldest_s,)),
    ]


def hour_start(hour: int) -> datetime:
    """Return when an hour begins."""
    return datetime.fromtimestamp(hour * HOUR_S, UTC)
