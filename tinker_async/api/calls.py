"""One request with retries: the only place that repeats anything.

`Caller.call` sends a request, repeats it by the policy, and returns a 2xx response or
raises the typed error of the last attempt. The error's `delivery_in_doubt` says
whether any attempt may have been processed. Nothing above repeats the same error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import anyio
import msgspec

from tinker_async.api.authentication import Authentication
from tinker_async.api.billing import BillingPause
from tinker_async.api.features import Feature, FeatureBook
from tinker_async.api.progress import (
    DEFAULT,
    Default,
    Progress,
    Timeout,
    check_timeout,
    within,
)
from tinker_async.api.retry import RetryPolicy, check_policy, parse_retry_after
from tinker_async.config import SDK_VERSION, Config, Secret
from tinker_async.errors import (
    APIStatusError,
    BillingError,
    ConnectError,
    InternalServerError,
    ProtocolError,
    ResponseError,
    TinkerError,
    status_error,
)
from tinker_async.events import AttemptFailed, Events
from tinker_async.logs import log
from tinker_async.transport import (
    Buffer,
    Headers,
    Receipt,
    Request,
    Response,
    TrafficClass,
    Transport,
)
from tinker_async.wire import json as wire_json
from tinker_async.wire.protobuf import DecodeError

T = TypeVar("T")

_PYTHON = ".".join(map(str, sys.version_info[:3]))
JSON = b"application/json"
PROTOBUF = b"application/x-protobuf"
API_KEY = b"x-api-key"
"""The header that has the credential."""
_REDACTED = b"[API key]"
_TELLING = 8
"""Shorter secrets than the credential are not looked for: they are part of many words."""
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
    secret_headers: tuple[tuple[bytes, Secret], ...] = ()
    """Sent, and shown nowhere."""
    own_key: bool = False
    """Whether its secret headers have the key that is meant: the connection's is not sent."""
    redirects: bool = False
    """Whether an answer that names another place (3xx) is what was asked for."""
    feature: Feature | None = None
    """What servers without the endpoint lack, where calls for it cannot do without."""


