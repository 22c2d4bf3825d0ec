"""Who the key stands for, tokens in its place, and the end of the key."""

from __future__ import annotations

import structlog
from starlette.requests import Request
from starlette.responses import Response

from tinker_async.local.server.endpoints.routing import Handler, body_of
from tinker_async.local.server.http import answer
from tinker_async.local.server.refusal import Refusal
from tinker_async.local.server.service import Service
from tinker_async.wire.messages import (
    ApiKeyDetailsResponse,
    ApiKeyResponse,
    NamedResponse,
    UserDetailsResponse,
)

log = structlog.get_logger("tinker_async")


async def token(service: Service, request: Request) -> Response:
    """Give a token that is as good as the key for an hour."""
    await body_of(service, request)
    return answer({"jwt": service.credentials.mint()})


async def describe_key(_service: Service, _request: Request) -> Response:
    """Tell of the one key. There are no accounts: whoever has it owns the server."""
    details = ApiKeyDetailsResponse(
        org_details=NamedResponse(name="local"), user_details=UserDetailsResponse(email="")
    )
    note = "the key of this embedded server"
    return answer(ApiKeyResponse(key_id=1, name="local", note=note, details=details))


async def revoke_key(service: Service, request: Request) -> Response:
    """End the key that is sent: from now on nobody is let in, until the server is started again."""
    await body_of(service, request)
    if not service.credentials.is_key(request.headers.get("x-api-key", "").encode("latin-1")):
        raise Refusal(401, "this is a token: send the API key itself, to end it")
    service.credentials.revoke()
    log.warning("api_key_revoked")
    return Response(status_code=204)


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/auth/token", token),
    ("GET", "/auth/apikey/me", describe_key),
    ("DELETE", "/auth/apikey/me", revoke_key),
)
