"""What an organisation has used, stores and did: answers for its administrators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import msgspec

from tinker_async.data.tolerant import MaybeTime, Tolerant, UnknownVariant, Variants


class TrainingBillingEvent(msgspec.Struct, frozen=True):
    """Tokens that forward and backward passes worked on."""

    token_count: int
    type: str = "training"


class SamplingPrefillBillingEvent(msgspec.Struct, frozen=True):
    """Tokens of prompts; `cached` ones were still known to the server."""

    cached: bool
    token_count: int
    type: str = "sampling_prefill"


class SamplingSampleBillingEvent(msgspec.Struct, frozen=True):
    """Tokens that were sampled."""

    token_count: int
    type: str = "sampling_sample"


class CheckpointBillingEvent(msgspec.Struct, frozen=True):
    """Checkpoints that were saved."""

    count: int
    type: str = "checkpoint"


class StorageBillingEvent(msgspec.Struct, frozen=True):
    """Checkpoints that were kept."""

    gigabyte_hours: float
    free: bool = False
    type: str = "storage"


if TYPE_CHECKING:
    BillingEventInfo: TypeAlias = (
        TrainingBillingEvent
        | SamplingPrefillBillingEvent
        | SamplingSampleBillingEvent
        | CheckpointBillingEvent
        | StorageBillingEvent
        | UnknownVariant
    )
else:
    BillingEventInfo: TypeAlias = Any  # read by `Tolerant`


class BillingUsageEvent(Tolerant, frozen=True):
    """One kind of use in one hour. Costs are estimates in US dollars before credits."""

    bucket_start: MaybeTime
    bucket_end: MaybeTime
    event_info: BillingEventInfo | None
    """What was used and how much, by its `type`; None if that cannot be read."""
    base_model: str | None = None
    user_id: str | None = None
    user_name: str | None = None
    session_id: str | None = None
    project_id: str | None = None
    estimated_cost_usd: float | None = None
    effective_rate_usd_per_million_tokens: float | None = None
    effective_rate_usd_per_gigabyte_month: float | None = None

    _times: ClassVar[tuple[str, ...]] = ("bucket_start", "bucket_end")

    _unions: ClassVar[Mapping[str, Variants]] = {
        "event_info": {
            "training": TrainingBillingEvent,
            "sampling_prefill": SamplingPrefillBillingEvent,
            "sampling_sample": SamplingSampleBillingEvent,
            "checkpoint": CheckpointBillingEvent,
            "storage": StorageBillingEvent,
        }
    }


class BillingUsageSession(msgspec.Struct, frozen=True):
    """What a session that is billed said of itself."""

    user_metadata: dict[str, str] | None = None


class BillingUsageResponse(Tolerant, frozen=True):
    """Usage by hour, with the sessions that it names."""

    data: list[BillingUsageEvent]
    sessions: dict[str, BillingUsageSession] = msgspec.field(default_factory=dict)
    cost_data_through: MaybeTime = None
    """Costs before it are from invoices, later ones from the published rates."""

    _times: ClassVar[tuple[str, ...]] = ("cost_data_through",)


class CurrentCheckpointStorageUsageItem(msgspec.Struct, frozen=True):
    """Checkpoints of one project and one owner."""

    checkpoint_count: int
    size_bytes: int
    size_gigabytes: float
    project_id: str | None = None
    org_user_urn: str | None = None
    user_email: str | None = None
    user_name: str | None = None
    estimated_monthly_cost_usd: float | None = None


class CurrentCheckpointStorageUsageResponse(msgspec.Struct, frozen=True):
    """What is stored now."""

    data: list[CurrentCheckpointStorageUsageItem]
    effective_rate_usd_per_gigabyte_month: float | None = None


class AuditLogEntry(Tolerant, frozen=True):
    """One thing that somebody did; `event` is `<resource>_<action>`."""

    timestamp: MaybeTime
    event: str
    event_details: dict[str, Any] = msgspec.field(default_factory=dict)
    model_id: str | None = None
    tinker_path: str | None = None
    purpose: str | None = None

    _times: ClassVar[tuple[str, ...]] = ("timestamp",)


class AuditLogResponse(msgspec.Struct, frozen=True):
    """What happened on a day, in order."""

    entries: list[AuditLogEntry]
