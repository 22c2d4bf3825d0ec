"""The first words with a server: its limits and switches, and a session of our own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller
from tinker_async.api.progress import Progress
from tinker_async.api.retry import RetryPolicy
from tinker_async.config import SDK_VERSION
from tinker_async.errors import NotFoundError
from tinker_async.logs import log
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
    tags: Sequence[str] | None,
    user_metadata: Mapping[str, Any] | None,
    project_id: str | None,
    display_name: str | None,
) -> CreateSessionRequest:
    """Return what a session says of itself; what is not given comes from the environment."""
    named = os.environ.get("TINKER_TAGS") or ""
    return CreateSessionRequest(
        tags=list(tags)
        if tags is not None
        else [tag for tag in map(str.strip, named.split(",")) if tag],
        user_metadata=dict(user_metadata or {}),
        sdk_version=SDK_VERSION,
        project_id=project_id or os.environ.get("TINKER_PROJECT_ID") or msgspec.UNSET,
        display_name=msgspec.UNSET if display_name is None else display_name,
    )


def _policy(caller: Caller) -> RetryPolicy:
    """A wrong address or key shall be told in seconds, not minutes; and never repeats for "off"."""
    attempts = min(caller.policy.max_attempts, _MOST_ATTEMPTS)
    return RetryPolicy(max_attempts=attempts, base_s=min(caller.policy.base_s, _PAUSE_S))


def _entering() -> Progress:
    return Progress("Session")


async def ask_limits(caller: Caller) -> ClientConfigResponse:
    """Return the server's limits and switches; the defaults where it has no such endpoint."""
    try:
        return await caller.call_json(
            endpoints.CLIENT_CONFIG,
            _ABOUT_US,
            answer=ClientConfigResponse,
            policy=_policy(caller),
            progress=_entering(),
        )
    except NotFoundError:
        return ClientConfigResponse()


async def ask_switches(caller: Caller) -> DynamicConfigResponse:
    """Return the switches that may change; the defaults where there is no such endpoint."""
    try:
        return await caller.call_json(
            endpoints.DYNAMIC_CONFIG,
            _ABOUT_US,
            answer=DynamicConfigResponse,
            policy=_policy(caller),
            progress=_entering(),
        )
    except NotFoundError:
        return DynamicConfigResponse()


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