class Caller:
    """Sends requests to one server as one account.

    Args:
        transport: Carries the bytes.
        config: Base URL and credential.
        policy: When to repeat, unless a call brings its own.
        events: Whom to tell of failed attempts; default nobody.
        timeout_s: The limit of public calls that give none; None is no limit.
        silence_limit_s: How long the server may answer nothing at all; None is no limit.
        billing_pause_s: How long requests that are answered 402 are repeated.
        authentication: What is sent as credential; default the configured key as it is.
    """

    def __init__(
        self,
        transport: Transport,
        config: Config,
        policy: RetryPolicy,
        *,
        events: Events | None = None,
        timeout_s: float | None = None,
        silence_limit_s: float | None = 300.0,
        billing_pause_s: float = 0.0,
        authentication: Authentication | None = None,
    ) -> None:
        self._transport = transport
        self.config = config
        """Where to, and the settings of the connection."""
        self.authentication = authentication or Authentication(config.api_key)
        """What is sent as credential."""
        self.features = FeatureBook()
        """What is known of the server."""
        self._base_path = config.base_path
        self.policy = policy
        self.events = events or Events()
        """Where everything that goes on is told."""
        self.timeout_s = timeout_s
        self.silence_limit_s = silence_limit_s
        self.billing = BillingPause(self.events, limit_s=billing_pause_s)
        self.last_contact: float | None = None
        """`anyio.current_time()` of the server's last answer to anything, good or bad."""
        self.paused: set[Progress] = set()
        """Operations whose queue the server says is paused."""
        self._common: Headers = (
            (b"user-agent", f"tinker-async/Python {_PYTHON}".encode()),
            (b"x-stainless-package-version", SDK_VERSION.encode()),
            *((name.encode(), value.reveal().encode()) for name, value in config.headers),
        )
        self._headers: dict[tuple[bytes, bytes, Headers], Headers] = {}
        self._headers_value = self.authentication.value
        self._hidden = tuple(
            secret.reveal().encode()
            for secret in config.secrets
            if len(secret.reveal()) >= _TELLING
        )
        self._known = (*self.authentication.secrets, *self._hidden)
        """What is taken out of answers: kept, since there are many of these."""

    def limit_of(self, timeout: Timeout, retry: RetryPolicy | None = None) -> float | None:
        """Return the seconds that a public call may take: its own word, else the session's.

        Raises:
            InvalidInputError: Not above zero; or what was given as `retry` is no policy.
        """
        if retry is not None:
            check_policy(retry)
        return self.timeout_s if isinstance(timeout, Default) else check_timeout(timeout)

    def _headers_for(self, endpoint: Endpoint) -> Headers:
        value = self.authentication.value
        if value is not self._headers_value:
            self._headers.clear()
            self._headers_value = value
            self._known = (*self.authentication.secrets, *self._hidden)
        key = (endpoint.content_type, endpoint.accept, endpoint.extra_headers)
        headers = self._headers.get(key)
        if headers is None:
            start = ((API_KEY, value), *self._common)
            headers = (*start, (b"accept", endpoint.accept), *endpoint.extra_headers)
            if endpoint.method not in ("GET", "DELETE"):
                headers = (*headers, (b"content-type", endpoint.content_type))
            self._headers[key] = headers
        return headers

    async def once(
        self, endpoint: Endpoint, body: Sequence[Buffer] = (), *, progress: Progress | None = None
    ) -> Response:
        """Send a request one time.

        Raises:
            APIStatusError: Any status outside 200-299.
            TransportError: No answer.
        """
        answer = await self.begin(endpoint, body, receipt=progress)
        return self._accepted(answer, endpoint, progress)

    def _accepted(
        self, answer: Response, endpoint: Endpoint, progress: Progress | None
    ) -> Response:
        response = self.heard(answer, endpoint)
        if progress is not None:
            progress.last_contact = self.last_contact
        most = 400 if endpoint.redirects else 300
        if not 200 <= response.status < most:
            raise error_of(response, endpoint.path)
        return response

    async def exchange(
        self,
        endpoint: Endpoint,
        body: Sequence[Buffer] = (),
        *,
        silence_s: float | None = None,
        receipt: Receipt | None = None,
    ) -> Response:
        """Send a request one time and return the answer, whatever its status.

        Args:
            endpoint: Where to.
            body: What to send.
            silence_s: Listen for so long only, if that is shorter than the endpoint's time.
            receipt: Told when the request is written.

        Raises:
            TransportError: No answer.
        """
        return self.heard(
            await self.begin(endpoint, body, silence_s=silence_s, receipt=receipt), endpoint
        )

    def begin(
        self,
        endpoint: Endpoint,
        body: Sequence[Buffer] = (),
        *,
        silence_s: float | None = None,
        receipt: Receipt | None = None,
    ) -> Coroutine[Any, Any, Response]:
        """Do as `exchange`, but leave the answer as it came: it must be given to `heard`.

        For those of whom thousands wait: one coroutine less in the chain of each.
        """
        limit_s, own_s = endpoint.silence_s, silence_s or self.silence_limit_s
        if own_s is not None and (limit_s is None or own_s < limit_s):
            limit_s = own_s
        if self.authentication.source is None or endpoint.own_key:
            return self._send(endpoint, body, limit_s, receipt)
        return self._send_fresh(endpoint, body, limit_s, receipt)

    def heard(self, answer: Response, endpoint: Endpoint) -> Response:
        """Note that the server lives, and return its answer without secrets."""
        self.last_contact = anyio.current_time()
        return self._without_secrets(answer, endpoint)

    async def _send_fresh(
        self,
        endpoint: Endpoint,
        body: Sequence[Buffer],
        silence_s: float | None,
        receipt: Receipt | None,
    ) -> Response:
        """Send with a credential that may change, and again if that was the reason of a 401."""
        authentication = self.authentication
        await authentication.refresh()
        sent = authentication.value
        response = await self._send(endpoint, body, silence_s, receipt)
        if response.status == 401:
            self.last_contact = anyio.current_time()
            if await authentication.replaced(response, sent):
                response = await self._send(endpoint, body, silence_s, receipt)
        return response

    def _send(
        self,
        endpoint: Endpoint,
        body: Sequence[Buffer],
        silence_s: float | None,
        receipt: Receipt | None,
    ) -> Coroutine[Any, Any, Response]:
        headers, secrets = self._headers_for(endpoint), endpoint.secret_headers
        if endpoint.own_key:
            headers = tuple(one for one in headers if one[0] != API_KEY)
        if secrets:
            headers = (*headers, *((name, one.reveal().encode()) for name, one in secrets))
        request = Request(
            method=endpoint.method,
            path=self._base_path + endpoint.path,
            headers=headers,
            body=body,
            traffic=endpoint.traffic,
            receipt=receipt,
        )
        return self._transport.request(request, silence_s=silence_s)

    def _without_secrets(self, response: Response, endpoint: Endpoint) -> Response:
        """Take secrets out of a text that repeats them: it could end up in an error or a log."""
        if PROTOBUF in (response.header(b"content-type") or b""):
            return response
        body = text = bytes(response.body)
        for secret in self._known:
            if secret in text:
                text = text.replace(secret, _REDACTED)
        if endpoint.secret_headers:
            for _, own in endpoint.secret_headers:
                text = text.replace(own.reveal().encode(), _REDACTED)
        if text is body:
            return response
        return Response(response.status, response.headers, text)

    def redacted(self, text: str) -> str:
        """Return a text without any secret of this connection."""
        for secret in (*self.authentication.secrets, *self._hidden):
            text = text.replace(secret.decode(), _REDACTED.decode())
        return text

    async def call(
        self,
        endpoint: Endpoint,
        body: Sequence[Buffer] = (),
        *,
        policy: RetryPolicy | None = None,
        never_repeat: tuple[type[TinkerError], ...] = (),
        progress: Progress | None = None,
        attempts_before: int = 0,
        unless: Callable[[TinkerError], bool] | None = None,
    ) -> Response:
        """Send a request, repeating it as the policy says.

        Cancelling abandons the attempt under way.

        Args:
            endpoint: Where to.
            body: What to send.
            policy: When to repeat; default the session's.
            never_repeat: Errors that are the caller's to handle, and to tell.
            progress: Where attempts are counted, and whose facts go into the error.
            attempts_before: Requests of the same call that count by the policy already.
            unless: As `never_repeat`, for errors that their class alone does not tell.

        Raises:
            UnsupportedByServerError: The server does not have the endpoint, or does not know a
                field of the request; before anything is sent if that is known already.
            APIStatusError: The server refused for good, or kept failing.
            TransportError: The server could not be reached, or did not answer.
        """
        progress = progress or Progress(endpoint.path)
        if self.features.missing and endpoint.feature is not None:
            self.features.require(endpoint.feature)
        failures: Failures | None = None
        while True:
            progress.attempts += 1
            try:
                answer = await self.begin(endpoint, body, receipt=progress)
                response = self._accepted(answer, endpoint, progress)
            except TinkerError as error:
                if failures is None:
                    policy = policy or self.policy
                    failures = Failures(policy, self.billing, before=attempts_before)
                failures.in_doubt = failures.in_doubt or may_have_been_processed(error)
                progress.in_doubt = progress.in_doubt or failures.in_doubt
                error.delivery_in_doubt = failures.in_doubt
                if isinstance(error, never_repeat) or (unless is not None and unless(error)):
                    progress.describe(error)
                    raise
                delay = 0.0 if failures.is_idle_end(error) else None
                if delay is None:
                    delay = failures.next_delay(error, progress.operation)
                self.note_failure(error, endpoint, progress.operation, progress.attempts, delay)
                if delay is None:
                    progress.describe(error)
                    self._raise_if_unsupported(error, endpoint, body, progress)
                    raise
            else:
                self.billing.note_accepted(endpoint.path)
                return response
            await anyio.sleep(delay)

    def _raise_if_unsupported(
        self, error: TinkerError, endpoint: Endpoint, body: Sequence[Buffer], progress: Progress
    ) -> None:
        """Raise what a refusal stands for, if the server lacks something."""
        if not isinstance(error, APIStatusError) or error.delivery_in_doubt:
            return
        sent = b"".join(body) if endpoint.content_type == JSON else b""
        lacking = self.features.refused(
            error, endpoint=endpoint.path, feature=endpoint.feature, body=sent
        )
        if lacking is not None:
            progress.describe(lacking)
            raise lacking from error

    def note_failure(
        self,
        error: TinkerError,
        endpoint: Endpoint,
        operation: str,
        attempt: int,
        delay_s: float | None,
    ) -> None:
        """Tell of a request that failed, and when it is repeated (None: not at all)."""
        if delay_s is not None:
            log.info(
                "request_repeated",
                endpoint=endpoint.path,
                attempt=attempt,
                delay_s=round(delay_s, 3),
                error=type(error).__name__,
            )
        if self.events.wanted:
            self.events.emit(
                AttemptFailed(
                    operation=operation,
                    endpoint=endpoint.path,
                    attempt=attempt,
                    error=type(error).__name__,
                    message=error.message,
                    status=error.status if isinstance(error, APIStatusError) else None,
                    delay_s=delay_s,
                )
            )

    async def call_json(
        self,
        endpoint: Endpoint,
        body: object = None,
        *,
        answer: type[T],
        policy: RetryPolicy | None = None,
        progress: Progress | None = None,
    ) -> T:
        """Send a JSON body (None: no body) and decode the JSON answer.

        Raises:
            ResponseError: The answer is not of the expected form.
            APIStatusError, TransportError: As `call`.
        """
        buffers = () if body is None else (wire_json.encode(body),)
        response = await self.call(endpoint, buffers, policy=policy, progress=progress)
        return decode_json(response.body, answer, endpoint.path, progress)

    async def ask(
        self,
        operation: str,
        endpoint: Endpoint,
        body: object = None,
        *,
        answer: type[T],
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the public methods' argument, as it is
        retry: RetryPolicy | None = None,
    ) -> T:
        """As `call_json`, for the public method of this name: within its own time.

        Raises:
            RequestTimeoutError: The time is over.
        """
        progress = Progress(operation)

        async def work() -> T:
            return await self.call_json(
                endpoint, body, answer=answer, policy=retry, progress=progress
            )

        return await within(self.limit_of(timeout, retry), progress, work)


