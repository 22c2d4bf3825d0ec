"""Reading request bodies and writing answers, the same way for every endpoint.

A body is read to its end, also when the answer is a refusal: an HTTP/2 connection
stalls behind a body that nobody takes. Only what never seems to end is left.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
from typing import Any, TypeVar

import msgspec
import structlog
import zstandard
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tinker_async.local.engine.failures import EngineMemoryError
from tinker_async.local.server.credentials import DOWNLOADS, Credentials
from tinker_async.local.server.faults import fault_of
from tinker_async.local.server.refusal import Refusal
from tinker_async.wire import json as wire_json
from tinker_async.wire import untagged
from tinker_async.wire.protobuf import DecodeError

log = structlog.get_logger("tinker_async")

T = TypeVar("T")

_AT = re.compile(r"at `\$\.([^`]*)`|field `([^`]*)`")
"""Where the JSON decoder's message names the field at fault."""

_READ_ON_BYTES = 64 * 1024 * 1024
"""How much of a body that is refused is still read, so that its sender gets to the answer."""

JSON = "application/json"
PROTOBUF = "application/x-protobuf"


class Body:
    """A request's body, decompressed, with a digest that tells repetitions from reuse."""

    __slots__ = ("data", "digest")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.digest = hashlib.sha256(data).digest()


async def read_body(request: Request, *, limit_bytes: int) -> Body:
    """Read a body to its end, undoing zstd.

    Raises:
        Refusal: 413 above the limit (after decompression too), 415 another encoding,
            400 broken or incomplete zstd.
    """
    # One buffer: a list of parts would cost 40 times as much when they have a byte each.
    buffer, size = io.BytesIO(), 0
    async with contextlib.aclosing(request.stream()) as parts:
        async for part in parts:
            size += len(part)
            if size <= limit_bytes:
                buffer.write(part)
            elif size > limit_bytes + _READ_ON_BYTES:
                break
    if size > limit_bytes:
        raise Refusal(413, f"the body is larger than the limit of {limit_bytes} bytes")
    data = buffer.getvalue()
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding == "zstd":
        data = _unzstd(data, limit_bytes)
    elif encoding != "identity":
        raise Refusal(415, f"content-encoding {encoding!r} is not understood")
    return Body(data)


def _unzstd(data: bytes, limit_bytes: int) -> bytes:
    # Streaming with a count of our own: a one-shot call would believe the size that
    # the frame declares.
    source = _Source(data)
    reader = zstandard.ZstdDecompressor().stream_reader(source)
    try:
        plain = reader.read(limit_bytes + 1)
    except zstandard.ZstdError as error:
        raise Refusal(400, f"the body is not zstd: {error}") from error
    if len(plain) > limit_bytes:
        raise Refusal(413, f"the decompressed body is larger than {limit_bytes} bytes")
    if source.exhausted:
        raise Refusal(400, "the body is not zstd: its frame is cut short")
    return plain


class _Source(io.BytesIO):
    """Notes that it was asked for more than there is: the reader itself takes that for the end."""

    exhausted = False

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes."""
        data = super().read(size)
        self.exhausted = not data
        return data


def parse(body: Body, type_: type[T]) -> T:
    """Decode a JSON body.

    Raises:
        Refusal: 400 not JSON; 422 JSON, but not what the endpoint takes.
    """
    try:
        return untagged.decode(body.data, type_)
    except DecodeError as error:
        field = _AT.search(str(error))
        status = 422 if isinstance(error.__cause__, msgspec.ValidationError) else 400
        raise Refusal(status, str(error), field=field and (field[1] or field[2])) from error


def answer(value: Any, *, status: int = 200) -> Response:
    """Return a JSON answer."""
    return Response(wire_json.encode(value), status_code=status, media_type=JSON)


async def refuse_route(request: Request, error: Exception) -> Response:
    """Answer for a path or method that does not exist."""
    await _drain(request.receive)  # no handler has read the body
    return refuse(request, error)


def refuse(_request: Request, error: Exception) -> Response:
    """Turn a `Refusal`, an error of the routing or a fault of the machine into its answer."""
    headers: dict[str, str] = {}
    content: dict[str, str] = {}
    if isinstance(error, Refusal):
        status, detail = error.status, error.detail
        if error.field is not None:
            content["field"] = error.field
        if error.retry_after_s is not None:
            headers["retry-after"] = str(error.retry_after_s)
    elif isinstance(error, HTTPException):
        status, detail = error.status_code, error.detail
        headers.update(error.headers or {})
    elif (fault := fault_of(error)) is not None:
        status, detail = 503 if isinstance(fault, EngineMemoryError) else 507, str(fault)
        headers["retry-after"] = "1"
    else:
        status, detail = 500, "the server failed; its log has the details"
    content = {"detail": detail, **content}
    return Response(wire_json.encode(content), status, headers, media_type=JSON)


def refuse_logged(request: Request, error: Exception) -> Response:
    """Answer for a fault of the machine, and leave its details in the log."""
    log.error("request_failed", path=request.url.path, exc_info=error)
    return refuse(request, error)


class KeyGate:
    """Lets only requests with the right `X-API-Key` through.

    Health checks need none, and downloads have a signature in its place.
    """

    def __init__(self, app: ASGIApp, *, credentials: Credentials) -> None:
        self._app = app
        self._credentials = credentials

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        presented = b"" if scope["type"] != "http" else _presented(scope)
        if self._credentials.admits(presented) or scope["type"] != "http" or _needs_no_key(scope):
            await self._app(scope, receive, send)
            return
        await _drain(receive)
        response = refuse(Request(scope), Refusal(401, "the X-API-Key header is missing or wrong"))
        if self._credentials.invites(presented):
            response.headers["www-authenticate"] = 'Bearer error="invalid_token"'
        await response(scope, receive, send)


def _presented(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            return bytes(value)
    return b""


def _needs_no_key(scope: Scope) -> bool:
    path: str = scope["path"]
    return path == "/api/v1/healthz" or path.startswith(DOWNLOADS)


async def _drain(receive: Receive) -> None:
    size = 0
    while size <= _READ_ON_BYTES:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            return
        size += len(message.get("body", b""))
