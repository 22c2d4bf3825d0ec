"""Health, capabilities, configuration and sessions."""

from __future__ import annotations

import contextlib
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tinker_async.data.results import GetServerCapabilitiesResponse, SupportedModel
from tinker_async.local.server.endpoints.routing import Handler, body_of, page
from tinker_async.local.server.http import JSON, answer, parse
from tinker_async.local.server.refusal import Refusal
from tinker_async.local.server.service import Service
from tinker_async.wire.messages import (
    ClientConfigResponse,
    CreateSessionRequest,
    CreateSessionResponse,
    DynamicConfigResponse,
    FinishSessionRequest,
    SessionHeartbeatRequest,
)


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
    """Give the clients' limits. Compression would only burn the CPU that trains."""
    await body_of(service, request)
    return answer(ClientConfigResponse(parallel_fwdbwd_chunks=True))


async def dynamic_config(service: Service, request: Request) -> Response:
    """Give the switches that clients read again and again."""
    await body_of(service, request)
    return answer(DynamicConfigResponse(sample_cancel_enabled=True))


async def create_session(service: Service, request: Request) -> Response:
    """Open a session."""
    wanted = parse(await body_of(service, request), CreateSessionRequest)
    session = await service.open_session(
        tags=wanted.tags,
        user_metadata=wanted.user_metadata,
        display_name=wanted.display_name if isinstance(wanted.display_name, str) else None,
    )
    return answer(CreateSessionResponse(session_id=session.id))


async def heartbeat(service: Service, request: Request) -> Response:
    """Note that a client lives; 410 when its session does not."""
    beat = parse(await body_of(service, request), SessionHeartbeatRequest)
    service.session(beat.session_id, unknown_status=410)
    return answer({"type": "session_heartbeat"})


async def finish(service: Service, request: Request) -> Response:
    """End a session; the first reason counts, and a repetition is fine."""
    body = await body_of(service, request)
    reason = parse(body, FinishSessionRequest).reason.type if body.data else "success"
    session_id = request.path_params["session_id"]
    if session_id not in service.store.sessions:
        raise Refusal(404, f"no session {session_id!r}", field="session_id")
    await service.end_session(session_id, reason)
    return answer({})


async def list_sessions(service: Service, request: Request) -> Response:
    """List session ids, newest first."""
    ids = list(reversed(service.store.sessions))
    rows, _cursor = page(request, ids, default_limit=20)
    return answer({"sessions": rows})


async def get_session(service: Service, request: Request) -> Response:
    """Name the training runs and samplers of a session."""
    session_id = request.path_params["session_id"]
    row = service.store.sessions.get(session_id)
    if row is None:
        raise Refusal(404, f"no session {session_id!r}", field="session_id")
    content: dict[str, Any] = {
        "training_run_ids": [
            run.run_id for run in service.store.runs.values() if run.session_id == session_id
        ],
        "sampler_ids": [sampler.id for sampler in service.samplers_of(session_id)],
    }
    if row.user_metadata is not None:
        content["user_metadata"] = {key: str(value) for key, value in row.user_metadata.items()}
    if row.display_name is not None:
        content["display_name"] = row.display_name
    return answer(content)


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
    ("GET", "/sessions", list_sessions),
    ("GET", "/sessions/{session_id}", get_session),
    ("POST", "/telemetry", telemetry),
    ("GET", "/tokenizers/{name:path}", tokenizer),
)
