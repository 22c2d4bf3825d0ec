"""The question of a session search, checked when it is made, and the page that answers it."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from tinker_async.data.sessions import SessionSummary
from tinker_async.errors import InvalidInputError

_MOST_SESSIONS = 200
_MOST_OWNERS = 10
_FINISHES = ("success", "errored", "interrupted")


class _Choice(msgspec.Struct, frozen=True):
    """Base of the members of the unions here."""

    @property
    def type(self) -> str:
        """Its name on the wire."""
        return str(self.__struct_config__.tag)


class OwnSearchOwner(_Choice, frozen=True, tag="own"):
    """The caller's own sessions."""


class AccessibleSearchOwner(_Choice, frozen=True, tag="accessible"):
    """The sessions of everybody, as far as the caller may see them."""


class UserSearchOwner(_Choice, frozen=True, tag="user"):
    """The sessions of up to ten users."""

    owner_urns: list[str]

    def __post_init__(self) -> None:
        urns = self.owner_urns
        if not isinstance(urns, (list, tuple)) or not 1 <= len(urns) <= _MOST_OWNERS:
            raise _wrong("owner_urns", f"needs a list of 1 to {_MOST_OWNERS} users, got {urns!r}")
        for urn in urns:
            _check_text("owner_urns", urn)


SearchOwner: TypeAlias = OwnSearchOwner | AccessibleSearchOwner | UserSearchOwner


class ActiveSessionStatusQuery(_Choice, frozen=True, tag="active"):
    """Sessions that go on."""


class CancelledSessionStatusQuery(_Choice, frozen=True, tag="cancelled"):
    """Sessions that were cancelled from the console."""


class FailedSessionStatusQuery(_Choice, frozen=True, tag="failed"):
    """Sessions that failed."""


class ClientFinishedSessionStatusQuery(
    _Choice, frozen=True, tag="client_finished", omit_defaults=True
):
    """Sessions whose client said that it was done: `success`, `errored`, `interrupted`, or all."""

    reasons: list[str] | None = None

    def __post_init__(self) -> None:
        reasons = self.reasons
        if reasons is None:
            return
        if not isinstance(reasons, (list, tuple)) or not reasons:
            raise _wrong("reasons", f"needs a list of at least one, or None for all: {reasons!r}")
        for reason in reasons:
            if reason not in _FINISHES:
                raise _wrong("reasons", f"are among {', '.join(_FINISHES)}, got {reason!r}")


SessionStatusQuery: TypeAlias = (
    ActiveSessionStatusQuery
    | CancelledSessionStatusQuery
    | FailedSessionStatusQuery
    | ClientFinishedSessionStatusQuery
)
_OWNERS = (OwnSearchOwner, AccessibleSearchOwner, UserSearchOwner)
_STATUSES = (
    ActiveSessionStatusQuery,
    CancelledSessionStatusQuery,
    FailedSessionStatusQuery,
    ClientFinishedSessionStatusQuery,
)


class SessionSearchCursor(msgspec.Struct, frozen=True):
    """Where the next page starts: the `next_cursor` of a page, given back as it is."""

    last_created_at: str
    """As the server wrote it: the place must not change by a rounding."""
    last_session_id: str

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            _check_text(name, getattr(self, name))


class SessionSearchRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """What to search for; found are sessions in projects that the caller may list.

    Raises:
        InvalidInputError: When made, if a field cannot be right.
    """

    session_id: str | None = None
    """This one; with `display_name` too, either may match."""
    project_ids: list[str] | None = None
    """In these; None is everywhere."""
    user_metadata: dict[str, str] = {}
    """All of these pairs."""
    display_name: str | None = None
    """With each of these words in its name, in upper or lower case."""
    owner: SearchOwner = OwnSearchOwner()
    statuses: list[SessionStatusQuery] | None = None
    """Any of these; None is all."""
    limit: int = 50
    """Sessions on a page: 1 to 200."""
    cursor: SessionSearchCursor | None = None

    def __post_init__(self) -> None:
        for name in ("session_id", "display_name"):
            if (value := getattr(self, name)) is not None:
                _check_text(name, value)
        for project_id in _list("project_ids", self.project_ids):
            _check_text("project_ids", project_id)
        _check_metadata(self.user_metadata)
        _check_kind("owner", self.owner, _OWNERS)
        if self.statuses is not None and not self.statuses:
            raise _wrong("statuses", "needs at least one, or None for all")
        for status in _list("statuses", self.statuses):
            _check_kind("statuses", status, _STATUSES)
        limit = self.limit
        if type(limit) is not int or not 1 <= limit <= _MOST_SESSIONS:
            raise _wrong("limit", f"is a whole number from 1 to {_MOST_SESSIONS}, got {limit!r}")
        if self.cursor is not None:
            _check_kind("cursor", self.cursor, (SessionSearchCursor,))


class SessionSearchResponse(msgspec.Struct, frozen=True):
    """One page of sessions, newest first; without `next_cursor` it is the last."""

    sessions: list[SessionSummary]
    next_cursor: SessionSearchCursor | None = None


def _list(field: str, value: object) -> list[object]:
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        raise _wrong(field, f"is a list, got {value!r}")
    return list(value)


def _check_text(field: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise _wrong(field, f"is a text that is not empty, got {value!r}")


def _check_metadata(value: object) -> None:
    pairs = value.items() if isinstance(value, dict) else [(None, None)]
    if not all(isinstance(key, str) and isinstance(one, str) for key, one in pairs):
        raise _wrong("user_metadata", f"is a dict of str to str, got {value!r}")


def _check_kind(field: str, value: object, kinds: tuple[type, ...]) -> None:
    if not isinstance(value, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise _wrong(field, f"takes {names}, got {value!r}")


def _wrong(field: str, problem: str) -> InvalidInputError:
    return InvalidInputError(f"{field} {problem}", field=field)
