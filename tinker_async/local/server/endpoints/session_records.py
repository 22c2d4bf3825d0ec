"""What is remembered of sessions: lists, search, their project, samplers and traces."""

from __future__ import annotations

from datetime import datetime

from starlette.requests import Request
from starlette.responses import Response

from tinker_async.data.records import GetSamplerResponse
from tinker_async.data.session_search import (
    ActiveSessionStatusQuery,
    ClientFinishedSessionStatusQuery,
    SessionSearchCursor,
    SessionSearchRequest,
    SessionSearchResponse,
    SessionStatusQuery,
    UserSearchOwner,
)
from tinker_async.data.sessions import (
    ClientSessionFinished,
    ClientSessionFinishReason,
    GetSessionResponse,
    ListSessionsResponse,
    SessionActive,
    SessionSummary,
)
from tinker_async.data.tolerant import parse_time
from tinker_async.errors import InvalidInputError
from tinker_async.local.server.credentials import DOWNLOADS
from tinker_async.local.server.endpoints.routing import Handler, body_of, check_scope, page
from tinker_async.local.server.http import answer, parse
from tinker_async.local.server.refusal import Refusal
from tinker_async.local.server.rows import OWNER, SILENT, CheckpointRow, SessionRow
from tinker_async.local.server.service import Service
from tinker_async.wire.messages import SessionProjectRequest, TraceExportResponse

_LONGEST_ID = 256


async def list_sessions(service: Service, request: Request) -> Response:
    """List session ids, newest first."""
    check_scope(request)
    ids = list(reversed(service.store.sessions))
    rows, _cursor = page(request, ids, default_limit=20)
    return answer(ListSessionsResponse(sessions=list(rows)))


async def get_session(service: Service, request: Request) -> Response:
    """Name the training runs and samplers of a session, over or not."""
    check_scope(request)
    row = _session(service, request)
    samplers = await service.ledger.samplers_of(row.session_id)
    runs = service.store.runs.values()
    return answer(
        GetSessionResponse(
            training_run_ids=[run.run_id for run in runs if run.session_id == row.session_id],
            sampler_ids=samplers,
            user_metadata=row.labels,
            display_name=row.display_name,
        )
    )


async def set_project(service: Service, request: Request) -> Response:
    """Move a session to a project: any name will do, projects are only labels here."""
    body = await body_of(service, request)
    if not body.data:
        raise Refusal(400, "project_id is missing", field="project_id")
    try:
        project_id = parse(body, SessionProjectRequest).project_id
    except Refusal as refusal:
        raise Refusal(400, refusal.detail, field="project_id") from refusal
    if not 0 < len(project_id.strip()) <= _LONGEST_ID:
        raise Refusal(400, "project_id must be a name that is not empty", field="project_id")
    row = _session(service, request)
    before = row.project
    row.project_id = project_id
    await service.store.put_session(row)
    service.ledger.event(
        "project_session_assigned",
        {"session_id": row.session_id, "project_id": project_id, "from_project_id": before},
    )
    return Response(status_code=204)


async def get_sampler(service: Service, request: Request) -> Response:
    """Describe a sampling session, over or not."""
    sampler_id = request.path_params["sampler_id"]
    found = await service.ledger.find_sampler(sampler_id)
    if found is None:
        raise Refusal(404, f"no sampling session {sampler_id!r}", field="sampling_session_id")
    return answer(
        GetSamplerResponse(sampler_id=sampler_id, base_model=service.card.name, model_path=found[0])
    )


async def export_trace(service: Service, request: Request) -> Response:
    """Give the address of a session's trace. It is there at once, or never."""
    session_id = _session(service, request).session_id
    if service.meter.export(session_id) is None:
        error = (
            "nothing of this session is recorded: it has asked nothing of the engine since the "
            "server was started, or many newer sessions have"
        )
        return answer(TraceExportResponse(status="failed", error=error))
    path = f"{DOWNLOADS}traces/{session_id}.json"
    link = service.credentials.link(str(request.base_url), path)
    return answer(TraceExportResponse(status="ready", url=link.url))


def _session(service: Service, request: Request) -> SessionRow:
    session_id = request.path_params["session_id"]
    row = service.store.sessions.get(session_id)
    if row is None:
        raise Refusal(404, f"no session {session_id!r}", field="session_id")
    return row


