"""What was used, what is stored and who did what, from the server's own ledger. Nothing costs."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, date, datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tinker_async.data.usage import (
    AuditLogEntry,
    AuditLogResponse,
    BillingUsageEvent,
    BillingUsageResponse,
    BillingUsageSession,
    CheckpointBillingEvent,
    CurrentCheckpointStorageUsageItem,
    CurrentCheckpointStorageUsageResponse,
    SamplingPrefillBillingEvent,
    SamplingSampleBillingEvent,
    StorageBillingEvent,
    TrainingBillingEvent,
)
from tinker_async.local.server.endpoints.routing import Handler
from tinker_async.local.server.http import answer
from tinker_async.local.server.ledger import HOUR_S, Usage, hour_start
from tinker_async.local.server.refusal import Refusal
from tinker_async.local.server.rows import OWNER
from tinker_async.local.server.service import Service

_LONGEST_WINDOW = timedelta(days=14)
_GIGABYTE = 1e9
_RESOURCES = {
    "all": "",
    "checkpoints": "checkpoint_",
    "projects": "project_",
    "teams": "team_",
    "organizations": "organization_",
}


async def usage_events(service: Service, request: Request) -> Response:
    """Tell the usage of up to 14 days, by hour and session."""
    first, end = _window(service, request)
    used = await service.ledger.usage(first, end)
    stored = await service.ledger.byte_seconds(first, end, service.shelf.all())
    events = [_event(service, one.hour, one.session_id, _counted(one)) for one in used]
    events += [
        _event(service, hour, session_id, StorageBillingEvent(amount / _GIGABYTE / HOUR_S))
        for (hour, session_id), amount in stored.items()
    ]
    events.sort(key=_order)
    named = {event.session_id for event in events}
    sessions = {
        session_id: BillingUsageSession(user_metadata=row.labels)
        for session_id, row in service.store.sessions.items()
        if session_id in named
    }
    return answer(BillingUsageResponse(data=events, sessions=sessions))


def _window(service: Service, request: Request) -> tuple[int, int]:
    start, end = _time(request, "starting_on"), _time(request, "ending_before")
    if start > service.clock():
        raise Refusal(400, "starting_on is in the future", field="starting_on")
    if end <= start:
        raise Refusal(400, "ending_before must be after starting_on", field="ending_before")
    if end - start > _LONGEST_WINDOW:
        raise Refusal(400, "more than 14 days were asked for", field="ending_before")
    return int(start.timestamp()) // HOUR_S, int(end.timestamp()) // HOUR_S


def _time(request: Request, name: str) -> datetime:
    text = request.query_params.get(name, "")
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise Refusal(422, f"{name} must be an RFC 3339 time, got {text!r}", field=name) from error
    time = time.replace(tzinfo=UTC) if time.tzinfo is None else time
    if time.timestamp() % HOUR_S:
        raise Refusal(400, f"{name} must be at a full hour of UTC", field=name)
    return time


def _counted(used: Usage) -> Any:
    if used.kind == "training":
        return TrainingBillingEvent(used.amount)
    if used.kind == "sample":
        return SamplingSampleBillingEvent(used.amount)
    if used.kind == "checkpoint":
        return CheckpointBillingEvent(used.amount)
    return SamplingPrefillBillingEvent(
        cached=used.kind == "prefill_cached", token_count=used.amount
    )


def _event(service: Service, hour: int, session_id: str, info: Any) -> BillingUsageEvent:
    return BillingUsageEvent(
        bucket_start=hour_start(hour),
        bucket_end=hour_start(hour + 1),
        event_info=info,
        base_model=service.card.name,
        user_id=OWNER,
        session_id=session_id,
        project_id=service.project_of(session_id),
        estimated_cost_usd=0.0,
    )


def _order(event: BillingUsageEvent) -> tuple[datetime, int]:
    start = event.bucket_start or datetime.min.replace(tzinfo=UTC)
    return start, -getattr(event.event_info, "token_count", 0)


async def storage_now(service: Service, request: Request) -> Response:
    """Tell what is stored now, by project."""
    wanted = request.query_params.get("project_id")
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for row in service.shelf.all():
        project = service.project_of(row.session_id)
        if not wanted or wanted == project:
            counts[project] += 1
            sizes[project] += row.size_bytes
    return answer(
        CurrentCheckpointStorageUsageResponse(
            data=[
                CurrentCheckpointStorageUsageItem(
                    checkpoint_count=count,
                    size_bytes=sizes[project],
                    size_gigabytes=sizes[project] / _GIGABYTE,
                    project_id=project,
                    org_user_urn=OWNER,
                    estimated_monthly_cost_usd=0.0,
                )
                for project, count in sorted(counts.items())
            ],
        )
    )


async def audit(service: Service, request: Request) -> Response:
    """Tell what was done on a day of UTC, oldest first."""
    kind = request.query_params.get("event_type", "all")
    if kind not in _RESOURCES:
        raise Refusal(422, f"event_type must be one of {', '.join(_RESOURCES)}", field="event_type")
    text = request.query_params.get("day")
    try:
        day = date.fromisoformat(text) if text else service.clock().astimezone(UTC).date()
        first = datetime(day.year, day.month, day.day, tzinfo=UTC)
        end = first + timedelta(days=1)
    except (ValueError, OverflowError) as error:
        raise Refusal(
            422, f"day must be a date such as 2026-11-22, got {text!r}", field="day"
        ) from error
    found = await service.ledger.audit(first, end)
    prefix = _RESOURCES[kind]
    entries = [
        AuditLogEntry(
            timestamp=entry.timestamp,
            event=entry.event,
            event_details={"user_urn": OWNER, **entry.event_details},
            model_id=entry.model_id,
            tinker_path=entry.tinker_path,
            purpose=entry.purpose,
        )
        for entry in found
        if entry.event.startswith(prefix)
    ]
    return answer(AuditLogResponse(entries=entries))


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/billing/usage/events", usage_events),
    ("GET", "/billing/usage/checkpoints/current", storage_now),
    ("GET", "/audit", audit),
)
