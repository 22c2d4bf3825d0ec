"""Doing one thing to many checkpoints, and telling of each what became of it.

The rule: a failure does not keep the others from being done, but for failures that all of them
would meet: a credential that is refused, a server that is not reached. The exit code is that of
the first failure.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tinker_async.cli.asking import agree, check_terminal
from tinker_async.cli.checkpoint.choosing import Choice, Chosen, missing
from tinker_async.cli.connection import Connection
from tinker_async.cli.exits import exit_code, one_line
from tinker_async.cli.output import Output, size, text_of
from tinker_async.cli.quantities import age, amount, counted
from tinker_async.errors import (
    AuthenticationError,
    CredentialError,
    InvalidInputError,
    TinkerError,
    TransportError,
)

if TYPE_CHECKING:
    import tinker_async as ta

_AT_ONCE = 8
_MEET_ALL = (AuthenticationError, CredentialError, InvalidInputError, TransportError)
"""What one checkpoint failed with, the next one would."""


class Verb(NamedTuple):
    """What is done, in words."""

    do: str
    """`delete`, as in "delete 3 checkpoints for good?"."""
    done: str
    """`deleted`"""
    to_them: str = ""
    """` for good`"""
    always_asks: bool = False
    """Whether it asks of checkpoints that are named, too; of selected ones it always does."""


@dataclass
class Outcome:
    """What became of one checkpoint; `result` is what came of it, as the path of a copy."""

    path: str
    outcome: str
    result: str | None = None
    error: TinkerError | None = None

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` shows."""
        error = self.error
        described = error and {"type": type(error).__name__, "message": error.message}
        row = {"tinker_path": self.path, "outcome": self.outcome, "error": described or None}
        return row if self.result is None else {**row, "result": self.result}


@dataclass(frozen=True)
class Bulk:
    """A command about many checkpoints."""

    verb: Verb
    choice: Choice
    yes: bool
    dry_run: bool
    out: Output
    connection: Connection

    def run(self, act: Callable[[ta.RestClient, str], Awaitable[str | None]]) -> None:
        """Look up, show, ask, do and tell.

        Args:
            act: Does it to the checkpoint at a path; what it returns is told.
        """
        if self._asks():
            check_terminal()
        chosen = self._chosen()
        if not chosen:
            self.out.note("no checkpoint is meant")
        if not chosen or self.dry_run:
            self._end([self._planned(one) for one in chosen])
            return
        if self._asks():
            self._agree(chosen)
        paths = [one.path for one in chosen]
        self._end(self.connection.ask(lambda rest: self._do(rest, paths, act)))

    def _asks(self) -> bool:
        if self.yes or self.dry_run:
            return False
        return self.verb.always_asks or not self.choice.named

    def _chosen(self) -> list[Chosen]:
        if self.choice.named and not self.dry_run and not self._asks():
            return [Chosen(path, None) for path in dict.fromkeys(self.choice.paths)]
        return self.connection.ask(self.choice.find)

    def _planned(self, one: Chosen) -> Outcome:
        if one.found is None:
            return Outcome(one.path, "not found", error=missing(one.path))
        outcome = Outcome(one.path, f"would be {self.verb.done}")
        self.out.text(f"{outcome.outcome}\t{_described(one, shown=self.out.terminal)}")
        return outcome

    def _agree(self, chosen: list[Chosen]) -> None:
        for one in chosen:
            self.out.note(f"  {_described(one, shown=True)}")
        total = sum(one.found.size_bytes or 0 for one in chosen if one.found)
        how_many = counted(len(chosen), "checkpoint") + (f" of {size(total)}" if total else "")
        agree(f"{self.verb.do.capitalize()} {how_many}{self.verb.to_them}?")

    async def _do(
        self,
        rest: ta.RestClient,
        paths: list[str],
        act: Callable[[ta.RestClient, str], Awaitable[str | None]],
    ) -> list[Outcome]:
        import anyio  # noqa: PLC0415  # `--help` shall not load it

        outcomes = {path: Outcome(path, "not tried") for path in paths}
        left = iter(paths)
        hopeless = False

        async def work() -> None:
            nonlocal hopeless
            for path in left:
                if hopeless:
                    return
                outcome = outcomes[path]
                try:
                    outcome.result = await act(rest, path)
                except TinkerError as error:
                    outcome.outcome, outcome.error = "failed", error
                    hopeless = hopeless or isinstance(error, _MEET_ALL)
                else:
                    outcome.outcome = self.verb.done
                    tail = f"\t{outcome.result}" if outcome.result else ""
                    self.out.text(f"{self.verb.done}\t{path}{tail}")

        async with anyio.create_task_group() as tasks:
            for _ in range(min(_AT_ONCE, len(paths))):
                tasks.start_soon(work)
        return list(outcomes.values())

    def _end(self, outcomes: list[Outcome]) -> None:
        if self.out.as_json:
            self.out.document([outcome.as_json() for outcome in outcomes])
        failed = [outcome.error for outcome in outcomes if outcome.error is not None]
        for outcome in outcomes:
            if outcome.error is not None:
                self.out.note(f"error: {outcome.path}: {one_line(outcome.error.message)}")
        for hint in dict.fromkeys(error.hint for error in failed if error.hint):
            self.out.note(f"hint: {one_line(hint)}")
        not_tried = sum(outcome.outcome == "not tried" for outcome in outcomes)
        if not_tried:
            self.out.note(f"{counted(not_tried, 'checkpoint')} not tried")
        if failed:
            sys.exit(exit_code(failed[0]))


def _described(one: Chosen, *, shown: bool) -> str:
    found = one.found
    if found is None:
        return f"{one.path}\tnot listed"
    facts = [amount(found.size_bytes), age(found.time), "public" if found.public else ""]
    return "\t".join([one.path, *(text_of(fact, shown=shown) for fact in facts)]).rstrip()
