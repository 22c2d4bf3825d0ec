"""The edge at which foreign exceptions become `TransportError`s, by table.

Rule: whoever catches a foreign exception in this package raises what these functions
return, with `from`. A `ConnectError` is returned only where nothing can have been processed.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import anyio

from tinker_async.errors import (
    ConnectError,
    ProtocolError,
    RequestTimeoutError,
    SessionClosedError,
    TinkerError,
    TransportError,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

STREAM_FAILURES: tuple[type[Exception], ...] = (
    OSError,  # ssl.SSLError is one
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    anyio.EndOfStream,
)
"""What reading from or writing to an anyio stream may raise."""

_IN_DOUBT = "the request may or may not have been processed"

_BY_ERRNO: dict[int, tuple[str, str]] = {
    errno.ECONNREFUSED: (
        "nothing listens on {where}",
        "start the server, or check host and port of base_url",
    ),
    errno.EHOSTUNREACH: ("no route to {where}", "check the network and the host"),
    errno.ENETUNREACH: ("no route to {where}", "check the network and the host"),
    errno.ETIMEDOUT: (
        "{where} does not answer",
        "is the address right, and does a firewall let it through?",
    ),
    errno.ECONNRESET: (
        "{where} closed the connection while it was being made",
        "is this the right port, and does it speak the scheme of base_url?",
    ),
    errno.EMFILE: (
        "no socket left in this process for {where}",
        "raise the limit of open files (ulimit -n)",
    ),
}


def connect_error(error: BaseException, where: str, *, secure: bool) -> ConnectError:
    """Return the error for a failed attempt to connect to `where` (host:port)."""
    import socket  # noqa: PLC0415 - loaded by now, but not by an import of this library
    import ssl  # noqa: PLC0415 - as above

    for cause in _causes(error):
        if isinstance(cause, socket.gaierror):
            return ConnectError(
                f"the host name of {where} could not be resolved ({cause.strerror})",
                hint="check the host of base_url and the network",
            )
        if isinstance(cause, ssl.SSLCertVerificationError):
            return ConnectError(
                f"the certificate of {where} was not accepted: {cause.verify_message}",
                hint="pass an ssl_context that trusts the server's authority",
            )
        if isinstance(cause, ssl.SSLError):
            return _tls_error(cause, where)
        if isinstance(cause, OSError) and cause.errno in _BY_ERRNO:
            text, hint = _BY_ERRNO[cause.errno]
            return ConnectError(text.format(where=where), hint=hint)
    if secure:
        return ConnectError(
            f"{where} ended the connection during the TLS handshake",
            hint="does this port speak TLS? If not, use http://",
        )
    return ConnectError(f"no connection to {where}: {_describe(error)}")


def _tls_error(error: ssl.SSLError, where: str) -> ConnectError:
    if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        return ConnectError(
            f"{where} does not speak TLS", hint="use http:// or the server's https port"
        )
    reason = error.reason or _describe(error)
    return ConnectError(
        f"the TLS handshake with {where} failed: {reason}",
        hint="check that both sides share a TLS version, and the server's log",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, what caused it, and the members of groups among them."""
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _causes(member)
    else:
        yield error
        if error.__cause__ is not None:
            yield from _causes(error.__cause__)


def broken_error(error: BaseException | None, where: str) -> TransportError:
    """Return the error for a request that was under way when its connection failed."""
    if error is None or isinstance(error, (anyio.EndOfStream, anyio.ClosedResourceError)):
        text = f"{where} closed the connection before it had answered"
    else:
        text = f"the connection to {where} broke: {_describe(error)}"
    return ProtocolError(text, hint=_IN_DOUBT)


def rules_error(error: BaseException, where: str, *, ours: bool = False) -> ProtocolError:
    """Return the error for a peer that does not keep to HTTP, or a request that does not."""
    text = (
        f"the request to {where} is not valid HTTP" if ours else f"{where} broke the rules of HTTP"
    )
    return ProtocolError(f"{text}: {_describe(error)}", hint=_IN_DOUBT)


def silence_error(where: str, silence_s: float | None = None) -> RequestTimeoutError:
    """Return the error for a server that sent nothing for too long."""
    span = "" if silence_s is None else f" for {silence_s:g} s"
    return RequestTimeoutError(f"{where} was silent{span}", hint=_IN_DOUBT)


def unsent_error(where: str, reason: str) -> ConnectError:
    """Return the error for a request that was certainly not processed."""
    return ConnectError(f"{reason} ({where})", hint="the request was not processed")


def closed_error(where: str) -> SessionClosedError:
    """Return the error for use of a transport whose block was left."""
    return SessionClosedError(
        f"the transport to {where} was closed", hint="use it inside its `async with` block"
    )


def copy_error(error: TinkerError) -> TinkerError:
    """Return an equal error: each waiter raises one of its own."""
    copy = type(error)(error.message, hint=error.hint)
    copy.__cause__ = error.__cause__
    return copy


def _describe(error: BaseException) -> str:
    inner: BaseException = error
    while not str(inner) and inner.__cause__ is not None:
        inner = inner.__cause__
    return str(inner) or type(inner).__name__
