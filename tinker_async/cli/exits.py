"""How the command line ends: the exit code of each kind of error, and the words on stderr.

The rule: a code says what kind of thing to do about it, a message says what happened; neither
has a traceback or a secret.
"""

from __future__ import annotations

import click

from tinker_async import errors
from tinker_async.errors import TinkerError

OTHER, USAGE, CREDENTIAL, NOT_ALLOWED, NOT_FOUND, IN_THE_WAY = 1, 2, 3, 4, 5, 6
NO_CONNECTION, SERVER, FAILED, DOWNLOAD, LACKING, CORRUPTED, INTERRUPTED = 7, 8, 9, 10, 11, 12, 130

MEANINGS = {
    0: "Done",
    OTHER: "Anything that has no code of its own; also no to a question",
    USAGE: "Wrong usage: an option, a setting, a missing extra, or input that is not right",
    CREDENTIAL: "The credential is wrong or has expired",
    NOT_ALLOWED: "The credential is good, but not for this; or the account is out of credit",
    NOT_FOUND: "There is no such thing on the server, or it is over",
    IN_THE_WAY: "Something is there already, or in a state that excludes this",
    NO_CONNECTION: "The server cannot be reached, is silent, or the connection broke",
    SERVER: "The server is busy, fails, or answers what cannot be understood",
    FAILED: "The server took the work, and it failed or was lost",
    DOWNLOAD: "A download is damaged, or cannot be written",
    LACKING: "The server does not have what is asked for",
    CORRUPTED: "A run that is watched was corrupted",
    INTERRUPTED: "Interrupted by Ctrl-C",
}
"""What each code means."""

_CODES: dict[type[TinkerError], int] = {
    errors.ConfigError: USAGE,
    errors.InvalidInputError: USAGE,
    errors.BadRequestError: USAGE,
    errors.UnprocessableEntityError: USAGE,
    errors.CredentialError: CREDENTIAL,
    errors.AuthenticationError: CREDENTIAL,
    errors.PermissionDeniedError: NOT_ALLOWED,
    errors.BillingError: NOT_ALLOWED,
    errors.NotFoundError: NOT_FOUND,
    errors.GoneError: NOT_FOUND,
    errors.ConflictError: IN_THE_WAY,
    errors.TargetExistsError: IN_THE_WAY,
    errors.TransportError: NO_CONNECTION,
    errors.APIStatusError: SERVER,
    errors.ResponseError: SERVER,
    errors.RequestFailedError: FAILED,
    errors.PromiseLostError: FAILED,
    errors.ModelPoisonedError: FAILED,
    errors.SessionClosedError: FAILED,
    errors.EngineStartError: FAILED,
    errors.DownloadError: DOWNLOAD,
    errors.UnsupportedByServerError: LACKING,
    errors.LedgerError: IN_THE_WAY,
    errors.SupersededError: FAILED,
    errors.RecoveryExhaustedError: FAILED,
}
"""By class; a class that is not here has the code of the next one above it."""


_HINTS: dict[type[TinkerError], str] = {
    errors.TargetExistsError: "give another folder, or --force to replace it",
}
"""In place of the library's, which names its own arguments."""


def exit_code(error: BaseException) -> int:
    """Return the exit code for an error: of its class, or of the nearest class above that has one."""
    return next((_CODES[cls] for cls in type(error).__mro__ if cls in _CODES), OTHER)


def report(error: TinkerError) -> None:
    """Print an error for people, on stderr: one line, and the hint."""
    click.echo(f"error: {one_line(error.message)}", err=True)
    hint = _HINTS.get(type(error), error.hint)
    if hint:
        click.echo(f"hint: {one_line(hint)}", err=True)


def first_error(error: BaseException) -> BaseException:
    """Return what a failure is to be reported as: Ctrl-C if it is in it, else a group's first."""
    if isinstance(error, BaseExceptionGroup) and error.subgroup(KeyboardInterrupt) is not None:
        return KeyboardInterrupt()  # trio raises it in any task
    if isinstance(error, click.Abort) and isinstance(error.__context__, KeyboardInterrupt):
        return error.__context__  # at a question
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def one_line(text: str) -> str:
    """Return a text as one line that steers no terminal: servers write parts of messages."""
    return "".join(one if one.isprintable() else " " for one in text).strip()