async def search(service: Service, request: Request) -> Response:
    """Search the sessions, newest first, page by page."""
    body = await body_of(service, request)
    try:
        wanted = parse(body, SessionSearchRequest)
    except InvalidInputError as error:
        raise Refusal(422, str(error), field=error.field) from error
    return answer(_search(service, wanted))


def _search(service: Service, wanted: SessionSearchRequest) -> SessionSearchResponse:
    rows = [row for row in service.store.sessions.values() if _matches(service, row, wanted)]
    rows.sort(key=_place, reverse=True)
    if wanted.cursor is not None:
        after = _cursor(wanted.cursor)
        rows = [row for row in rows if _place(row) < after]
    checkpoints: dict[str, list[CheckpointRow]] = {}
    for checkpoint in service.shelf.all():
        checkpoints.setdefault(checkpoint.session_id, []).append(checkpoint)
    here = rows[: wanted.limit]
    more = len(rows) > wanted.limit
    return SessionSearchResponse(
        sessions=[_summary(service, row, checkpoints.get(row.session_id, [])) for row in here],
        next_cursor=SessionSearchCursor(here[-1].created_at.isoformat(), here[-1].session_id)
        if more
        else None,
    )


def _place(row: SessionRow) -> tuple[datetime, str]:
    return row.created_at, row.session_id


def _cursor(cursor: SessionSearchCursor) -> tuple[datetime, str]:
    time = parse_time(cursor.last_created_at)
    if time is None:
        raise Refusal(422, "last_created_at is not a time", field="cursor")
    return time, cursor.last_session_id


def _matches(service: Service, row: SessionRow, wanted: SessionSearchRequest) -> bool:
    if isinstance(wanted.owner, UserSearchOwner) and OWNER not in wanted.owner.owner_urns:
        return False
    if wanted.project_ids is not None and row.project not in wanted.project_ids:
        return False
    labels = row.labels or {}
    if any(labels.get(key) != value for key, value in wanted.user_metadata.items()):
        return False
    if wanted.statuses is not None and not any(
        _has_status(service, row, status) for status in wanted.statuses
    ):
        return False
    return _is_named(row, wanted)


def _is_named(row: SessionRow, wanted: SessionSearchRequest) -> bool:
    """The id and the display name: either is enough when both are asked for."""
    if wanted.session_id is None and wanted.display_name is None:
        return True
    if wanted.session_id == row.session_id:
        return True
    if wanted.display_name is None or row.display_name is None:
        return False
    name = row.display_name.lower()
    return all(word in name for word in wanted.display_name.lower().split())


def _has_status(service: Service, row: SessionRow, status: SessionStatusQuery) -> bool:
    if isinstance(status, ActiveSessionStatusQuery):
        return service.is_live(row.session_id)
    if isinstance(status, ClientFinishedSessionStatusQuery):
        return _finished(row) and (status.reasons is None or row.ended in status.reasons)
    return False  # nothing here cancels or fails a session


def _finished(row: SessionRow) -> bool:
    return row.ended is not None and row.ended != SILENT


def _status(service: Service, row: SessionRow) -> SessionActive | ClientSessionFinished | None:
    if service.is_live(row.session_id):
        return SessionActive()
    if row.ended is not None and _finished(row):
        return ClientSessionFinished(ClientSessionFinishReason(row.ended), detail=row.detail)
    return None


def _summary(service: Service, row: SessionRow, checkpoints: list[CheckpointRow]) -> SessionSummary:
    return SessionSummary(
        session_id=row.session_id,
        created_at=row.created_at,
        owner=OWNER,
        project_id=row.project,
        checkpoints_count=len(checkpoints),
        status=_status(service, row),
        display_name=row.display_name,
        user_metadata=row.labels,
        checkpoint_storage_bytes=sum(checkpoint.size_bytes for checkpoint in checkpoints),
    )


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/sessions", list_sessions),
    ("POST", "/sessions/search", search),
    ("GET", "/sessions/{session_id}", get_session),
    ("PUT", "/sessions/{session_id}/project", set_project),
    ("GET", "/sessions/{session_id}/trace_export", export_trace),
    ("GET", "/samplers/{sampler_id}", get_sampler),
)
