"""Fields that a newer or careless server must not break a listing with: times, and open unions.

The rule: a time that cannot be read is None, and a member of a union that is not known is an
`UnknownVariant`. What has a fixed type stays checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import msgspec

if TYPE_CHECKING:
    MaybeTime: TypeAlias = datetime | None
else:
    MaybeTime: TypeAlias = Any  # read by `Tolerant`, since a decoder would refuse bad ones

_MILLISECONDS_FROM = 2e10
"""Numbers above are no seconds: they would lie beyond the year 2600."""


class UnknownVariant(msgspec.Struct, frozen=True):
    """A member of a union that this version does not know, as the server wrote it."""

    type: str
    fields: dict[str, Any] = msgspec.field(default_factory=dict)


Variants: TypeAlias = Mapping[str, type[Any]]
"""The members of a union by their `type`."""


class Tolerant(msgspec.Struct, frozen=True):
    """Base of records whose fields named here are read with care."""

    _times: ClassVar[tuple[str, ...]] = ()
    """Names of the fields that are times."""
    _unions: ClassVar[Mapping[str, Variants]] = {}
    """Names of the fields that are unions, with what they may be."""

    def __post_init__(self) -> None:
        for name in self._times:
            _set(self, name, parse_time(getattr(self, name)))
        for name, variants in self._unions.items():
            _set(self, name, parse_variant(getattr(self, name), variants))


def parse_time(value: Any) -> datetime | None:
    """Return an aware time from ISO 8601 text, seconds since 1970 or a datetime; None if bad.

    Without a zone it is UTC.
    """
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value.strip())
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            scale = 1000 if abs(value) > _MILLISECONDS_FROM else 1
            value = datetime.fromtimestamp(value / scale, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    if not isinstance(value, datetime):
        return None
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)


def parse_variant(value: Any, variants: Variants) -> Any:
    """Return a member of a union; what is no object, or has no `type`, is None."""
    if not isinstance(value, Mapping):
        return value if isinstance(value, (*variants.values(), UnknownVariant)) else None
    kind = value.get("type")
    if not isinstance(kind, str):
        return None
    known = variants.get(kind)
    if known is not None:
        try:
            return msgspec.convert(value, known)
        except msgspec.ValidationError:
            pass
    return UnknownVariant(kind, {key: one for key, one in value.items() if key != "type"})


def _set(record: Tolerant, name: str, value: Any) -> None:
    if value is not getattr(record, name):
        msgspec.structs.force_setattr(record, name, value)
