"""Configuration, sessions, and the listings of runs and checkpoints."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

import msgspec

from tinker_async.data.paths import CheckpointPath
from tinker_async.data.results import Cursor, GetServerCapabilitiesResponse, SupportedModel
from tinker_async.testing.answers import Answer, Refusal, json_answer
from tinker_async.testing.routing import Call, Route
from tinker_async.testing.state import CheckpointRecord, Run, State
from tinker_async.testing.toy_model import VOCABULARY
from tinker_async.wire.messages import (
    CheckpointsResponse,
    CreateSessionRequest,
    CreateSessionResponse,
    DynamicConfigResponse,
    FinishSessionRequest,
    SessionHeartbeatRequest,
    TrainingRunsResponse,
)

T = TypeVar("T")


class _TtlRequest(msgspec.Struct, frozen=True):
    ttl_seconds: int | None


def health(_state: State, _call: Call) -> Answer:
    """Say that the server runs."""
    return json_answer({"status": "ok"})


def capabilities(state: State, _call: Call) -> Answer:
    """Name the base models."""
    models = [
        SupportedModel(model_name=name, max_context_length=8192, trainable=True, sampleable=True)
        for name in state.settings.base_models
    ]
    return json_answer(GetServerCapabilitiesResponse(supported_models=models))


def client_config(state: State, _call: Call) -> Answer:
    """Give the clients' limits."""
    return json_answer(state.settings.config)


def dynamic_config(state: State, _call: Call) -> Answer:
    """Give the switches that clients read again and again."""
    return json_answer(DynamicConfigResponse(sample_cancel_enabled=state.settings.cancel_enabled))


def auth_token(_state: State, _call: Call) -> Answer:
    """Exchange a key for an unsigned token that expires in the far future."""
    parts = ({"alg": "none"}, {"sub": "fake", "iat": 0, "exp": 4_102_444_800})
    encoded = [base64.urlsafe_b64encode(msgspec.json.encode(part)).rstrip(b"=") for part in parts]
    return json_answer({"jwt": b".".join([*encoded, b""]).decode()})


def who_am_i(_state: State, _call: Call) -> Answer:
    """Describe the key."""
    details = {"org_details": {"name": "fake"}, "user_details": {"email": "fake@example.com"}}
    return json_answer({"key_id": 1, "name": "fake", "note": "", "details": details})


def create_session(state: State, call: Call) -> Answer:
    """Open a session."""
    session = state.open_session(call.parse(CreateSessionRequest).user_metadata)
    call.entry.session_id = session.id
    return json_answer(CreateSessionResponse(session_id=session.id))


def heartbeat(state: State, call: Call) -> Answer:
    """Note that a client lives; 410 when its session does not."""
    session_id = call.parse(SessionHeartbeatRequest).session_id
    if session_id not in state.sessions:
        raise Refusal(410, f"no session {session_id!r}")
    state.session(session_id)
    return json_answer({"type": "session_heartbeat"})


def finish(state: State, call: Call) -> Answer:
    """End a session; the first reason counts, and a repetition is fine."""
    reason = call.parse(FinishSessionRequest).reason.type if call.body else "success"
    session = state.sessions.get(call.ids[0])
    if session is None:
        raise Refusal(404, f"no session {call.ids[0]!r}")
    state.end_session(session, reason)
    return json_answer({})


def list_sessions(state: State, call: Call) -> Answer:
    """List session ids, newest first."""
    rows, _ = _page(call, list(reversed(state.sessions)), 20)
    return json_answer({"sessions": rows})


def get_session(state: State, call: Call) -> Answer:
    """Name the training runs and samplers of a session."""
    session = state.sessions.get(call.ids[0])
    if session is None:
        raise Refusal(404, f"no session {call.ids[0]!r}")
    mine = f"{session.id}:"
    return json_answer(
        {
            "training_run_ids": [run_id for run_id in state.runs if run_id.startswith(mine)],
            "sampler_ids": [one for one in state.samplers if one.startswith(mine)],
            "user_metadata": {k: str(v) for k, v in (session.metadata or {}).items()},
        }
    )


def telemetry(_state: State, _call: Call) -> Answer:
    """Take telemetry and forget it."""
    return json_answer({"status": "accepted"})


def tokenizer(state: State, call: Call) -> Answer:
    """Send the toy's tokenizer: a token is a byte. Not part of the official protocol."""
    if call.ids[0] not in state.settings.base_models:
        raise Refusal(404, f"no tokenizer for {call.ids[0]!r}")
    letters = _letters()
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    level["use_regex"] = False
    return json_answer(
        {
            "version": "1.0",
            "added_tokens": [],
            "pre_tokenizer": level,
            "decoder": level,
            "model": {
                "type": "BPE",
                "vocab": {letter: token for token, letter in enumerate(letters)},
                "merges": [],
            },
        }
    )


