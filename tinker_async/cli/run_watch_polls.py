"""Looking at runs again and again, and telling what has changed since the last look.

The rule: a look that fails says nothing about a run. It is told, and the next one comes later:
only what no repetition changes (a refused credential, a run that never was) ends the watch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

import anyio

import tinker_async as ta
from tinker_async.api.retry import may_repeat
from tinker_async.cli.listing import first

What: TypeAlias = Literal["seen", "corrupted", "healthy", "checkpoint", "gone"]

_Found: TypeAlias = dict[str, ta.TrainingRun | None]
"""Runs by id; None is one that was there before, and is gone."""

_AT_ONCE = 8
_LONGEST_PAUSE_S = 300.0
_ONCE = ta.RetryPolicy(max_attempts=1)
"""A look is not repeated where nobody sees it: that is what the watch itself does."""


@dataclass(frozen=True)
class Change:
    """What is new of a run."""

    time: datetime
    what: What
    """`seen` for the first time, `corrupted` since the last look, `healthy` again, a new
    `checkpoint`, or `gone`: the server does not know it any more."""
    run: ta.TrainingRun
    """As it is now; where it is gone, as it was."""

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {
            "time": self.time,
            "event": self.what,
            "training_run_id": self.run.training_run_id,
            "run": self.run,
        }


@dataclass(frozen=True)
class Glance:
    """One look at all runs."""

    time: datetime
    changes: list[Change]
    runs: list[ta.TrainingRun]
    """As far as they are known by now, in order; those that are gone are not in it."""
    error: ta.TinkerError | None
    """Why the look failed, or a part of it."""
    pause_s: float
    """Seconds to the next."""


@dataclass
class Watch:
    """Watches runs.

    Args:
        run_ids: Which; none is the newest `limit` of the account, at each look.
        limit: 0 is all.
        access_scope: As for `RestClient.list_training_runs`.
        every_s: Seconds between looks.
        go_on: Whether it goes on after a run was corrupted.
    """

    run_ids: Sequence[str] = ()
    limit: int = 20
    access_scope: str = "owned"
    every_s: float = 30.0
    go_on: bool = False
    corrupted: list[str] = field(default_factory=list, init=False)
    """Runs that were lost meanwhile. One that is named counts if it was before, too."""
    _known: dict[str, ta.TrainingRun] = field(default_factory=dict, init=False)
    _gone: set[str] = field(default_factory=set, init=False)
    _lost: set[str] = field(default_factory=set, init=False)
    """Runs that were corrupted when they were last seen, those included that were so at first."""
    _looked: bool = field(default=False, init=False)

    async def run(self, rest: ta.RestClient, on_glance: Callable[[Glance], None]) -> None:
        """Watch until a run is corrupted; with `go_on` until cancelled.

        Args:
            rest: What asks.
            on_glance: Called after each look.

        Raises:
            NotFoundError: A run never was, or none of those named is there any more.
            TinkerError: What no repetition changes.
        """
        pauses = ta.RetryPolicy(base_s=self.every_s, max_s=max(self.every_s, _LONGEST_PAUSE_S))
        failures = 0
        while True:
            found, error = await (self._named(rest) if self.run_ids else self._newest(rest))
            if error is not None and not _may_pass(error):
                raise error
            changes = self._changes(found)
            self._looked = self._looked or error is None
            failures = 0 if error is None else failures + 1
            pause_s = pauses.pause_s(failures) if failures else self.every_s
            runs = list(self._known.values())
            on_glance(Glance(datetime.now(UTC), changes, runs, error, pause_s))
            if self.corrupted and not self.go_on:
                return
            if self.run_ids and self._gone >= {*self.run_ids}:
                gone = ", ".join(dict.fromkeys(self.run_ids))
                raise ta.NotFoundError(f"the server does not know {gone} any more", status=404)
            await anyio.sleep(pause_s)

    # Asking

    async def _newest(self, rest: ta.RestClient) -> tuple[_Found, ta.TinkerError | None]:
        """Return the newest runs; those that were known before stay so if the look fails."""
        listing = rest.list_training_runs(access_scope=self.access_scope, retry=_ONCE)
        try:
            runs, _ = await first(listing, self.limit)
        except ta.TinkerError as error:
            return {}, error
        ids = [run.training_run_id for run in runs]
        seen = next((place for place, one in enumerate(ids) if one in self._known), len(ids))
        # What is not known and comes after a run that is, is older: it only came into view.
        self._lost |= {
            run.training_run_id
            for run in runs[seen:]
            if run.corrupted and run.training_run_id not in self._known
        }
        self._known = {one: self._known[one] for one in ids if one in self._known}
        return dict(zip(ids, runs, strict=True)), None

    async def _named(self, rest: ta.RestClient) -> tuple[_Found, ta.TinkerError | None]:
        """Return what is known of each run by now, and what went wrong first."""
        found: _Found = {}
        errors: list[ta.TinkerError] = []
        limiter = anyio.CapacityLimiter(_AT_ONCE)

        async def ask(run_id: str) -> None:
            async with limiter:
                try:
                    run = await rest.get_training_run(run_id, self.access_scope, retry=_ONCE)
                except ta.TinkerError as error:
                    is_gone = isinstance(error, (ta.NotFoundError, ta.GoneError))
                    if is_gone and run_id in {*self._known, *self._gone}:
                        found[run_id] = None
                    else:
                        errors.append(error)
                else:
                    found[run_id] = run

        async with anyio.create_task_group() as tasks:
            for run_id in dict.fromkeys(self.run_ids):
                tasks.start_soon(ask, run_id)
        lasting = [error for error in errors if not _may_pass(error)]
        in_order = {one: found[one] for one in dict.fromkeys(self.run_ids) if one in found}
        return in_order, next(iter([*lasting, *errors]), None)

    # Comparing

    def _changes(self, found: _Found) -> list[Change]:
        """Take in what was found, and return what is new."""
        now = datetime.now(UTC)
        changes: list[Change] = []
        for run_id, run in found.items():
            old = self._known.get(run_id)
            if run is None:
                if old is not None:
                    changes.append(Change(now, "gone", old))
                    self._gone.add(run_id)
                    del self._known[run_id]
                continue
            self._gone.discard(run_id)
            self._known[run_id] = run
            changes += [Change(now, what, run) for what in _news(old, run)]
            self._note_state(run)
        order = {run_id: place for place, run_id in enumerate(self.run_ids or found)}
        self._known = dict(
            sorted(self._known.items(), key=lambda item: order.get(item[0], len(order)))
        )
        return changes

    def _note_state(self, run: ta.TrainingRun) -> None:
        run_id = run.training_run_id
        if not run.corrupted:
            self._lost.discard(run_id)
        elif run_id not in self._lost:
            self._lost.add(run_id)
            if self.run_ids or self._looked:
                self.corrupted.append(run_id)


def _news(old: ta.TrainingRun | None, new: ta.TrainingRun) -> list[What]:
    if old is None:
        return ["seen"]
    news: list[What] = []
    if old.corrupted != new.corrupted:
        news.append("corrupted" if new.corrupted else "healthy")
    saved, before = new.last_checkpoint, old.last_checkpoint
    if saved is not None and _which(saved) != _which(before):
        news.append("checkpoint")
    return news


def _which(checkpoint: ta.Checkpoint | None) -> object:
    return checkpoint and (checkpoint.tinker_path, checkpoint.time)


def _may_pass(error: ta.TinkerError) -> bool:
    """Whether the next look may well succeed."""
    return may_repeat(error) or isinstance(error, (ta.TransportError, ta.ResponseError))
