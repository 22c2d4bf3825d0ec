"""Sessions as the server tells of them, and how each one ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import msgspec

from tinker_async.data.tolerant import MaybeTime, Tolerant, UnknownVariant, Variants


class ListSessionsResponse(msgspec.Struct, frozen=True):
    """One page of session ids."""

    sessions: list[str]


class GetSessionResponse(msgspec.Struct, frozen=True):
    """What a session has made."""

    training_run_ids: list[str]
    sampler_ids: list[str]
    user_metadata: dict[str, str] | None = None
    display_name: str | None = None


class SessionActive(msgspec.Struct, frozen=True):
    """The session goes on."""

    type: str = "active"


class SessionCancelled(msgspec.Struct, frozen=True):
    """The session was cancelled from the console."""

    detail: str | None = None
    type: str = "cancelled"


class ClientSessionFinishReason(msgspec.Struct, frozen=True):
    """How a client said that it ended: `success`, `errored`, `interrupted`, or newer."""

    type: str


class ClientSessionFinished(msgspec.Struct, frozen=True):
    """The session's client said that it was done."""

    reason: ClientSessionFinishReason
    detail: str | None = None
    type: str = "client_finished"


class SessionFailedRequestReason(msgspec.Struct, frozen=True):
    """A request of the session failed it."""

    request_id: str
    request_type: str
    type: str = "request"


class SessionFailedTrainingRunReason(msgspec.Struct, frozen=True):
    """A training run of the session failed it."""

    training_run_id: str
    type: str = "training_run"


class SessionFailedSamplingSessionReason(msgspec.Struct, frozen=True):
    """A sampling session of the session failed it."""

    sampling_session_id: str
    type: str = "sampling_session"


if TYPE_CHECKING:
    SessionFailedReason: TypeAlias = (
        SessionFailedRequestReason
        | SessionFailedTrainingRunReason
        | SessionFailedSamplingSessionReason
        | UnknownVariant
    )
    SessionStatus: TypeAlias = (
        "SessionActive | SessionCancelled | SessionFailed | ClientSessionFinished | UnknownVariant"
    )
else:
    SessionFailedReason: TypeAlias = Any  # read by `Tolerant`
    SessionStatus: TypeAlias = Any


class SessionFailed(Tolerant, frozen=True):
    """The session was failed by what it names. `category` is `user` or `internal`."""

    category: str
    message: str
    reason: SessionFailedReason | None = None
    type: str = "failed"

    _unions: ClassVar[Mapping[str, Variants]] = {
        "reason": {
            "request": SessionFailedRequestReason,
            "training_run": SessionFailedTrainingRunReason,
            "sampling_session": SessionFailedSamplingSessionReason,
        }
    }


class SessionSummary(Tolerant, frozen=True):
    """One session that a search has found."""

    session_id: str
    created_at: MaybeTime
    owner: str
    project_id: str
    checkpoints_count: int
    status: SessionStatus | None = None
    """None: neither finished nor known to go on."""
    display_name: str | None = None
    user_metadata: dict[str, str] | None = None
    checkpoint_storage_bytes: int | None = None

    _times: ClassVar[tuple[str, ...]] = ("created_at",)

    _unions: ClassVar[Mapping[str, Variants]] = {
        "status": {
            "active": SessionActive,
            "cancelled": SessionCancelled,
            "failed": SessionFailed,
            "client_finished": ClientSessionFinished,
        }
    }
