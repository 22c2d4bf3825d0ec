"""Which request meets which fault: rules in the order they were added, the first one counts."""

from __future__ import annotations

from collections.abc import Iterable

from tinker_async.errors import ConfigError
from tinker_async.testing.faults import Fault

EVERYWHERE = "*"
CONNECT = "connect"
"""Stands for each new connection."""


class Rule:
    """One rule of a script."""

    def __init__(
        self,
        script: FaultScript,
        endpoint: str,
        fault: Fault,
        occurrences: frozenset[int] | None,
        times: int | None,
    ) -> None:
        self.endpoint = endpoint
        self.fault = fault
        self.hits = 0
        """How many requests met the fault."""
        self._script = script
        self._occurrences = occurrences
        self._times = times
        self._seen: dict[str, int] = {}

    def remove(self) -> None:
        """Take the rule out of its script. Again is fine."""
        self._script._remove(self)  # noqa: SLF001  # its own family

    def _choose(self, endpoint: str) -> Fault | None:
        if self.endpoint not in (endpoint, EVERYWHERE):
            return None
        key = self.endpoint if self.endpoint != EVERYWHERE else endpoint
        count = self._seen[key] = self._seen.get(key, 0) + 1
        if self._occurrences is not None and count not in self._occurrences:
            return None
        if self._times is not None and self.hits >= self._times:
            return None
        return self.fault.chosen(endpoint, count)

    def __repr__(self) -> str:
        return f"<Rule {self.fault} at {self.endpoint}: {self.hits} hits>"


class FaultScript:
    """The faults of a fake server: `service.faults`."""

    def __init__(self, endpoints: Iterable[str]) -> None:
        self._endpoints = {*endpoints, EVERYWHERE, CONNECT}
        self._rules: list[Rule] = []

    def on(
        self,
        endpoint: str,
        fault: Fault,
        *,
        occurrence: int | Iterable[int] | None = None,
        times: int | None = None,
    ) -> Rule:
        """Let requests of an endpoint meet a fault, from now on.

        Args:
            endpoint: Its path below `/api/v1/` without ids, such as `asample`,
                `client/config` or `retrieve_future`; `*` for all of them, each counted
                on its own; `connect` for new connections.
            fault: One of `tinker_async.testing.faults`.
            occurrence: Which requests, counted from 1 as of now; None is all.
            times: At most so many.

        Returns:
            The rule, which counts its hits and can be removed.

        Raises:
            ConfigError: There is no such endpoint.
        """
        if endpoint not in self._endpoints:
            raise ConfigError(
                f"the fake server has no endpoint {endpoint!r}",
                hint=f"it has {', '.join(sorted(self._endpoints))}",
            )
        numbers = (
            None
            if occurrence is None
            else frozenset([occurrence] if isinstance(occurrence, int) else occurrence)
        )
        rule = Rule(self, endpoint, fault, numbers, times)
        self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Remove all rules."""
        self._rules.clear()

    def any_of(self, kind: type[Fault]) -> bool:
        """Whether a rule has a fault of this kind (one of several in `Random` included)."""
        found = [rule.fault for rule in self._rules]
        found += [kind for fault in found for kind in getattr(fault, "kinds", ())]
        return any(isinstance(fault, kind) for fault in found)

    def choose(self, endpoint: str) -> Fault | None:
        """Return the fault of the next request of an endpoint. Every rule counts the request."""
        chosen: Fault | None = None
        for rule in self._rules:
            fault = rule._choose(endpoint)  # noqa: SLF001  # its own family
            if fault is not None and chosen is None:
                chosen = fault
                rule.hits += 1
        return chosen

    def _remove(self, rule: Rule) -> None:
        if rule in self._rules:
            self._rules.remove(rule)
