"""What was used, added up for people: a table by model, day or whatever, and bars by day. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

from tinker_async.cli.output import Column, Measure

if TYPE_CHECKING:
    import tinker_async as ta

_STEPS = " ▏▎▍▌▋▊▉█"
_PLAIN = " #"
MOST_DAYS = 14
"""Longest time that a server answers for at once."""


def _day(event: ta.BillingUsageEvent) -> str:
    start = event.bucket_start
    return "" if start is None else start.astimezone(UTC).date().isoformat()


GROUPS: dict[str, Callable[[ta.BillingUsageEvent], str | None]] = {
    "model": lambda event: event.base_model,
    "day": _day,
    "session": lambda event: event.session_id,
    "project": lambda event: event.project_id,
    "user": lambda event: event.user_name or event.user_id,
}
"""What can be added up by."""


@dataclass
class Totals:
    """One line of the table."""

    group: str
    training: int = 0
    prefill: int = 0
    cached: int = 0
    sampled: int = 0
    checkpoints: int = 0
    gigabyte_hours: float = 0.0
    cost_usd: float | None = None
    kinds: set[str] = field(default_factory=set)

    @property
    def tokens(self) -> int:
        """Of all kinds."""
        return self.training + self.prefill + self.cached + self.sampled

    def add(self, event: ta.BillingUsageEvent) -> None:
        """Count an event; of kinds that are not known only the cost."""
        info = event.event_info
        kind = getattr(info, "type", "")
        count = getattr(info, "token_count", 0)
        if kind == "training":
            self.training += count
        elif kind == "sampling_prefill" and getattr(info, "cached", False):
            self.cached += count
        elif kind == "sampling_prefill":
            self.prefill += count
        elif kind == "sampling_sample":
            self.sampled += count
        elif kind == "checkpoint":
            self.checkpoints += getattr(info, "count", 0)
        elif kind == "storage":
            self.gigabyte_hours += getattr(info, "gigabyte_hours", 0.0)
        self.kinds.add(kind)
        if event.estimated_cost_usd is not None:
            self.cost_usd = (self.cost_usd or 0.0) + event.estimated_cost_usd


def add_up(events: Iterable[ta.BillingUsageEvent], by: str) -> list[Totals]:
    """Return a line for each group, with most tokens first; days in their order."""
    key = GROUPS[by]
    totals: dict[str, Totals] = {}
    for event in events:
        group = key(event) or ""
        totals.setdefault(group, Totals(group)).add(event)
    if by == "day":
        return [totals[group] for group in sorted(totals)]
    return sorted(totals.values(), key=lambda one: (-one.tokens, one.group))


def _number(count: float) -> Measure | None:
    return Measure(count, f"{count:,.0f}") if count else None


def _dollars(cost: float | None) -> Measure | None:
    return None if cost is None else Measure(cost, f"${cost:,.2f}")


def columns(by: str) -> tuple[Column, ...]:
    """Return the columns of the table."""
    return (
        Column(by.capitalize(), lambda one: one.group or None),
        Column("Trained", lambda one: _number(one.training), right=True),
        Column("Prefilled", lambda one: _number(one.prefill), right=True),
        Column("Cached", lambda one: _number(one.cached), right=True),
        Column("Sampled", lambda one: _number(one.sampled), right=True),
        Column("Checkpoints", lambda one: _number(one.checkpoints), right=True),
        Column("GB hours", lambda one: _number(one.gigabyte_hours), right=True),
        Column("Cost", lambda one: _dollars(one.cost_usd), right=True),
    )


def plot(
    events: Iterable[ta.BillingUsageEvent],
    start: datetime,
    end: datetime,
    *,
    width: int = 40,
    blocks: bool = True,
) -> list[str]:
    """Return a bar of tokens for each day, those without any included.

    Args:
        events: What was used.
        start: Of the first day.
        end: Before it is the last day.
        width: Characters of the longest bar.
        blocks: Whether the terminal has block characters; `#` else.
    """
    tokens = {one.group: one.tokens for one in add_up(events, "day")}
    days = _days(start, end)
    most = max((tokens.get(day.isoformat(), 0) for day in days), default=0)
    return [
        f"{day:%a %d %b}  {_bar(count, most, width, blocks=blocks):<{width}}  {short(count):>6}"
        for day in days
        for count in [tokens.get(day.isoformat(), 0)]
    ]


def _days(start: datetime, end: datetime) -> list[date]:
    first = start.astimezone(UTC).date()
    last = (end.astimezone(UTC) - timedelta(microseconds=1)).date()
    return [first + timedelta(days=day) for day in range((last - first).days + 1)]


def _bar(count: int, most: int, width: int, *, blocks: bool) -> str:
    steps = _STEPS if blocks else _PLAIN
    fine = len(steps) - 1
    filled = round(count / most * width * fine) if most else 0
    if count and not filled:
        filled = 1
    return steps[-1] * (filled // fine) + (steps[filled % fine] if filled % fine else "")


def short(count: float) -> str:
    """Return a number in a few characters: 950, 12.3k, 4.5M."""
    for unit in ("", "k", "M", "G"):
        if count < 999.5:
            return f"{count:.0f}" if not unit else f"{count:.1f}{unit}"
        count /= 1000
    return f"{count:.1f}T"


def spans(start: datetime, end: datetime) -> list[tuple[datetime, datetime]]:
    """Cut a time into parts that a server answers for at once."""
    longest = timedelta(days=MOST_DAYS)
    cuts = []
    while start < end:
        cuts.append((start, min(start + longest, end)))
        start += longest
    return cuts
