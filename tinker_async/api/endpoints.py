"""The endpoints, as constants: path, traffic class, and what travels."""

from __future__ import annotations

import urllib.parse

from tinker_async.api.calls import API_KEY, JSON, PROTOBUF, Endpoint
from tinker_async.api.features import Feature
from tinker_async.config import Secret
from tinker_async.transport import TrafficClass

_V1 = "/api/v1"
_TRAINING = TrafficClass.TRAINING

CLIENT_CONFIG = Endpoint(f"{_V1}/client/config")
DYNAMIC_CONFIG = Endpoint(f"{_V1}/client/dynamic_config", silence_s=10.0)
CREATE_SESSION = Endpoint(f"{_V1}/create_session")
HEARTBEAT = Endpoint(f"{_V1}/session_heartbeat", silence_s=10.0)
CAPABILITIES = Endpoint(f"{_V1}/get_server_capabilities", method="GET")
CREATE_MODEL = Endpoint(f"{_V1}/create_model", traffic=_TRAINING)
GET_INFO = Endpoint(f"{_V1}/get_info", traffic=_TRAINING)
FORWARD_BACKWARD = Endpoint(f"{_V1}/forward_backward", traffic=_TRAINING, content_type=PROTOBUF)
FORWARD_BACKWARD_ZSTD = Endpoint(
    FORWARD_BACKWARD.path,
    traffic=_TRAINING,
    content_type=PROTOBUF,
    extra_headers=((b"content-encoding", b"zstd"),),
)
FORWARD_BACKWARD_JSON = Endpoint(FORWARD_BACKWARD.path, traffic=_TRAINING, content_type=JSON)
FORWARD_JSON = Endpoint(f"{_V1}/forward", traffic=_TRAINING)
"""Forward alone, of servers that take JSON; others have it as a kind of `forward_backward`."""
OPTIM_STEP = Endpoint(f"{_V1}/optim_step", traffic=_TRAINING)
SAVE_WEIGHTS = Endpoint(f"{_V1}/save_weights", traffic=_TRAINING)
LOAD_WEIGHTS = Endpoint(f"{_V1}/load_weights", traffic=_TRAINING)
SAVE_WEIGHTS_FOR_SAMPLER = Endpoint(f"{_V1}/save_weights_for_sampler", traffic=_TRAINING)
SAVE_WEIGHTS_EXTERNAL = Endpoint(
    f"{_V1}/save_weights_external", traffic=_TRAINING, feature=Feature.EXTERNAL_WEIGHTS
)
CREATE_CUSTOM_LOSS = Endpoint(f"{_V1}/create_custom_loss", traffic=_TRAINING)
WEIGHTS_INFO = Endpoint(f"{_V1}/weights_info")
CREATE_SAMPLING_SESSION = Endpoint(f"{_V1}/create_sampling_session")
JOIN_SAMPLING_SESSION = Endpoint(f"{_V1}/join_sampling_session")
SAMPLE = Endpoint(
    f"{_V1}/asample",
    traffic=TrafficClass.SAMPLING,
    extra_headers=((b"x-tinker-sampling-backpressure", b"1"),),
)
SEARCH_SESSIONS = Endpoint(f"{_V1}/sessions/search", feature=Feature.SESSION_SEARCH)
TELEMETRY = Endpoint(f"{_V1}/telemetry", silence_s=5.0)
UNLOAD_MODEL = Endpoint(f"{_V1}/unload_model", traffic=_TRAINING, feature=Feature.UNLOADING)
RETRIEVE_FUTURES = Endpoint(f"{_V1}/retrieve_futures", traffic=TrafficClass.POLLING, silence_s=45.0)
RETRIEVED_FUTURES = Endpoint(RETRIEVE_FUTURES.path, traffic=TrafficClass.POLLING, silence_s=5.0)
CANCEL_FUTURE = Endpoint(f"{_V1}/cancel_future", traffic=TrafficClass.POLLING, silence_s=30.0)


def finish(session_id: str) -> Endpoint:
    """Say how a session ended."""
    return Endpoint(
        f"{_V1}/sessions/{segment(session_id)}/finish",
        silence_s=5.0,
        feature=Feature.SESSION_FINISHING,
    )


def sampler(sampling_session_id: str) -> Endpoint:
    """Describe a sampling session."""
    return Endpoint(f"{_V1}/samplers/{segment(sampling_session_id)}", method="GET")


def tokenizer(model_name: str) -> Endpoint:
    """The tokenizer file of a model (embedded server only)."""
    return Endpoint(f"{_V1}/tokenizers/{segment(model_name, safe='/:')}", method="GET")


# What `RestClient` asks


def healthz() -> Endpoint:
    """Say whether the server is well."""
    return Endpoint(f"{_V1}/healthz", method="GET")


def api_key_info() -> Endpoint:
    """Describe the API key that is sent."""
    return Endpoint(f"{_V1}/auth/apikey/me", method="GET", feature=Feature.API_KEYS)


def revoke_api_key(key: Secret) -> Endpoint:
    """End the API key that is sent: this one, not the connection's token or key."""
    return Endpoint(
        f"{_V1}/auth/apikey/me",
        method="DELETE",
        secret_headers=((API_KEY, key),),
        own_key=True,
        feature=Feature.KEY_REVOCATION,
    )


def training_run(run_id: str, *, access_scope: str = "owned") -> Endpoint:
    """Describe a training run."""
    path = f"{_V1}/training_runs/{segment(run_id)}"
    return Endpoint(_query(path, access_scope=_scope(access_scope)), method="GET")


