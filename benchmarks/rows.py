"""Rows of the results: what was measured, of whom, and what it was to be.

A row keeps every run's figure; medians, ranges and verdicts are made from them when it is shown.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal["times_better", "at_most", "at_least", "at_most_times"]


@dataclass
class Target:
    """What a row is to reach.

    `times_better`: so many times better than `than`. `at_most`, `at_least`: an absolute
    bound. `at_most_times`: no more than so many times the figure of `than`.
    """

    kind: Kind
    value: float
    than: str = "official"

    def text(self) -> str:
        if self.kind == "times_better":
            return f"{self.than} x {self.value:g} better"
        if self.kind == "at_most_times":
            return f"<= {self.value:g} x {self.than}"
        return f"{'<=' if self.kind == 'at_most' else '>='} {self.value:g}"

    def held(self, value: float, medians: dict[str, float], *, more_is_better: bool) -> bool | None:
        """Whether a figure reaches it; None when what it is compared with was not measured."""
        if self.kind == "at_most":
            return value <= self.value
        if self.kind == "at_least":
            return value >= self.value
        other = medians.get(self.than)
        if other is None:
            return None
        if self.kind == "at_most_times":
            return value <= self.value * other
        return (value / other if more_is_better else other / value) >= self.value


@dataclass
class Row:
    """One line of a table: a quantity, with the runs of every variant that was measured."""

    name: str
    table: Literal["client", "engine"]
    what: str
    unit: str
    runs: dict[str, list[float]]
    question: str
    ours: str = "asyncio"
    """The variant that the targets are about."""
    than: str | None = "official"
    """What `ours` is shown as a ratio to."""
    more_is_better: bool = False
    must: Target | None = None
    aim: Target | None = None
    note: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def medians(self) -> dict[str, float]:
        return {who: statistics.median(values) for who, values in self.runs.items() if values}

    @property
    def command(self) -> str:
        return f"python -m benchmarks --only {self.question}"

    def times_better(self, who: str | None = None) -> float | None:
        """How many times better one of ours is than what it is compared with."""
        medians = self.medians
        ours, other = medians.get(who or self.ours), medians.get(self.than or "")
        if ours is None or other is None or not ours or not other:
            return None
        return ours / other if self.more_is_better else other / ours

    def verdict(self, target: Target | None) -> bool | None:
        """Whether our median reaches a target."""
        value = self.medians.get(self.ours)
        if target is None or value is None:
            return None
        return target.held(value, self.medians, more_is_better=self.more_is_better)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Row:
        targets = {
            name: Target(**data[name]) if data.get(name) else None for name in ("must", "aim")
        }
        return cls(**{**data, **targets})


def better(value: float, than: str = "official") -> Target:
    """So many times better."""
    return Target("times_better", value, than)


def at_most(value: float) -> Target:
    return Target("at_most", value)


def at_least(value: float) -> Target:
    return Target("at_least", value)


def within(value: float, than: str) -> Target:
    """At most so many times another variant's figure."""
    return Target("at_most_times", value, than)


def column(found: dict[str, list[dict[str, float]]], figure: str) -> dict[str, list[float]]:
    """Take one figure out of the runs of every variant."""
    return {who: [run[figure] for run in runs] for who, runs in found.items()}
