"""Runs and checkpoints as listings show them. No bad time or unknown kind breaks a listing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import msgspec

from tinker_async.data.tolerant import MaybeTime, Tolerant

if TYPE_CHECKING:
    _Flag: TypeAlias = bool
else:
    _Flag: TypeAlias = bool | None  # some servers send null


class Cursor(msgspec.Struct, frozen=True):
    """Place in a listing."""

    offset: int
    limit: int
    total_count: int


class Checkpoint(Tolerant, frozen=True):
    """One saved checkpoint. `checkpoint_type` is `training`, `sampler` or `external` (or newer)."""

    checkpoint_id: str
    checkpoint_type: str
    time: MaybeTime
    """Aware; None if the server's cannot be read."""
    tinker_path: str
    size_bytes: int | None = None
    public: _Flag = False
    expires_at: MaybeTime = None
    """None: never."""
    user_metadata: dict[str, str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        msgspec.structs.force_setattr(self, "public", bool(self.public))

    _times: ClassVar[tuple[str, ...]] = ("time", "expires_at")


class TrainingRun(Tolerant, frozen=True):
    """One model's life on the server. `corrupted` is always a bool."""

    training_run_id: str
    base_model: str
    model_owner: str
    is_lora: bool
    last_request_time: MaybeTime
    """Aware; None if the server's cannot be read."""
    corrupted: _Flag = False
    lora_rank: int | None = None
    last_checkpoint: Checkpoint | None = None
    last_sampler_checkpoint: Checkpoint | None = None
    user_metadata: dict[str, str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        msgspec.structs.force_setattr(self, "corrupted", bool(self.corrupted))

    _times: ClassVar[tuple[str, ...]] = ("last_request_time",)


class TrainingRunsResponse(msgspec.Struct, frozen=True):
    """One page of training runs, newest first."""

    training_runs: list[TrainingRun]
    cursor: Cursor | None = None


class CheckpointsListResponse(msgspec.Struct, frozen=True):
    """One page of checkpoints; without `cursor` it is all there is."""

    checkpoints: list[Checkpoint]
    cursor: Cursor | None = None


class WeightsInfoResponse(msgspec.Struct, frozen=True):
    """What a checkpoint was trained on and how."""

    base_model: str
    is_lora: bool
    lora_rank: int | None = None
    train_unembed: bool | None = None
    train_mlp: bool | None = None
    train_attn: bool | None = None
    optimizer_config: dict[str, Any] = msgspec.field(default_factory=lambda: {"type": "adamw"})


class GetSamplerResponse(msgspec.Struct, frozen=True):
    """What a sampling session draws from; `model_path` is None for a base model."""

    sampler_id: str
    base_model: str
    model_path: str | None = None


class ExternalWeightsUrlsResponse(Tolerant, frozen=True):
    """Signed addresses of an external checkpoint's files."""

    urls: dict[str, str]
    """By the file's path below the checkpoint's root."""
    expires: MaybeTime

    _times: ClassVar[tuple[str, ...]] = ("expires",)


class CheckpointArchiveUrlResponse(Tolerant, frozen=True):
    """The signed address of a checkpoint's tar archive."""

    url: str
    expires: MaybeTime

    _times: ClassVar[tuple[str, ...]] = ("expires",)
