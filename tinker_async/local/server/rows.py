"""What the data directory remembers, as it is stored: one struct for each table of records.

New fields have defaults, so that what an earlier version wrote is still read.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from tinker_async.data.params import LoraConfig
from tinker_async.data.paths import KINDS, CheckpointPath
from tinker_async.data.records import Checkpoint, TrainingRun

OWNER = "tml:user:local"
"""The one principal of this server, whatever key it has."""

DEFAULT_PROJECT = "default"
"""Where a session is that was given no project."""

SILENT = "no heartbeat"
"""How a session ends whose client is gone."""


class SessionRow(msgspec.Struct):
    """A session as it is stored."""

    session_id: str
    created_at: datetime
    tags: list[str]
    user_metadata: dict[str, Any] | None = None
    display_name: str | None = None
    ended: str | None = None
    """How it ended, or None while it lives (or when the server died first)."""
    detail: str | None = None
    """What its client said about the end."""
    project_id: str | None = None

    @property
    def project(self) -> str:
        """The project that it counts for."""
        return self.project_id or DEFAULT_PROJECT

    @property
    def labels(self) -> dict[str, str] | None:
        """The user's metadata as listings show it: strings only."""
        return as_labels(self.user_metadata)


class RunRow(msgspec.Struct):
    """A training run as it is stored."""

    run_id: str
    session_id: str
    base_model: str
    lora: LoraConfig
    created_at: datetime
    last_request_at: datetime
    user_metadata: dict[str, Any] | None = None
    live: bool = False
    """Whether a model of it was in a server that has not ended in order since."""
    lost: str | None = None
    """Why it cannot go on: listings call it corrupted."""


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

    @property
    def session_id(self) -> str:
        """The session that it was saved in: run ids begin with it."""
        return self.run_id.partition(":")[0]

    def expired(self, time: datetime) -> bool:
        """Whether its time is over."""
        return self.expires_at is not None and self.expires_at <= time

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


def view_run(row: RunRow, checkpoints: list[CheckpointRow]) -> TrainingRun:
    """Return what listings show of a run.

    Args:
        row: The run.
        checkpoints: All of it, newest first.
    """
    newest: dict[str, Checkpoint] = {}
    for checkpoint in reversed(checkpoints):
        newest[checkpoint.kind] = checkpoint.public_view()
    return TrainingRun(
        training_run_id=row.run_id,
        base_model=row.base_model,
        model_owner="local",
        is_lora=True,
        corrupted=row.lost is not None,
        lora_rank=row.lora.rank,
        last_request_time=row.last_request_at,
        last_checkpoint=newest.get("weights"),
        last_sampler_checkpoint=newest.get("sampler_weights"),
        user_metadata=as_labels(row.user_metadata),
    )


def as_labels(metadata: dict[str, Any] | None) -> dict[str, str] | None:
    """Return metadata with strings for values, as listings show it."""
    return metadata and {key: str(value) for key, value in metadata.items()}