def training_runs(
    *, limit: int, offset: int, access_scope: str = "owned", project_id: str | None = None
) -> Endpoint:
    """List training runs."""
    path = _query(
        f"{_V1}/training_runs",
        limit=limit,
        offset=offset,
        access_scope=_scope(access_scope),
        project_id=project_id,
    )
    return Endpoint(path, method="GET")


def checkpoints(run_id: str | None, *, limit: int, offset: int) -> Endpoint:
    """List checkpoints: of one run, or (with pages) of the user."""
    if run_id is None:
        path = _query(f"{_V1}/checkpoints", limit=limit, offset=offset)
        return Endpoint(path, method="GET", feature=Feature.CHECKPOINT_LISTING)
    path = f"{_V1}/training_runs/{segment(run_id)}/checkpoints"
    if offset:  # official servers have no pages here, and give no cursor
        path = _query(path, limit=limit, offset=offset)
    return Endpoint(path, method="GET")


def delete_checkpoint(run_id: str, checkpoint_id: str) -> Endpoint:
    """Delete a checkpoint; its id keeps its slash."""
    return Endpoint(
        _checkpoint(run_id, checkpoint_id), method="DELETE", feature=Feature.CHECKPOINT_DELETION
    )


def publish(run_id: str, checkpoint_id: str, *, public: bool) -> Endpoint:
    """Make a checkpoint public, or private again."""
    path = f"{_checkpoint(run_id, checkpoint_id)}/publish"
    return Endpoint(path, method="POST" if public else "DELETE", feature=Feature.PUBLISHING)


def checkpoint_ttl(run_id: str, checkpoint_id: str) -> Endpoint:
    """Say when a checkpoint expires."""
    return Endpoint(
        f"{_checkpoint(run_id, checkpoint_id)}/ttl", method="PUT", feature=Feature.CHECKPOINT_TTL
    )


def external_weights_urls(run_id: str, checkpoint_id: str) -> Endpoint:
    """Sign addresses of an external checkpoint's files."""
    path = f"{_checkpoint(run_id, checkpoint_id)}/external_weights_urls"
    return Endpoint(path, method="GET", feature=Feature.EXTERNAL_WEIGHTS)


def checkpoint_archive(run_id: str, checkpoint_id: str) -> Endpoint:
    """Sign the address of a checkpoint's archive: a redirection, which is not followed."""
    path = f"{_checkpoint(run_id, checkpoint_id)}/archive"
    return Endpoint(path, method="GET", accept=b"application/gzip", redirects=True)


def copy_weights(idempotency_key: str, access_token: str | None) -> Endpoint:
    """Copy a checkpoint; the key makes repetitions of one operation one copy."""
    headers = [(b"x-idempotency-key", Secret(idempotency_key))]  # no header for the next request
    if access_token is not None:
        headers.append((b"x-tinker-weights-access-token", Secret(access_token)))
    return Endpoint(f"{_V1}/copy_weights", secret_headers=tuple(headers), feature=Feature.COPYING)


def sessions(*, limit: int, offset: int, access_scope: str = "owned") -> Endpoint:
    """List session ids."""
    path = _query(f"{_V1}/sessions", limit=limit, offset=offset, access_scope=_scope(access_scope))
    return Endpoint(path, method="GET", feature=Feature.SESSION_LISTING)


def session(session_id: str, *, access_scope: str = "owned") -> Endpoint:
    """Describe a session."""
    return Endpoint(
        _query(f"{_V1}/sessions/{segment(session_id)}", access_scope=_scope(access_scope)),
        method="GET",
        feature=Feature.SESSION_DETAILS,
    )


def session_project(session_id: str) -> Endpoint:
    """Move a session into a project."""
    return Endpoint(
        f"{_V1}/sessions/{segment(session_id)}/project", method="PUT", feature=Feature.PROJECTS
    )


def trace_export(session_id: str) -> Endpoint:
    """Build a trace of a session, or say how far that is."""
    return Endpoint(
        f"{_V1}/sessions/{segment(session_id)}/trace_export", method="GET", feature=Feature.TRACES
    )


def billing_usage(starting_on: str, ending_before: str) -> Endpoint:
    """List what was used, by hour."""
    path = f"{_V1}/billing/usage/events"
    return Endpoint(
        _query(path, starting_on=starting_on, ending_before=ending_before),
        method="GET",
        feature=Feature.BILLING,
    )


def storage_usage(project_id: str | None) -> Endpoint:
    """Say how much is stored now."""
    path = _query(f"{_V1}/billing/usage/checkpoints/current", project_id=project_id)
    return Endpoint(path, method="GET", feature=Feature.BILLING)


def audit_log(event_type: str, day: str | None) -> Endpoint:
    """List what was done on a day: here, or at another place."""
    path = _query(f"{_V1}/audit", event_type=event_type, day=day)
    return Endpoint(path, method="GET", redirects=True, feature=Feature.AUDIT)


def _checkpoint(run_id: str, checkpoint_id: str) -> str:
    run, checkpoint = segment(run_id), segment(checkpoint_id, safe=":/")
    return f"{_V1}/training_runs/{run}/checkpoints/{checkpoint}"


def _scope(access_scope: str) -> str | None:
    """The default is left out: older servers do not know it."""
    return None if access_scope == "owned" else access_scope


def _query(path: str, **parameters: str | int | None) -> str:
    given = {name: value for name, value in parameters.items() if value is not None}
    return f"{path}?{urllib.parse.urlencode(given)}" if given else path


def segment(text: str, *, safe: str = ":") -> str:
    """Quote an id for a path; the colons of ids stay as they are."""
    return urllib.parse.quote(text, safe=safe)