def _letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    free = iter(range(VOCABULARY, 2 * VOCABULARY))
    return [chr(byte) if byte in plain else chr(next(free)) for byte in range(VOCABULARY)]


# Runs and checkpoints


def list_runs(state: State, call: Call) -> Answer:
    """List training runs, newest first."""
    rows, cursor = _page(call, list(reversed(state.runs.values())), 20)
    views = [state.view_run(run) for run in rows]
    return json_answer(TrainingRunsResponse(training_runs=views, cursor=cursor))


def get_run(state: State, call: Call) -> Answer:
    """Describe a training run."""
    return json_answer(state.view_run(_run(state, call)))


def list_checkpoints_of_run(state: State, call: Call) -> Answer:
    """List the checkpoints of a run, oldest first."""
    run = _run(state, call)
    views = [one.view() for one in state.checkpoints.values() if one.run is run]
    return json_answer(CheckpointsResponse(checkpoints=views))


def list_checkpoints(state: State, call: Call) -> Answer:
    """List all checkpoints, newest first."""
    rows, cursor = _page(call, list(reversed(state.checkpoints.values())), 100)
    views = [record.view() for record in rows]
    return json_answer(CheckpointsResponse(checkpoints=views, cursor=cursor))


def delete_checkpoint(state: State, call: Call) -> Answer:
    """Delete a checkpoint. Samplers that were made from it go on."""
    del state.checkpoints[str(_checkpoint(state, call).path)]
    return Answer(204)


def publish(state: State, call: Call) -> Answer:
    """Mark a checkpoint as public (POST) or private (DELETE)."""
    _checkpoint(state, call).public = call.method == "POST"
    return Answer(204)


def set_ttl(state: State, call: Call) -> Answer:
    """Show a checkpoint as expiring; it stays all the same."""
    seconds = call.parse(_TtlRequest).ttl_seconds
    record = _checkpoint(state, call)
    record.expires_at = None if seconds is None else state.time() + timedelta(seconds=seconds)
    return Answer(204)


def _run(state: State, call: Call) -> Run:
    run = state.runs.get(call.ids[0])
    if run is None:
        raise Refusal(404, f"no training run {call.ids[0]!r}")
    return run


def _checkpoint(state: State, call: Call) -> CheckpointRecord:
    return state.checkpoint(str(CheckpointPath(*call.ids[:3])))


def _page(call: Call, rows: Sequence[T], limit: int) -> tuple[Sequence[T], Cursor]:
    limit, offset = call.number("limit", limit), call.number("offset", 0)
    cursor = Cursor(offset=offset, limit=limit, total_count=len(rows))
    return rows[offset : offset + limit], cursor


_ONE = "training_runs/{}/checkpoints/{}/{}"

ROUTES = (
    Route("healthz", "GET", "healthz", health),
    Route("get_server_capabilities", "GET", "get_server_capabilities", capabilities),
    Route("client/config", "POST", "client/config", client_config),
    Route("client/dynamic_config", "POST", "client/dynamic_config", dynamic_config),
    Route("auth/token", "POST", "auth/token", auth_token),
    Route("auth/apikey/me", "GET", "auth/apikey/me", who_am_i),
    Route("create_session", "POST", "create_session", create_session),
    Route("session_heartbeat", "POST", "session_heartbeat", heartbeat),
    Route("finish", "POST", "sessions/{}/finish", finish),
    Route("sessions", "GET", "sessions", list_sessions),
    Route("session", "GET", "sessions/{}", get_session),
    Route("telemetry", "POST", "telemetry", telemetry),
    Route("tokenizer", "GET", "tokenizers/{*}", tokenizer),
    Route("training_runs", "GET", "training_runs", list_runs),
    Route("training_run", "GET", "training_runs/{}", get_run),
    Route("run_checkpoints", "GET", "training_runs/{}/checkpoints", list_checkpoints_of_run),
    Route("checkpoints", "GET", "checkpoints", list_checkpoints),
    Route("delete_checkpoint", "DELETE", _ONE, delete_checkpoint),
    Route("publish", "POST", _ONE + "/publish", publish),
    Route("publish", "DELETE", _ONE + "/publish", publish),
    Route("ttl", "PUT", _ONE + "/ttl", set_ttl),
)
