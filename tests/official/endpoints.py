"""Which endpoints each test of this folder is about; `test_every_endpoint.py` adds them up.

Each module holds its own tuple against what really was asked, so that no line here is only words.
"""

from __future__ import annotations

import re

from docs.parity import official, ours

API = "/api/v1"

COMPARED: dict[str, tuple[str, ...]] = {
    "test_rest_requests": (
        "GET /get_server_capabilities",
        "GET /training_runs",
        "GET /training_runs/{}",
        "GET /training_runs/{}/checkpoints",
        "GET /checkpoints",
        "POST /training_runs/{}/checkpoints/{}/publish",
        "DELETE /training_runs/{}/checkpoints/{}/publish",
        "PUT /training_runs/{}/checkpoints/{}/ttl",
        "DELETE /training_runs/{}/checkpoints/{}",
        "GET /training_runs/{}/checkpoints/{}/external_weights_urls",
        "POST /weights_info",
        "POST /copy_weights",
        "GET /sessions",
        "GET /sessions/{}",
        "POST /sessions/search",
        "PUT /sessions/{}/project",
        "GET /sessions/{}/trace_export",
        "GET /samplers/{}",
        "GET /billing/usage/events",
        "GET /billing/usage/checkpoints/current",
        "GET /audit",
    ),
    "test_session_requests": (
        "POST /client/config",
        "POST /client/dynamic_config",
        "POST /auth/token",
        "GET /auth/apikey/me",
        "DELETE /auth/apikey/me",
        "GET /healthz",
        "POST /create_session",
        "POST /session_heartbeat",
        "POST /sessions/{}/finish",
        "POST /telemetry",
        "POST /create_sampling_session",
        "POST /join_sampling_session",
        "POST /asample",
        "POST /cancel_future",
        "POST /retrieve_future",
        "POST /retrieve_futures",
        "POST /create_model",
        "POST /get_info",
        "POST /save_weights",
        "POST /load_weights",
    ),
    "test_types": (
        "POST /forward_backward",
        "POST /create_model",
        "POST /optim_step",
        "POST /create_custom_loss",
        "POST /save_weights",
        "POST /save_weights_for_sampler",
        "POST /save_weights_external",
        "POST /load_weights",
        "POST /asample",
        "POST /create_sampling_session",
    ),
}
"""Our request is the official client's, for the same call."""

ACCEPTED: dict[str, tuple[str, ...]] = {
    "test_official_client": (
        "POST /load_weights",
        "POST /forward_backward",
        "POST /optim_step",
        "POST /get_info",
    ),
    "test_official_records": (
        "POST /create_session",
        "POST /sessions/{}/finish",
        "POST /create_model",
        "POST /create_sampling_session",
        "POST /save_weights",
        "POST /save_weights_for_sampler",
        "POST /save_weights_external",
        "GET /get_server_capabilities",
        "GET /training_runs",
        "GET /training_runs/{}",
        "GET /training_runs/{}/checkpoints",
        "GET /checkpoints",
        "POST /training_runs/{}/checkpoints/{}/publish",
        "DELETE /training_runs/{}/checkpoints/{}/publish",
        "PUT /training_runs/{}/checkpoints/{}/ttl",
        "DELETE /training_runs/{}/checkpoints/{}",
        "GET /training_runs/{}/checkpoints/{}/external_weights_urls",
        "POST /weights_info",
        "POST /copy_weights",
        "GET /sessions",
        "GET /sessions/{}",
        "POST /sessions/search",
        "PUT /sessions/{}/project",
        "GET /sessions/{}/trace_export",
        "GET /samplers/{}",
        "GET /billing/usage/events",
        "GET /billing/usage/checkpoints/current",
        "GET /audit",
        "GET /auth/apikey/me",
        "DELETE /auth/apikey/me",
    ),
    "test_switches": (
        "GET /healthz",
        "POST /client/config",
        "POST /client/dynamic_config",
        "POST /auth/token",
        "POST /session_heartbeat",
        "POST /telemetry",
        "POST /asample",
        "POST /cancel_future",
        "POST /create_custom_loss",
        "POST /join_sampling_session",
        "POST /retrieve_future",
        "POST /retrieve_futures",
    ),
}
"""The official client was content with the embedded server's answer."""


def endpoint_of(method: str, path: str) -> str:
    """Return the endpoint that a request is for, as the tables write it."""
    below = path.partition("?")[0].removeprefix(API)
    known = sorted({*official.endpoints(), *ours.client_endpoints()}, key=lambda one: "{}" in one)
    for one in known:
        pattern = re.escape(one).replace(r"checkpoints/\{\}", "checkpoints/[^/]+/[^/]+")
        if re.fullmatch(pattern.replace(r"\{\}", "[^/]+"), f"{method} {below}"):
            return one
    return f"{method} {below}"