class Failures:
    """The failures of one call, one after the other, as the policy counts them."""

    def __init__(self, policy: RetryPolicy, billing: BillingPause, *, before: int = 0) -> None:
        self._policy = policy
        self._billing = billing
        self.number = before
        """How many there were."""
        self._since: float | None = None
        self.in_doubt = False
        """Whether an attempt may have had its effect."""
        self._idle_ends = 0

    def is_idle_end(self, error: TinkerError) -> bool:
        """Whether a request met a connection that was being closed as idle: once, no failure."""
        if not (isinstance(error, ProtocolError) and error.kept) or self._idle_ends:
            return False
        if self._policy.max_attempts == 1:
            return False
        self._idle_ends += 1
        return True

    def next_delay(self, error: TinkerError, operation: str) -> float | None:
        """Return the seconds until the next attempt, or None to give up."""
        if isinstance(error, BillingError):  # a pause of its own, which the policy does not count
            return self._billing.next_delay(error, operation)
        now = anyio.current_time()
        if self._since is None:
            self._since = now
        self.number += 1
        failing_for_s = now - self._since
        return self._policy.next_delay(error, attempt=self.number, failing_for_s=failing_for_s)


def may_have_been_processed(error: TinkerError) -> bool:
    """Whether a request that ended in this error may have had its effect."""
    if error.unsent:
        return False
    if isinstance(error, APIStatusError):
        return isinstance(error, InternalServerError)
    return not isinstance(error, ConnectError)


def decode_json(body: Buffer, answer: type[T], path: str, progress: Progress | None = None) -> T:
    """Decode a JSON answer, naming the endpoint (and the call) in the error."""
    try:
        return wire_json.decode(body, answer)
    except DecodeError as error:
        failure = ResponseError(f"{path} answered in an unknown form: {error}", endpoint=path)
        if progress is not None:
            progress.describe(failure)
        raise failure from error


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
    except (msgspec.DecodeError, RecursionError):
        return text[:_DETAIL_LIMIT]
    if isinstance(parsed, dict):
        for key in ("detail", "message", "error"):
            value = parsed.get(key)
            if value:
                return (value if isinstance(value, str) else repr(value))[:_DETAIL_LIMIT]
    return text[:_DETAIL_LIMIT]
