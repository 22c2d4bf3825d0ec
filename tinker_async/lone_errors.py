"""Which exception leaves a task group: a lone failure leaves as itself."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from tinker_async.errors import SessionClosedError, SessionLostError


@contextmanager
def lone_errors() -> Generator[None]:
    """Wrap `async with create_task_group()`: unwrap the group's one level.

    A group of one exception is replaced by it, with its cause and context as they
    were. Where several failed, consequences of the session's own end are left out
    when the reason is there; only what is left of two or more stays a group.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        errors = _without_consequences(group.exceptions)
        if len(errors) != 1:
            raise
        error = errors[0]
        context, suppress = error.__context__, error.__suppress_context__
        try:
            raise error
        finally:
            error.__context__, error.__suppress_context__ = context, suppress
            del error, errors, group


def _without_consequences(errors: tuple[BaseException, ...]) -> list[BaseException]:
    unique = list({id(error): error for error in errors}.values())
    reason = next((error for error in unique if isinstance(error, SessionLostError)), None)
    if reason is None:
        return unique
    return [
        error for error in unique if error is reason or not isinstance(error, SessionClosedError)
    ]
