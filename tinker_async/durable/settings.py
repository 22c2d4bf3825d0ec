"""Checks of settings: what is wrong is said when a policy or a spec is made, and names the field."""

from __future__ import annotations

import math

from tinker_async.errors import InvalidInputError


def check(holds: bool, field: str, says: str) -> None:
    """Raise `InvalidInputError` about a field unless something holds."""
    if not holds:
        raise InvalidInputError(f"{field}: {says}", field=field)


def one_of(value: object, known: tuple[str, ...], field: str) -> None:
    """Check that a value is one of some names."""
    sound = isinstance(value, str) and value in known
    check(sound, field, f"must be one of {', '.join(known)}, got {value!r}")


def whole(value: object, least: int, field: str) -> None:
    """Check that a value is an integer of at least so much."""
    sound = isinstance(value, int) and not isinstance(value, bool) and value >= least
    check(sound, field, f"must be a whole number, at least {least}, got {value!r}")


def yes_or_no(value: object, field: str) -> None:
    """Check that a value is a bool."""
    check(isinstance(value, bool), field, f"must be True or False, got {value!r}")


def seconds(value: object, field: str, *, least: float = 0.0, open_below: bool = False) -> None:
    """Check that a value is a finite number of seconds, at least (or above) so many."""
    sound = False
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        enough = value > least if open_below else value >= least
        sound = math.isfinite(value) and enough
    bound = "above" if open_below else "at least"
    check(sound, field, f"must be seconds, {bound} {least:g}, got {value!r}")
