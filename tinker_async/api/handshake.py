"""The first words with a server: its limits and switches, and a session of our own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller
from tinker_async.api.features import Feature, says_no_endpoint
from tinker_async.api.progress import Progress
from tinker_async.api.retry import RetryPolicy
from tinker_async.config import SDK_VERSION, Config
from tinker_async.data import given
from tinker_async.errors import APIStatusError, NotFoundError
from tinker_async.logs import log
from tinker_async.wire import json as wire_json
from tinker_async.wire.messages import (
    ClientConfigRequest,
    ClientConfigResponse,
    CreateSessionRequest,
    CreateSessionResponse,
    DynamicConfigResponse,
)

_MOST_ATTEMPTS = 3
_PAUSE_S = 0.2
_ABOUT_US = ClientConfigRequest(sdk_version=SDK_VERSION)


def about_session(
    config: Config, user_metadata: Mapping[str, Any] | None, display_name: str | None
) -> CreateSessionRequest:
    """Return what a session says of itself.

    Raises:
        InvalidInputError: It cannot be said in JSON.
    """
    if display_name is not None:
        given.text(display_name, "display_name")
    return CreateSessionRequest(
        tags=list(config.tags),
        user_metadata=_json_object(user_metadata, "user_metadata"),
        sdk_version=SDK_VERSION,
        project_id=config.project_id or msgspec.UNSET,
        display_name=msgspec.UNSET if display_name is None else display_name,
    )


def _json_object(value: object, field: str) -> dict[str, Any]:
    """Return what is given by name, if JSON has a form for all of it."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        form = 'the form is {"purpose": "test"}'
        raise given.wrong(field, f"must be values by name, got {given.shown(value)}", form)
    found = dict(value)
    try:
        wire_json.encode(found)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise given.wrong(field, f"cannot be sent as JSON: {error}") from None
    return found


def _policy(caller: Caller) -> RetryPolicy:
    """A wrong address or key shall be told in seconds, not minutes; and never repeats for "off"."""
    attempts = min(caller.policy.max_attempts, _MOST_ATTEMPTS)
    return RetryPolicy(max_attempts=attempts, base_s=min(caller.policy.base_s, _PAUSE_S))


def _entering() -> Progress:
    return Progress("Session")


async def ask_limits(caller: Caller) -> ClientConfigResponse:
    """Return the server's limits and switches; the defaults where it has no such endpoint.

    From then on the credential is exchanged for a token, if the server says so.
    """
    try:
        limits = await caller.call_json(
            endpoints.CLIENT_CONFIG,
            _ABOUT_US,
            answer=ClientConfigResponse,
            policy=_policy(caller),
            progress=_entering(),
        )
    except APIStatusError as error:
        _raise_unless_absent(error)
        limits = ClientConfigResponse()
        caller.features.learn(Feature.CLIENT_CONFIG, False, detail=error.message)
    else:
        caller.features.learn(Feature.CLIENT_CONFIG, True)
    _note_switches(caller, limits)
    if limits.pjwt_auth_enabled:
        by_command = limits.credential_default_source == "credential_cmd"
        caller.authentication.exchange(by_command=by_command)
    return limits


async def ask_switches(caller: Caller) -> DynamicConfigResponse:
    """Return the switches that may change; the defaults where there is no such endpoint."""
    try:
        switches = await caller.call_json(
            endpoints.DYNAMIC_CONFIG,
            _ABOUT_US,
            answer=DynamicConfigResponse,
            policy=_policy(caller),
            progress=_entering(),
        )
    except APIStatusError as error:
        _raise_unless_absent(error)
        switches = DynamicConfigResponse()
        caller.features.learn(Feature.DYNAMIC_CONFIG, False, detail=error.message)
    else:
        caller.features.learn(Feature.DYNAMIC_CONFIG, True)
    enabled = switches.sample_cancel_enabled
    caller.features.learn(Feature.CANCEL, enabled, learned_from="config")
    return switches


def _raise_unless_absent(error: APIStatusError) -> None:
    """Raise an error again that does not say that a server has no such endpoint."""
    if not (isinstance(error, NotFoundError) or says_no_endpoint(error)):
        raise error


def _note_switches(caller: Caller, limits: ClientConfigResponse) -> None:
    for feature, on in (
        (Feature.COMPRESSION, limits.proto_compress_fwdbwd),
        (Feature.SESSION_POLLER, limits.sample_use_retrieve_futures),
        (Feature.SAMPLER_JOINING, limits.sample_join_sampling_session),
        (Feature.UPLOADED_LOSSES, limits.custom_loss_server_side),
    ):
        caller.features.learn(feature, on, learned_from="config")


async def open_session(caller: Caller, about: CreateSessionRequest) -> str:
    """Create a session, log what the server has to say, and return the session's id."""
    created = await caller.call_json(
        endpoints.CREATE_SESSION, about, answer=CreateSessionResponse, progress=_entering()
    )
    for level in ("info", "warning", "error"):
        text = getattr(created, f"{level}_message")
        if text:
            getattr(log, level)("server_message", text=text)
    return created.session_id
