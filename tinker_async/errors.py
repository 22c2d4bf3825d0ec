"""Every exception of the library, in one tree under `TinkerError`.

A message says what happened and where; `hint` says what to do. Facts are plain
attributes (strings and numbers), so that every error pickles and none carries a
secret or a live object. `retryable` says whether repeating the same request can
help: the retry policy reads nothing else.
"""

from __future__ import annotations

from typing import Any, ClassVar


class TinkerError(Exception):
    """Base of all errors of this library; never raised itself."""

    retryable: ClassVar[bool] = False
    _advice: ClassVar[str | None] = None
    """The hint of those that are made without one."""

    should_retry: bool | None = None
    """The server's own verdict (`x-should-retry`), which beats `retryable`."""
    delivery_in_doubt: bool = False
    """Whether the failed request may have had its effect on the server all the same."""
    unsent: bool = False
    """Whether it came before the request went out, such as from the exchange of a credential."""
    operation: str | None = None
    """The public method whose call ended in this error."""
    request_id: str | None = None
    """The server's id of that call's request, where it had accepted one."""
    attempts: int | None = None
    """Requests that were sent for the call, polls not counted."""
    queue_state: str | None = None
    """What the server last said of the request's place in its queue."""
    silent_s: float | None = None
    """Seconds from the server's last answer to a request of this call to the error."""

    def __init__(self, message: str, *, hint: str | None = None, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self._advice
        self._facts = facts
        for name, value in facts.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def add_context(self, **known: str | float | None) -> None:
        """Set facts of the call (`operation`, `attempts`, ...) that are not set already."""
        for name, value in known.items():
            if value is not None and getattr(self, name) is None:
                setattr(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        context = {name: getattr(self, name) for name in _CONTEXT if name in self.__dict__}
        return _rebuild, (type(self), self.message, self.hint, self._facts, context)


_CONTEXT = (
    "should_retry",
    "delivery_in_doubt",
    "unsent",
    "operation",
    "request_id",
    "attempts",
    "queue_state",
    "silent_s",
)


def _rebuild(
    cls: type[TinkerError],
    message: str,
    hint: str | None,
    facts: dict[str, Any],
    context: dict[str, Any],
) -> TinkerError:
    error = cls(message, hint=hint, **facts)
    for name, value in context.items():
        setattr(error, name, value)
    return error


class ConfigError(TinkerError, ValueError):
    """A setting is missing or malformed; nothing was sent."""


class MissingExtraError(ConfigError, ImportError):
    """An optional dependency is not installed; `hint` has the command that installs it."""


class CredentialError(TinkerError):
    """There is no credential to send: the token has expired, or the command that prints one failed."""

    _advice = "pass a fresh credential, or set TINKER_CREDENTIAL_CMD to a command that prints one"


class InvalidInputError(TinkerError, ValueError):
    """An argument cannot be right; nothing was sent. `field` names it."""

    field: str

    def __init__(self, message: str, *, field: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, field=field)


class TransportError(TinkerError):
    """The request may or may not have reached the server."""

    _advice = "look at the network and the server; its attempts are used up"

    retryable = True


class ConnectError(TransportError):
    """No connection could be made: the request was certainly not sent."""


class RequestTimeoutError(TransportError, TimeoutError):
    """The server was silent for longer than the limit."""

    _advice = "wait longer, or look at the server"


class ProtocolError(TransportError):
    """The connection broke, or the peer's bytes were not HTTP."""

    kept: bool = False
    """Whether it was a connection that had been idle, and broke without a byte of an answer: most
    likely the server was closing it when the request set out."""


class ResponseError(TinkerError):
    """The server's answer could not be understood. Not a sign that the work failed."""

    _advice = "compare the versions of client and server; the work itself may be done"

    endpoint: str

    def __init__(self, message: str, *, endpoint: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, endpoint=endpoint)


class APIStatusError(TinkerError):
    """The server answered with an HTTP error status.

    `status` is the HTTP status, `endpoint` the path, `detail` the server's own text,
    `retry_after_s` its wish for a pause (seconds) or None.
    """

    _advice = "read status and detail"

    status: int
    endpoint: str
    detail: str
    retry_after_s: float | None

    def __init__(
        self,
        message: str,
        *,
        status: int,
        endpoint: str = "",
        detail: str = "",
        retry_after_s: float | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(
            message,
            hint=hint,
            status=status,
            endpoint=endpoint,
            detail=detail,
            retry_after_s=retry_after_s,
        )

    @property
    def status_code(self) -> int:
        """Another name of `status`."""
        return self.status


class BadRequestError(APIStatusError):
    """400: the server refused the request's content."""

    _advice = "correct what detail names"


class AuthenticationError(APIStatusError):
    """401: the credential is missing, wrong or expired."""

    _advice = "check the API key"


class BillingError(APIStatusError):
    """402: the account is out of credit or blocked."""

    _advice = "check the account's billing state"


class PermissionDeniedError(APIStatusError):
    """403: the credential is good, but not for this."""

    _advice = "the key is valid but has no right to this"


class NotFoundError(APIStatusError):
    """404: no such endpoint, run, checkpoint or promise."""

    _advice = "check the name or path; it may be deleted"


class ConflictError(APIStatusError):
    """409: the thing exists already, or is in a state that excludes the request."""

    _advice = "look at what is there before trying again"


class GoneError(APIStatusError):
    """410: it existed and is over, such as a session or a promise."""

    _advice = "make it anew, from the last checkpoint"


class UnprocessableEntityError(APIStatusError):
    """422: the body was read but is not what the endpoint takes."""

    _advice = "compare the versions of client and server"


class RateLimitError(APIStatusError):
    """429: too much at once; wait and send again."""

    _advice = "send less at once, or be more patient with retry="

    retryable = True


class InternalServerError(APIStatusError):
    """5xx: the server failed."""

    _advice = "look at the server, then go on from what it still has"

    retryable = True


class OverloadedError(APIStatusError):
    """408 and 425: not now, but the request itself is fine."""

    _advice = "come back later, or be more patient with retry="

    retryable = True


class RequestFailedError(TinkerError):
    """The server accepted an operation, then failed to carry it out.

    `category` is `user` (the input was at fault), `server` or `unknown`.
    """

    _advice = "read the message; the number is used up, and later operations go on"

    category: str
    request_id: str

    def __init__(
        self, message: str, *, category: str, request_id: str, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint, category=category, request_id=request_id)


class PromiseLostError(TinkerError):
    """The server no longer knows a promise it gave (404 or 410 on its retrieval)."""

    _advice = "the result is out of reach; go on from a checkpoint"

    request_id: str

    def __init__(self, message: str, *, request_id: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, request_id=request_id)


class OperationWithdrawnError(TinkerError):
    """The operation was withdrawn with `APIFuture.cancel()` before it was sent."""


class SessionClosedError(TinkerError):
    """The session was used outside its block, or its block ended first."""


class SessionLostError(SessionClosedError):
    """The server ended the session (410 on a heartbeat), or the credential was revoked."""


class ModelPoisonedError(TinkerError):
    """A request of this model was lost, so later ones cannot be ordered.

    The lost one is the first: `lost_operation` and `lost_seq_id` say which, `lost_error` (a
    class's name) and `lost_message` how. Its own error is the `__cause__`.
    """

    model_id: str
    lost_operation: str
    lost_seq_id: int
    lost_error: str
    lost_message: str

    def __init__(
        self,
        message: str,
        *,
        model_id: str,
        lost_operation: str,
        lost_seq_id: int,
        lost_error: str,
        lost_message: str,
        hint: str | None = None,
    ) -> None:
        super().__init__(
            message,
            hint=hint,
            model_id=model_id,
            lost_operation=lost_operation,
            lost_seq_id=lost_seq_id,
            lost_error=lost_error,
            lost_message=lost_message,
        )


class UnsupportedByServerError(TinkerError):
    """The server does not have what the call asks for, such as a newer endpoint or argument.

    Raised before anything is sent where the session knows it already. `feature` is one of
    `Feature`; `session.server.features` says what else is known.
    """

    _advice = "do without it, or use a server that has it; session.server.features says more"

    feature: str

    def __init__(self, message: str, *, feature: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, feature=feature)


class DownloadError(TinkerError):
    """A checkpoint could not be downloaded: what came is damaged, or not what was announced."""

    _advice = "call again: what was received whole is kept and gone on from"


class UnsafeDownloadError(DownloadError):
    """A checkpoint's file has a name, type or size that must not reach the disk.

    Nothing was put in place, and what was received is removed. `member` is the name, shortened
    and in ASCII; empty where it is the archive as a whole.
    """

    _advice = "do not use this checkpoint; tell whoever gave it to you, or the server's operator"

    member: str

    def __init__(self, message: str, *, member: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, member=member)


class TargetExistsError(DownloadError, FileExistsError):
    """There is something where the download is to go; it was not touched."""

    _advice = "give another folder, or overwrite=True"


class DiskError(DownloadError, OSError):
    """The download cannot be written: the disk is full, or the folder may not be written.

    `path` is what could not be written; `reason` is `full`, `forbidden` or `other`.
    """

    _advice = "make room or give another folder, then call again to go on"

    path: str
    reason: str

    def __init__(self, message: str, *, path: str, reason: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, path=path, reason=reason)


class EngineStartError(TinkerError):
    """The embedded engine could not be started; `detail` has the last lines it wrote."""

    detail: str

    def __init__(self, message: str, *, detail: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint, detail=detail)


class LedgerError(TinkerError):
    """The record of a durable run cannot be used: another process writes it, or it is damaged.

    `path` is the file; `reason` is `in_use`, `damaged`, `unwritable` or `other_run`.
    """

    _advice = "look at the file; what is before the damage is still readable"

    path: str
    reason: str

    def __init__(self, message: str, *, path: str, reason: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, path=path, reason=reason)


class SupersededError(TinkerError):
    """The call was made for a run that a recovery has replaced since.

    `generation` is the one that it belonged to, `current` the one that goes on.
    """

    _advice = "use the durable client itself; what it made before a recovery ends with that run"

    generation: int
    current: int

    def __init__(
        self, message: str, *, generation: int, current: int, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint, generation=generation, current=current)


class RecoveryExhaustedError(TinkerError):
    """A run was lost, and no attempt to bring it back succeeded; nothing was deleted.

    `run_id` is the lost run, `attempts` how many were made, and `history` one line for each thing
    that was tried, oldest first. The last attempt's own error is the `__cause__`.
    """

    _advice = "read history, then start the program again: it goes on from the newest checkpoint"

    run_id: str
    history: tuple[str, ...]

    def __init__(
        self,
        message: str,
        *,
        run_id: str,
        attempts: int,
        history: tuple[str, ...],
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint, run_id=run_id, attempts=attempts, history=history)


_BY_STATUS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    402: BillingError,
    403: PermissionDeniedError,
    404: NotFoundError,
    408: OverloadedError,
    409: ConflictError,
    410: GoneError,
    422: UnprocessableEntityError,
    425: OverloadedError,
    429: RateLimitError,
}


def status_error(
    status: int, *, endpoint: str, detail: str, retry_after_s: float | None = None
) -> APIStatusError:
    """Return the error for an HTTP error status, by table."""
    cls = _BY_STATUS.get(status)
    if cls is None:
        cls = InternalServerError if status >= 500 else APIStatusError
    text = f"{endpoint} answered {status}: {detail}" if detail else f"{endpoint} answered {status}"
    return cls(text, status=status, endpoint=endpoint, detail=detail, retry_after_s=retry_after_s)
