"""One request with retries: the only place that repeats anything.

`Caller.call` sends a request, repeats it by the policy, and returns a 2xx response or
raises the typed error of the last attempt. The error's `delivery_in_doubt` says
whether any attempt may have been processed.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import TypeVar

import anyio
import msgspec

from tinker_async.api.retry import RetryPolicy, parse_retry_after
from tinker_async.config import SDK_VERSION, Config
from tinker_async.errors import (
    APIStatusError,
    ConnectError,
    InternalServerError,
    ResponseError,
    TinkerError,
    status_error,
)
from tinker_async.logs import log
from tinker_async.transport import Buffer, Headers, Request, Response, TrafficClass, Transport
from tinker_async.wire import json as wire_json
from tinker_async.wire.protobuf import DecodeError

T = TypeVar("T")

JSON = b"application/json"
PROTOBUF = b"application/x-protobuf"
_DETAIL_LIMIT = 2000
"""Characters of a server's error text that are kept."""


class Endpoint(msgspec.Struct, frozen=True, eq=False):
    """An endpoint's method, path below the base URL, and how its requests behave."""

    path: str
    method: str = "POST"
    traffic: TrafficClass = TrafficClass.SESSION
    content_type: bytes = JSON
    accept: bytes = JSON
    extra_headers: Headers = ()
    silence_s: float | None = 60.0
    """Longest silence of the server after the request, in seconds."""


class Caller:
    """Sends requests to one server as one account.

    Args:
        transport: Carries the bytes.
        config: Base URL and credential.
        policy: When to repeat, unless a call brings its own.
    """

    def __init__(self, transport: Transport, config: Config, policy: RetryPolicy) -> None:
        self._transport = transport
        self._base_path = config.base_path
        self._policy = policy
        self._common: Headers = (
            (b"x-api-key", config.api_key.reveal().encode()),
            (b"user-agent", f"tinker-async/Python {platform.python_version()}".encode()),
            (b"x-stainless-package-version", SDK_VERSION.encode()),
        )
        self._headers: dict[tuple[bytes, bytes, Headers], Headers] = {}

    def _headers_for(self, endpoint: Endpoint) -> Headers:
        key = (endpoint.content_type, endpoint.accept, endpoint.extra_headers)
        headers = self._headers.get(key)
        if headers is None:
            headers = (*self._common, (b"accept", endpoint.accept), *endpoint.extra_headers)
            if endpoint.method not in ("GET", "DELETE"):
                headers = (*headers, (b"content-type", endpoint.content_type))
            self._headers[key] = headers
        return headers

    async def once(self, endpoint: Endpoint, body: Sequence[Buffer] = ()) -> Response:
        """Send a request one time.

        Raises:
            APIStatusError: Any status outside 200-299.
            TransportError: No answer.
        """
        response = await self.exchange(endpoint, body)
        if not 200 <= response.status < 300:
            raise error_of(response, endpoint.path)
        return response

    async def exchange(self, endpoint: Endpoint, body: Sequence[Buffer] = ()) -> Response:
        """Send a request one time and return the answer, whatever its status.

        Raises:
            TransportError: No answer.
        """
        request = Request(
            method=endpoint.method,
            path=self._base_path + endpoint.path,
            headers=self._headers_for(endpoint),
            body=body,
            traffic=endpoint.traffic,
        )
        return await self._transport.request(request, silence_s=endpoint.silence_s)

    async def call(
        self,
        endpoint: Endpoint,
        body: Sequence[Buffer] = (),
        *,
        policy: RetryPolicy | None = None,
        never_repeat: tuple[type[TinkerError], ...] = (),
    ) -> Response:
        """Send a request, repeating it as the policy says.

        Errors of the classes `never_repeat` are the caller's to handle. Cancelling
        abandons the attempt under way.

        Raises:
            APIStatusError: The server refused for good, or kept failing.
            TransportError: The server could not be reached, or did not answer.
        """
        policy = policy or self._policy
        attempt, in_doubt, failing_since = 0, False, None
        while True:
            attempt += 1
            try:
                return await self.once(endpoint, body)
            except TinkerError as error:
                now = anyio.current_time()
                failing_since = now if failing_since is None else failing_since
                in_doubt = in_doubt or may_have_been_processed(error)
                error.delivery_in_doubt = in_doubt
                delay = policy.next_delay(error, attempt=attempt, failing_for_s=now - failing_since)
                if delay is None or isinstance(error, never_repeat):
                    raise
                log.info(
                    "request_repeated",
                    endpoint=endpoint.path,
                    attempt=attempt,
                    delay_s=round(delay, 3),
                    error=type(error).__name__,
                )
            await anyio.sleep(delay)

    async def call_json(
        self,
        endpoint: Endpoint,
        body: object = None,
        *,
        answer: type[T],
        policy: RetryPolicy | None = None,
    ) -> T:
        """Send a JSON body (None: no body) and decode the JSON answer.

        Raises:
            ResponseError: The answer is not of the expected form.
            APIStatusError, TransportError: As `call`.
        """
        buffers = () if body is None else (wire_json.encode(body),)
        response = await self.call(endpoint, buffers, policy=policy)
        return decode_json(response.body, answer, endpoint.path)


def may_have_been_processed(error: TinkerError) -> bool:
    """Whether a request that ended in this error may have had its effect."""
    if isinstance(error, APIStatusError):
        return isinstance(error, InternalServerError)
    return not isinstance(error, ConnectError)


def decode_json(body: Buffer, answer: type[T], path: str) -> T:
    """Decode a JSON answer, naming the endpoint in the error."""
    try:
        return wire_json.decode(body, answer)
    except DecodeError as error:
        raise ResponseError(
            f"{path} answered in an unknown form: {error}", endpoint=path
        ) from error


def error_of(response: Response, path: str) -> APIStatusError:
    """Make the typed error for a response outside 200-299."""
    error = status_error(
        response.status,
        endpoint=path,
        detail=_detail(response.body),
        retry_after_s=parse_retry_after(
            response.header(b"retry-after-ms"), response.header(b"retry-after")
        ),
    )
    verdict = response.header(b"x-should-retry")
    if verdict in (b"true", b"false"):
        error.should_retry = verdict == b"true"
    return error


def _detail(body: Buffer) -> str:
    text = bytes(body[: 4 * _DETAIL_LIMIT]).decode("utf-8", "replace").strip()
    try:
        parsed = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text[:_DETAIL_LIMIT]
    if isinstance(parsed, dict):
        for key in ("detail", "message", "error"):
            value = parsed.get(key)
            if value:
                return (value if isinstance(value, str) else repr(value))[:_DETAIL_LIMIT]
    return text[:_DETAIL_LIMIT]
