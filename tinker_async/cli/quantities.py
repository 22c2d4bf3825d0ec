"""Times and sizes as people give and read them: `7d`, "3 days ago", "1.5 GB".

The rule: only people see words; what a program reads has the exact value.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import click

from tinker_async.cli.output import Measure, size

T = TypeVar("T")

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_STEPS = ((86_400 * 365, "year"), (86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


class Duration(click.ParamType[timedelta]):
    """A whole number of seconds, or of minutes, hours, days or weeks: `90m`, `12h`, `7d`, `2w`."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        """Return the time that a text means."""
        if isinstance(value, timedelta):
            return value
        found = re.fullmatch(r"(\d{1,9})([smhdw]?)", str(value).strip(), re.ASCII)
        if found is None:
            self.fail(f"{value!r} is no time: the form is 3600, 90m, 12h, 7d or 2w", param, ctx)
        return timedelta(seconds=int(found[1]) * _UNITS_S[found[2] or "s"])


class Moment(click.ParamType[datetime]):
    """A time of day in ISO 8601, UTC unless it says otherwise: `2026-07-13`, `2026-07-13T08:00Z`."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Return the aware time that a text means."""
        try:
            time = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is no time: the form is 2026-07-13T08:00:00Z", param, ctx)
        return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def age(time: datetime | None) -> Measure | None:
    """Return a time as a cell: how long ago, or in how long, for people."""
    return None if time is None else Measure(time, ago(datetime.now(UTC) - time))


def ago(passed: timedelta) -> str:
    """Say how long ago something was, or in how long it will be, in its largest unit."""
    seconds = passed.total_seconds()
    for unit_s, unit in _STEPS:
        count = int(abs(seconds) // unit_s)
        if count:
            words = f"{count} {unit}{'s' if count > 1 else ''}"
            return f"{words} ago" if seconds > 0 else f"in {words}"
    return "now"


def amount(count_bytes: int | None) -> Measure | None:
    """Return a number of bytes as a cell."""
    return None if count_bytes is None else Measure(count_bytes, size(count_bytes) or "")


def counted(count: int, what: str) -> str:
    """Return `1 checkpoint`, `2 checkpoints`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def limit_option(what: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Give a command `--limit`, as its argument `limit`; 0 is all."""
    return click.option(
        "--limit",
        type=click.IntRange(min=0),
        default=20,
        show_default=True,
        help=f"How many {what} to show; 0 is all.",
    )


def scope_option(what: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Give a command `--access-scope`, as its argument `access_scope`."""
    return click.option(
        "--access-scope",
        type=click.Choice(["owned", "accessible"]),
        default="owned",
        show_default=True,
        help=f"Your own {what}, or all that you may see.",
    )
