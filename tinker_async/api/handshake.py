"""The first words with a server: its limits and switches, and a session of our own."""

from __future__ import annotations

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller
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

_FIRST_CONTACT = RetryPolicy(max_attempts=3, base_s=0.2)
"""A wrong address or key shall be told in seconds, not minutes."""
_ABOUT_US = ClientConfigRequest(sdk_version=SDK_VERSION)


async def ask_limits(caller: Caller) -> ClientConfigResponse:
    """Return the server's limits and switches; the defaults where it has no such endpoint."""
    try:
        return await caller.call_json(
            endpoints.CLIENT_CONFIG, _ABOUT_US, answer=ClientConfigResponse, policy=_FIRST_CONTACT
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
            policy=_FIRST_CONTACT,
        )
    except NotFoundError:
        return DynamicConfigResponse()


async def open_session(caller: Caller, about: CreateSessionRequest) -> str:
    """Create a session, log what the server has to say, and return the session's id."""
    created = await caller.call_json(endpoints.CREATE_SESSION, about, answer=CreateSessionResponse)
    for level in ("info", "warning", "error"):
        text = getattr(created, f"{level}_message")
        if text:
            getattr(log, level)("server_message", text=text)
    return created.session_id
