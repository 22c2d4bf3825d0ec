"""What survives a restart: sessions, training runs and checkpoints, in one SQLite file.

Memory is the truth while the server runs and is read without waiting; each change is
written to SQLite before it is acknowledged, by one worker thread, since a commit may
wait for the disk while the event loop holds hundreds of polls.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import msgspec

from tinker_async.data.params import LoraConfig
from tinker_async.data.paths import KINDS, CheckpointPath
from tinker_async.data.results import Checkpoint, TrainingRun
from tinker_async.errors import ConfigError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (id TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS runs (id TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS checkpoints (path TEXT PRIMARY KEY, body BLOB NOT NULL);
"""

T = TypeVar("T", bound=msgspec.Struct)


class SessionRow(msgspec.Struct):
    """A session as it is stored."""

    session_id: str
    created_at: datetime
    tags: list[str]
    user_metadata: dict[str, Any] | None = None
    display_name: str | None = None
    ended: str | None = None
    """How it ended, or None while it lives (or when the server died first)."""


class RunRow(msgspec.Struct):
    """A training run as it is stored."""

    run_id: str
    session_id: str
    base_model: str
    lora: LoraConfig
    created_at: datetime
    last_request_at: datetime
    user_metadata: dict[str, Any] | None = None


class CheckpointRow(msgspec.Struct):
    """A checkpoint as it is stored. `folder` is relative to the data directory."""

    run_id: str
    kind: str
    name: str
    folder: str
    base_model: str
    lora: LoraConfig
    created_at: datetime
    size_bytes: int
    public: bool = False
    expires_at: datetime | None = None
    user_metadata: dict[str, str] | None = None

    @property
    def path(self) -> str:
        """The `tinker://` path."""
        return str(CheckpointPath(self.run_id, self.kind, self.name))

    def public_view(self) -> Checkpoint:
        """Return what listings show."""
        return Checkpoint(
            checkpoint_id=f"{self.kind}/{self.name}",
            checkpoint_type=KINDS[self.kind],
            time=self.created_at,
            tinker_path=self.path,
            size_bytes=self.size_bytes,
            public=self.public,
            expires_at=self.expires_at,
            user_metadata=self.user_metadata,
        )


class Store:
    """The three tables and their picture in memory.

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

    async def _in_thread(self, work: Callable[[], object]) -> None:
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(1)  # SQLite has one writer anyway
        # Shielded by anyio: a write that has begun ends before the caller goes on.
        await anyio.to_thread.run_sync(work, limiter=self._limiter)

    async def _put(self, table: str, key: str, row: msgspec.Struct) -> None:
        column = "path" if table == "checkpoints" else "id"
        body = msgspec.json.encode(row)
        sql = (
            f"INSERT INTO {table} ({column}, body) VALUES (?, ?) "  # noqa: S608  # our own table names
            f"ON CONFLICT ({column}) DO UPDATE SET body = excluded.body"
        )
        await self._in_thread(lambda: self._db.execute(sql, (key, body)))

    async def put_session(self, row: SessionRow) -> None:
        """Write a session."""
        await self._put("sessions", row.session_id, row)
        self.sessions[row.session_id] = row

    async def put_run(self, row: RunRow) -> None:
        """Write a training run."""
        await self._put("runs", row.run_id, row)
        self.runs[row.run_id] = row

    async def put_checkpoint(self, row: CheckpointRow) -> None:
        """Write a checkpoint: from here on it exists."""
        await self._put("checkpoints", row.path, row)
        self.checkpoints[row.path] = row

    async def delete_checkpoint(self, path: str) -> None:
        """Forget a checkpoint; its files are the caller's."""
        await self._in_thread(
            lambda: self._db.execute("DELETE FROM checkpoints WHERE path = ?", (path,))
        )
        self.checkpoints.pop(path, None)

    def checkpoints_of(self, run_id: str) -> list[CheckpointRow]:
        """Return the checkpoints of a run, oldest first."""
        return [row for row in self.checkpoints.values() if row.run_id == run_id]

    def view_run(self, row: RunRow) -> TrainingRun:
        """Return what listings show of a run."""
        newest: dict[str, Checkpoint] = {}
        for checkpoint in sorted(self.checkpoints_of(row.run_id), key=lambda c: c.created_at):
            newest[checkpoint.kind] = checkpoint.public_view()
        metadata = row.user_metadata
        return TrainingRun(
            training_run_id=row.run_id,
            base_model=row.base_model,
            model_owner="local",
            is_lora=True,
            lora_rank=row.lora.rank,
            last_request_time=row.last_request_at,
            last_checkpoint=newest.get("weights"),
            last_sampler_checkpoint=newest.get("sampler_weights"),
            user_metadata=metadata and {key: str(value) for key, value in metadata.items()},
        )

    def close(self) -> None:
        """Close the file. Blocks for a moment."""
        self._db.close()


def _unusable(file: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"{file} cannot be used: {error}", hint="give another directory with --data-dir"
    )


def now() -> datetime:
    """Return the time of day, in UTC: stored and shown, never used to measure."""
    return datetime.now(UTC)
