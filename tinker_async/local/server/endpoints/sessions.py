"""Health, capabilities, configuration and sessions."""

from __future__ import annotations

import contextlib

from starlette.requests import Request
from starlette.responses import Response

from tinker_async.data.results import GetServerCapabilitiesResponse, SupportedModel
from tinker_async.local.server.endpoints.routing import Handler, body_of
from tinker_async.local.server.eras import sends_in_order
from tinker_async.local.server.http import JSON, answer, parse
from tinker_async.local.server.refusal import Refusal
from tinker_async.local.server.service import Service
from tinker_async.wire.messages import (
    CreateSessionRequest,
    CreateSessionResponse,
    FinishReason,
    FinishSessionRequest,
    SessionHeartbeatRequest,
)

_REASONS = ("success", "errored", "interrupted")
_SUCCESS = FinishSessionRequest(FinishReason("success"))


async def health(_service: Service, _request: Request) -> Response:
    """Say that the server runs."""
    return answer({"status": "ok"})


async def capabilities(service: Service, _request: Request) -> Response:
    """Name the one base model."""
    model = SupportedModel(
        model_name=service.card.name,
        max_context_length=service.card.max_context_length,
        trainable=True,
        sampleable=True,
    )
    return answer(GetServerCapabilitiesResponse(supported_models=[model]))


async def client_config(service: Service, request: Request) -> Response:
    """Give the clients' limits and switches."""
    await body_of(service, request)
    return answer(service.flags.client)


async def dynamic_config(service: Service, request: Request) -> Response:
    """Give the switches that clients read again and again."""
    await body_of(service, request)
    return answer(service.flags.dynamic)


async def create_session(service: Service, request: Request) -> Response:
    """Open a session."""
    wanted = parse(await body_of(service, request), CreateSessionRequest)
    session = await service.open_session(
        tags=wanted.tags,
        user_metadata=wanted.user_metadata,
        display_name=wanted.display_name if isinstance(wanted.display_name, str) else None,
        project_id=wanted.project_id if isinstance(wanted.project_id, str) else None,
    )
    session.in_order = sends_in_order(request.headers)
    return answer(CreateSessionResponse(session_id=session.id))


async def heartbeat(service: Service, request: Request) -> Response:
    """Note that a client lives; 410 when its session does not."""
    beat = parse(await body_of(service, request), SessionHeartbeatRequest)
    service.session(beat.session_id, unknown_status=410)
    return answer({"type": "session_heartbeat"})


async def finish(service: Service, request: Request) -> Response:
    """End a session; the first reason counts, and a repetition is fine."""
    body = await body_of(service, request)
    wanted = parse(body, FinishSessionRequest) if body.data else _SUCCESS
    if wanted.reason.type not in _REASONS:
        raise Refusal(422, f"reason must be one of {', '.join(_REASONS)}", field="reason")
    session_id = request.path_params["session_id"]
    row = service.store.sessions.get(session_id)
    if row is None:
        raise Refusal(404, f"no session {session_id!r}", field="session_id")
    if service.is_live(session_id):
        await service.end_session(session_id, wanted.reason.type, wanted.detail)
    elif row.ended is None and not service.is_ending(session_id):
        # An earlier server died before it.
        row.ended, row.detail = wanted.reason.type, wanted.detail
        await service.store.put_session(row)
    return answer({})


async def telemetry(service: Service, request: Request) -> Response:
    """Take telemetry and forget it."""
    await body_of(service, request)
    return answer({"status": "accepted"})


async def tokenizer(service: Service, request: Request) -> Response:
    """Send the served model's `tokenizer.json`. Not part of the official protocol."""
    name = request.path_params["name"]
    if name == service.card.name:
        path = service.model_folder / "tokenizer.json"
        with contextlib.suppress(FileNotFoundError):
            return Response(await service.folders.in_thread(path.read_bytes), media_type=JSON)
    raise Refusal(404, f"no tokenizer for {name!r}", field="name")


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/healthz", health),
    ("GET", "/get_server_capabilities", capabilities),
    ("POST", "/client/config", client_config),
    ("POST", "/client/dynamic_config", dynamic_config),
    ("POST", "/create_session", create_session),
    ("POST", "/session_heartbeat", heartbeat),
    ("POST", "/sessions/{session_id}/finish", finish),
    ("POST", "/telemetry", telemetry),
    ("GET", "/tokenizers/{name:path}", tokenizer),
)
