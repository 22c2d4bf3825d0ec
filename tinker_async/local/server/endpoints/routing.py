"""What every endpoint module shares: the handler's type, bodies and pages of a listing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from tinker_async.data.records import Cursor
from tinker_async.local.server.http import Body, read_body
from tinker_async.local.server.refusal import Refusal
from tinker_async.local.server.service import Service

T = TypeVar("T")

_DIGITS = 19
"""Fewer digits than this are a 64-bit number."""

Handler: TypeAlias = Callable[[Service, Request], Awaitable[Response]]


async def body_of(service: Service, request: Request) -> Body:
    """Read the body within the service's limit."""
    return await read_body(request, limit_bytes=service.limits.body_bytes)


def check_scope(request: Request) -> None:
    """Check `access_scope`; all that is here belongs to the one who asks, so both mean the same.

    Raises:
        Refusal: 422, neither `owned` nor `accessible`.
    """
    scope = request.query_params.get("access_scope", "owned")
    if scope not in ("owned", "accessible"):
        raise Refusal(
            422, f"access_scope must be owned or accessible, got {scope!r}", field="access_scope"
        )


def page(request: Request, rows: Sequence[T], *, default_limit: int) -> tuple[Sequence[T], Cursor]:
    """Cut a listing to `limit` and `offset` of the query.

    Raises:
        Refusal: 422, not numbers or negative.
    """
    limit = _number(request, "limit", default_limit)
    offset = _number(request, "offset", 0)
    cursor = Cursor(offset=offset, limit=limit, total_count=len(rows))
    return rows[offset : offset + limit], cursor


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name)
    if text is None or text == "":
        return default
    if not (text.isascii() and text.isdigit() and len(text) < _DIGITS):
        raise Refusal(
            422, f"{name} must be a number that is not negative, got {text!r}", field=name
        )
    return int(text)
