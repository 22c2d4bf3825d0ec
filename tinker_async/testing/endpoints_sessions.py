"""Configuration, credentials, and the life of sessions."""

from __future__ import annotations

from tinker_async.data.results import GetServerCapabilitiesResponse, SupportedModel
from tinker_async.testing.answers import Answer, Refusal, json_answer
from tinker_async.testing.routing import Call, Route
from tinker_async.testing.state import State
from tinker_async.testing.toy_model import VOCABULARY
from tinker_async.wire.messages import (
    CreateSessionRequest,
    CreateSessionResponse,
    FinishSessionRequest,
    SessionHeartbeatRequest,
)


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
    return json_answer(state.switches)


def auth_token(state: State, _call: Call) -> Answer:
    """Exchange a key for an unsigned token, which is let in like the key."""
    return json_answer({"jwt": state.tokens.issue(state.settings.token_lifetime_s)})


def who_am_i(_state: State, _call: Call) -> Answer:
    """Describe the key."""
    details = {"org_details": {"name": "fake"}, "user_details": {"email": "fake@example.com"}}
    return json_answer({"key_id": 1, "name": "fake", "note": "", "details": details})


def revoke_key(state: State, call: Call) -> Answer:
    """End the key that is sent. A token is no key."""
    key = call.headers.get(b"x-api-key", b"")
    if state.tokens.knows(key):
        raise Refusal(401, "this is a token, not an API key")
    state.revoked_keys.add(key)
    if state.settings.api_key is not None:  # the only one: the tokens were made of it
        state.tokens.revoke()
    return Answer(204)


def create_session(state: State, call: Call) -> Answer:
    """Open a session."""
    wanted = call.parse(CreateSessionRequest)
    session = state.open_session(wanted.user_metadata)
    session.display_name = wanted.display_name or None
    session.project_id = wanted.project_id or session.project_id
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
    wanted = call.parse(FinishSessionRequest) if call.body else None
    session = state.sessions.get(call.ids[0])
    if session is None:
        raise Refusal(404, f"no session {call.ids[0]!r}")
    if session.ended is None and wanted is not None:
        session.detail = wanted.detail
    state.end_session(session, wanted.reason.type if wanted is not None else "success")
    return json_answer({})


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


ROUTES = (
    Route("healthz", "GET", "healthz", health),
    Route("get_server_capabilities", "GET", "get_server_capabilities", capabilities),
    Route("client/config", "POST", "client/config", client_config),
    Route("client/dynamic_config", "POST", "client/dynamic_config", dynamic_config),
    Route("auth/token", "POST", "auth/token", auth_token),
    Route("auth/apikey/me", "GET", "auth/apikey/me", who_am_i),
    Route("revoke_api_key", "DELETE", "auth/apikey/me", revoke_key),
    Route("create_session", "POST", "create_session", create_session),
    Route("session_heartbeat", "POST", "session_heartbeat", heartbeat),
    Route("finish", "POST", "sessions/{}/finish", finish),
    Route("telemetry", "POST", "telemetry", telemetry),
    Route("tokenizer", "GET", "tokenizers/{*}", tokenizer),
)
