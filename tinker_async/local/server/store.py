"""What survives a restart: sessions, training runs, checkpoints and the ledger, in one SQLite file.

Of the first three memory is the truth while the server runs and is read without waiting; each
change is written to SQLite before it is acknowledged, by one worker thread, since a commit may
wait for the disk while the event loop holds hundreds of polls.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import msgspec

from tinker_async.errors import ConfigError
from tinker_async.local.server.rows import CheckpointRow, RunRow, SessionRow

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (id TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS runs (id TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS checkpoints (path TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS samplers
    (id TEXT PRIMARY KEY, session_id TEXT NOT NULL, model_path TEXT) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS samplers_of_session ON samplers (session_id);
CREATE TABLE IF NOT EXISTS usage
    (hour INTEGER, kind TEXT, session_id TEXT, amount INTEGER NOT NULL,
     PRIMARY KEY (hour, kind, session_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS stored
    (session_id TEXT NOT NULL, size_bytes INTEGER NOT NULL, from_s REAL NOT NULL, to_s REAL NOT NULL);
CREATE TABLE IF NOT EXISTS audit (at_s REAL NOT NULL, body BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS audit_by_time ON audit (at_s);
"""

T = TypeVar("T", bound=msgspec.Struct)
R = TypeVar("R")


class Store:
    """The tables, and of the records a picture in memory.

    A write gives its change to memory only after SQLite has it. A checkpoint whose folder was
    taken away is not shown, and shown again by the next server if the folder is back.
    """

    def __init__(self, data_dir: Path) -> None:
        """Open or create the file. Blocks; call it in a thread.

        Raises:
            ConfigError: The file is not ours, or broken.
        """
        self._limiter: anyio.CapacityLimiter | None = None
        file = data_dir / "engine.sqlite3"
        try:
            db = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise _unusable(file, error) from error
        self._db = db
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            self.sessions = {row.session_id: row for row in self._load("sessions", SessionRow)}
            self.runs = {row.run_id: row for row in self._load("runs", RunRow)}
            rows = list(self._load("checkpoints", CheckpointRow))
        except (sqlite3.Error, msgspec.DecodeError) as error:
            db.close()
            raise _unusable(file, error) from error
        self._folders = {row.folder for row in rows}
        self.checkpoints = {row.path: row for row in rows if (data_dir / row.folder).is_dir()}

    def folders(self) -> set[str]:
        """Return the folders that stored checkpoints had when the file was opened."""
        return self._folders

    def _load(self, table: str, type_: type[T]) -> Iterable[T]:
        for (body,) in self._db.execute(f"SELECT body FROM {table} ORDER BY rowid"):  # noqa: S608  # our own table names
            yield msgspec.json.decode(body, type=type_)

    async def in_thread(self, work: Callable[[], R]) -> R:
        """Run work in the one thread of the database, and return what it returns."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(1)  # SQLite has one writer anyway
        # Shielded by anyio: a write that has begun ends before the caller goes on.
        return await anyio.to_thread.run_sync(work, limiter=self._limiter)

    async def _put(self, table: str, key: str, row: msgspec.Struct) -> None:
        sql, values = _upsert(table, key, row)
        await self.in_thread(lambda: self._db.execute(sql, values))

    async def put_session(self, row: SessionRow) -> None:
        """Write a session."""
        await self._put("sessions", row.session_id, row)
        self.sessions[row.session_id] = row

    async def put_run(self, row: RunRow) -> None:
        """Write a training run."""
        await self._put("runs", row.run_id, row)
        self.runs[row.run_id] = row

    async def put_runs(self, rows: Sequence[RunRow]) -> None:
        """Write many training runs, all of them or none."""
        await self.batch([_upsert("runs", row.run_id, row) for row in rows])
        self.runs.update({row.run_id: row for row in rows})

    async def put_checkpoint(self, row: CheckpointRow) -> None:
        """Write a checkpoint: from here on it exists."""
        await self._put("checkpoints", row.path, row)
        self.checkpoints[row.path] = row

    async def delete_checkpoint(self, path: str) -> None:
        """Forget a checkpoint; its files are the caller's."""
        await self.in_thread(
            lambda: self._db.execute("DELETE FROM checkpoints WHERE path = ?", (path,))
        )
        self.checkpoints.pop(path, None)

    async def batch(self, statements: Sequence[tuple[str, tuple[Any, ...]]]) -> None:
        """Carry out many statements as one transaction: all of them or none."""

        def work() -> None:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for sql, values in statements:
                    self._db.execute(sql, values)
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

        await self.in_thread(work)

    async def query(self, sql: str, values: tuple[Any, ...]) -> list[Any]:
        """Return the rows of a SELECT, as tuples."""
        return await self.in_thread(lambda: self._db.execute(sql, values).fetchall())

    def close(self) -> None:
        """Close the file. Blocks for a moment."""
        self._db.close()


def _upsert(table: str, key: str, row: msgspec.Struct) -> tuple[str, tuple[Any, ...]]:
    column = "path" if table == "checkpoints" else "id"
    sql = (
        f"INSERT INTO {table} ({column}, body) VALUES (?, ?) "  # noqa: S608  # our own table names
        f"ON CONFLICT ({column}) DO UPDATE SET body = excluded.body"
    )
    return sql, (key, msgspec.json.encode(row))


def _unusable(file: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"{file} cannot be used: {error}", hint="give another directory with --data-dir"
    )


def now() -> datetime:
    """Return the time of day, in UTC: stored and shown, never used to measure."""
    return datetime.now(UTC)
