"""Sessions as listings and searches show them, and what the account has used and done."""

from __future__ import annotations

from datetime import UTC, date, datetime

from tinker_async.data.session_search import (
    ClientFinishedSessionStatusQuery,
    SessionSearchCursor,
    SessionSearchRequest,
    SessionSearchResponse,
    UserSearchOwner,
)
from tinker_async.data.sessions import (
    ClientSessionFinished,
    ClientSessionFinishReason,
    GetSessionResponse,
    ListSessionsResponse,
    SessionActive,
    SessionCancelled,
    SessionFailed,
    SessionStatus,
    SessionSummary,
)
from tinker_async.data.usage import (
    AuditLogResponse,
    BillingUsageResponse,
    BillingUsageSession,
    CurrentCheckpointStorageUsageItem,
    CurrentCheckpointStorageUsageResponse,
)
from tinker_async.testing.account import PROJECTS, USER
from tinker_async.testing.answers import Answer, Refusal, json_answer
from tinker_async.testing.endpoints_records import page
from tinker_async.testing.routing import Call, Route
from tinker_async.testing.state import SessionRecord, State
from tinker_async.wire.messages import SessionProjectRequest, TraceExportResponse

_FINISHES = ("success", "errored", "interrupted")
_CANCELLED = "cancelled"
"""How a session ends that is cancelled from the console; in any other way it has failed."""
_GIGABYTE = 1_000_000_000
_AUDITED = ("all", "checkpoints", "projects", "teams", "organizations")


def list_sessions(state: State, call: Call) -> Answer:
    """List session ids, newest first."""
    rows, _ = page(call, list(reversed(state.sessions)), 20)
    return json_answer(ListSessionsResponse(sessions=list(rows)))


def get_session(state: State, call: Call) -> Answer:
    """Name the training runs and samplers of a session."""
    session = _session(state, call)
    mine = f"{session.id}:"
    return json_answer(
        GetSessionResponse(
            training_run_ids=[run_id for run_id in state.runs if run_id.startswith(mine)],
            sampler_ids=[one for one in state.samplers if one.startswith(mine)],
            user_metadata=_metadata(session),
            display_name=session.display_name,
        )
    )


def search(state: State, call: Call) -> Answer:
    """Search sessions, newest first."""
    wanted = call.parse(SessionSearchRequest)
    if unknown := set(wanted.project_ids or ()) - set(PROJECTS):
        raise Refusal(403, f"no project {', '.join(sorted(unknown))} here")
    found = [one for one in reversed(state.sessions.values()) if _matches(one, wanted)]
    if wanted.cursor is not None:
        ids = [one.id for one in found]
        last = wanted.cursor.last_session_id
        if last not in ids:
            raise Refusal(400, "the cursor is not of this search")
        found = found[ids.index(last) + 1 :]
    rows = found[: wanted.limit]
    following = None
    if len(found) > len(rows):
        time = rows[-1].created_at.isoformat().replace("+00:00", "Z")
        following = SessionSearchCursor(last_created_at=time, last_session_id=rows[-1].id)
    sessions = [_summary(state, one) for one in rows]
    return json_answer(SessionSearchResponse(sessions=sessions, next_cursor=following))


def _matches(session: SessionRecord, wanted: SessionSearchRequest) -> bool:
    named = []
    if wanted.session_id is not None:
        named.append(session.id == wanted.session_id)
    if wanted.display_name is not None:
        name = (session.display_name or "").lower()
        named.append(all(word in name for word in wanted.display_name.lower().split()))
    metadata = _metadata(session)
    return (
        (not named or any(named))
        and (wanted.project_ids is None or session.project_id in wanted.project_ids)
        and wanted.user_metadata.items() <= metadata.items()
        and (not isinstance(wanted.owner, UserSearchOwner) or USER in wanted.owner.owner_urns)
        and (wanted.statuses is None or any(_has_status(session, one) for one in wanted.statuses))
    )


def _has_status(session: SessionRecord, query: object) -> bool:
    status = _status(session)
    if getattr(query, "type", None) != status.type:
        return False
    reasons = query.reasons if isinstance(query, ClientFinishedSessionStatusQuery) else None
    return reasons is None or session.ended in reasons


def _status(session: SessionRecord) -> SessionStatus:
    if session.ended is None:
        return SessionActive()
    if session.ended in _FINISHES:
        reason = ClientSessionFinishReason(type=session.ended)
        return ClientSessionFinished(reason=reason, detail=session.detail)
    if session.ended == _CANCELLED:
        return SessionCancelled()
    return SessionFailed(category="internal", message=session.ended)


