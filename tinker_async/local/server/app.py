"""The ASGI application: every endpoint in one table, the key at the gate, errors in one form."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from tinker_async.local.server.endpoints import (
    auth,
    copies,
    downloads,
    futures,
    loading,
    polling,
    runs,
    sampling,
    session_records,
    sessions,
    training,
    usage,
    weights,
)
from tinker_async.local.server.endpoints.routing import Handler
from tinker_async.local.server.http import KeyGate, refuse, refuse_logged, refuse_route
from tinker_async.local.server.refusal import Refusal
from tinker_async.local.server.service import Service

PREFIX = "/api/v1"

# The most frequent first: Starlette tries one after the other.
ROUTES: tuple[tuple[str, str, Handler], ...] = (
    *futures.ROUTES,
    *polling.ROUTES,
    *sampling.ROUTES,
    *training.ROUTES,
    *sessions.ROUTES,
    *weights.ROUTES,
    *loading.ROUTES,
    *session_records.ROUTES,
    *runs.ROUTES,
    *copies.ROUTES,
    *downloads.ROUTES,
    *usage.ROUTES,
    *auth.ROUTES,
)


def make_app(service: Service, *, api_key: str) -> Starlette:
    """Return the application. `service.run` must be running while it serves."""
    service.credentials.accept(api_key)
    routes = [
        Route(PREFIX + path, _bound(service, handler), methods=[method])
        for method, path, handler in ROUTES
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(KeyGate, credentials=service.credentials)],
        exception_handlers={
            Refusal: refuse,
            HTTPException: refuse_route,
            ClientDisconnect: _nobody_listens,
            sqlite3.Error: refuse_logged,
            OSError: refuse_logged,
            MemoryError: refuse_logged,
            500: refuse,
        },
    )
    app.router.redirect_slashes = False  # a redirect would leave the body unread
    return app


def _bound(service: Service, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    # Starlette calls a function with the request alone; a partial would be taken for an ASGI app.
    async def endpoint(request: Request) -> Response:
        return await handler(service, request)

    endpoint.__name__ = getattr(handler, "__name__", "endpoint")
    return endpoint


def _nobody_listens(_request: Request, _error: Exception) -> Response:
    return Response(status_code=400)
