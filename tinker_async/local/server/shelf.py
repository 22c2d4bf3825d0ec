"""The checkpoints that exist: found, changed, replaced, removed, and over at their stated time.

A checkpoint whose time is over is gone at once for whoever looks, and its files when the next
sweep comes. Changes take turns and look again before they write: a checkpoint that was
deleted or replaced meanwhile is not brought back by a change of the old one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import anyio
import msgspec

from tinker_async.local.server.folders import Folders
from tinker_async.local.server.ledger import Ledger
from tinker_async.local.server.refusal import Refusal
from tinker_async.local.server.rows import CheckpointRow
from tinker_async.local.server.store import Store

SHORTEST_TTL_S = 3600
LONGEST_TTL_S = 315_360_000
"""Ten years."""


class Shelf:
    """All checkpoints of the data directory. Deletes and changes are written to the ledger too."""

    def __init__(
        self, store: Store, folders: Folders, ledger: Ledger, clock: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._folders = folders
        self._ledger = ledger
        self._clock = clock
        self._turn = anyio.Lock()

    def get(self, path: str) -> CheckpointRow | None:
        """Return a checkpoint by its path, or None when there is none or its time is over."""
        row = self._store.checkpoints.get(path)
        return None if row is None or row.expired(self._clock()) else row

    def all(self) -> list[CheckpointRow]:
        """Return all checkpoints, newest first."""
        time = self._clock()
        rows = [row for row in self._store.checkpoints.values() if not row.expired(time)]
        rows.sort(key=lambda row: row.created_at)
        return rows[::-1]  # of two with one time the later one first

    def by_run(self) -> dict[str, list[CheckpointRow]]:
        """Return the checkpoints of each run that has any, newest first."""
        found: dict[str, list[CheckpointRow]] = {}
        for row in self.all():
            found.setdefault(row.run_id, []).append(row)
        return found

    def of_run(self, run_id: str) -> list[CheckpointRow]:
        """Return the checkpoints of a run, newest first."""
        return [row for row in self.all() if row.run_id == run_id]

    def expiry(self, ttl_seconds: int | None) -> datetime | None:
        """Return when a checkpoint with this time to live expires, or None for never.

        Raises:
            Refusal: 422, not between an hour and ten years.
        """
        if ttl_seconds is None:
            return None
        if not SHORTEST_TTL_S <= ttl_seconds <= LONGEST_TTL_S:
            raise Refusal(
                422,
                f"ttl_seconds must be between {SHORTEST_TTL_S} and {LONGEST_TTL_S}, "
                f"got {ttl_seconds}",
                field="ttl_seconds",
            )
        return self._clock() + timedelta(seconds=ttl_seconds)

    async def keep(self, row: CheckpointRow, *, event: str = "saved") -> None:
        """Store a new checkpoint whose folder is in its place; an old one of its path goes."""
        async with self._turn:
            old = self._store.checkpoints.get(row.path)
            try:
                if old is not None:
                    await self._folders.doom(old.folder)
                await self._store.put_checkpoint(row)
            except sqlite3.Error:
                await self._folders.remove(row.folder)
                raise
            self._ledger.count(row.session_id, checkpoint=1)
            self._ledger.checkpoint_event(event, row, size_bytes=row.size_bytes)
            if old is not None:
                self._gone(old, "overwritten")
        await self._folders.keep(row.folder)
        if old is not None:
            await self._folders.remove(old.folder)

    async def change(
        self, row: CheckpointRow, event: str, decide: Callable[[CheckpointRow], dict[str, Any]]
    ) -> None:
        """Change fields of a checkpoint.

        Args:
            row: The checkpoint as it was found.
            event: What is written to the audit log.
            decide: Gets the checkpoint as it is now and returns the new values; may refuse.

        Raises:
            Refusal: 404, it is gone meanwhile; or what `decide` raised.
        """
        async with self._turn:
            current = self.get(row.path)
            if current is None:
                raise no_checkpoint(row.path)
            changes = decide(current)
            await self._store.put_checkpoint(msgspec.structs.replace(current, **changes))
            self._ledger.checkpoint_event(event, current)

    async def delete(self, row: CheckpointRow) -> None:
        """Forget a checkpoint, then remove its folder: it is never listed without its files.

        On a disk so full that not even this can be written the folder goes first, to make room. A
        kill between the two leaves a row without a folder, which a restart does not list.

        Raises:
            Refusal: 404, somebody else deleted or replaced it meanwhile.
        """
        if not await self._delete(row, "deleted", lambda current: current.folder == row.folder):
            raise no_checkpoint(row.path)

    async def sweep(self) -> None:
        """Delete the checkpoints whose time is over."""
        time = self._clock()
        for row in [row for row in self._store.checkpoints.values() if row.expired(time)]:
            await self._delete(row, "expired", lambda current: current.expired(self._clock()))

    async def _delete(
        self, row: CheckpointRow, event: str, wanted: Callable[[CheckpointRow], bool]
    ) -> bool:
        async with self._turn:
            current = self._store.checkpoints.get(row.path)
            if current is None or not wanted(current):
                return False
            await self._folders.doom(current.folder)
            try:
                await self._store.delete_checkpoint(current.path)
            except sqlite3.Error:
                await self._folders.remove(current.folder)
                await self._store.delete_checkpoint(current.path)
            self._gone(current, event)
        await self._folders.remove(current.folder)
        return True

    def _gone(self, row: CheckpointRow, event: str) -> None:
        time = self._clock()
        until = time if row.expires_at is None else min(time, row.expires_at)
        self._ledger.stored(row, until)
        self._ledger.checkpoint_event(event, row, size_bytes=row.size_bytes)


def no_checkpoint(path: str, *, field: str = "checkpoint_id") -> Refusal:
    """Return the refusal for a checkpoint that does not exist."""
    return Refusal(404, f"no checkpoint {path}", field=field)