def _summary(state: State, session: SessionRecord) -> SessionSummary:
    mine = [
        record.view()
        for record in state.checkpoints.values()
        if record.run.id.startswith(f"{session.id}:")
    ]
    return SessionSummary(
        session_id=session.id,
        created_at=session.created_at,
        owner=USER,
        project_id=session.project_id,
        checkpoints_count=len(mine),
        status=_status(session),
        display_name=session.display_name,
        user_metadata=_metadata(session),
        checkpoint_storage_bytes=sum(one.size_bytes or 0 for one in mine),
    )


def _metadata(session: SessionRecord) -> dict[str, str]:
    return {key: str(value) for key, value in (session.metadata or {}).items()}


def assign_project(state: State, call: Call) -> Answer:
    """Move a session into a project."""
    session, project = _session(state, call), call.parse(SessionProjectRequest).project_id
    if project not in PROJECTS:
        raise Refusal(403, f"no project {project!r} here")
    session.project_id = project
    state.account.note_event("project_assign", session_id=session.id, project_id=project)
    return Answer(204)


def trace_export(state: State, call: Call) -> Answer:
    """Build a trace: not ready when first asked for, ready after."""
    session = _session(state, call)
    session.trace_asked += 1
    if session.trace_asked <= 1:
        return json_answer(TraceExportResponse(status="pending"))
    url = f"https://traces.invalid/{session.id}.pftrace?signature=fake"
    return json_answer(TraceExportResponse(status="ready", url=url))


def billing_usage(state: State, call: Call) -> Answer:
    """List what was used, by hour."""
    data = state.account.usage(
        _time(call, "starting_on"), _time(call, "ending_before"), state.project_of
    )
    named = {event.session_id for event in data}
    sessions = {
        one.id: BillingUsageSession(user_metadata=_metadata(one))
        for one in state.sessions.values()
        if one.id in named
    }
    return json_answer(BillingUsageResponse(data=data, sessions=sessions))


def storage_usage(state: State, call: Call) -> Answer:
    """Say what is stored now, by project."""
    items = []
    for project in PROJECTS:
        if call.query.get("project_id") not in (None, project):
            continue
        sizes = [
            record.view().size_bytes or 0
            for record in state.checkpoints.values()
            if state.project_of_run(record.run) == project
        ]
        if sizes:
            items.append(
                CurrentCheckpointStorageUsageItem(
                    checkpoint_count=len(sizes),
                    size_bytes=sum(sizes),
                    size_gigabytes=sum(sizes) / _GIGABYTE,
                    project_id=project,
                    org_user_urn=USER,
                )
            )
    return json_answer(CurrentCheckpointStorageUsageResponse(data=items))


def audit(state: State, call: Call) -> Answer:
    """List what was done. All of it, unless a day is named: the fake server's days are its own."""
    kind, day = call.query.get("event_type", "all"), call.query.get("day")
    if kind not in _AUDITED:
        raise Refusal(422, f"event_type must be one of {', '.join(_AUDITED)}, got {kind!r}")
    try:
        wanted = None if day is None else date.fromisoformat(day)
    except ValueError as error:
        raise Refusal(422, f"day must be a date, got {day!r}") from error
    entries = [
        entry
        for entry in state.account.events
        if (kind == "all" or entry.event.startswith(f"{kind[:-1]}_"))
        and (wanted is None or (entry.timestamp and entry.timestamp.date() == wanted))
    ]
    return json_answer(AuditLogResponse(entries=entries))


def _session(state: State, call: Call) -> SessionRecord:
    session = state.sessions.get(call.ids[0])
    if session is None:
        raise Refusal(404, f"no session {call.ids[0]!r}")
    return session


def _time(call: Call, name: str) -> datetime:
    try:
        time = datetime.fromisoformat(call.query.get(name, ""))
    except ValueError as error:
        raise Refusal(422, f"{name} must be a time, got {call.query.get(name)!r}") from error
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


ROUTES = (
    Route("sessions", "GET", "sessions", list_sessions),
    Route("search_sessions", "POST", "sessions/search", search),
    Route("session", "GET", "sessions/{}", get_session),
    Route("session_project", "PUT", "sessions/{}/project", assign_project),
    Route("trace_export", "GET", "sessions/{}/trace_export", trace_export),
    Route("billing_usage", "GET", "billing/usage/events", billing_usage),
    Route("storage_usage", "GET", "billing/usage/checkpoints/current", storage_usage),
    Route("audit", "GET", "audit", audit),
)
