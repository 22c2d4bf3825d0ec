"""When a checkpoint is due, and which ones may go: decisions about facts, without I/O or clock.

The rule: what must not be lost is named first, and only the rest is looked at for deletion. A
save that takes long never makes a second one wait behind it: what fell due meanwhile is one save.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, Self, TypeAlias

import msgspec

from tinker_async.durable import settings
from tinker_async.durable.records import CheckpointEntry
from tinker_async.errors import InvalidInputError

Strategy: TypeAlias = Literal["steps", "epoch", "best", "last", "all"]
Mode: TypeAlias = Literal["min", "max"]
Reason: TypeAlias = Literal[
    "steps",
    "seconds",
    "epoch",
    "best",
    "all",
    "retry",
    "journal",
    "asked",
    "exit",
    "signal",
    "risky",
]
"""Why a checkpoint is taken: by the policy's schedule, since one failed, since the journal is
full; or at somebody's wish, at the end, at a SIGTERM, before an operation that may go wrong."""

RISKY = frozenset({"load_state", "load_state_with_optimizer", "unload_model"})
"""Operations that put other weights in the place of those that training made."""

_LEAST_TTL_S = 3600.0
"""The service keeps a checkpoint for at least so long."""
_MOST_DOUBLINGS = 5
"""A save that keeps failing is tried again every 32 steps at last."""


class PolicyState(msgspec.Struct, frozen=True):
    """What the policy remembers of the saves so far."""

    step: int = 0
    """Of the newest save that was begun."""
    epoch: int = 0
    """Of the newest save that was begun."""
    saved_s: float = 0.0
    """When it was begun, on the same clock as `now_s`; at first, when the run began."""
    best: float | None = None
    """The best value of the metric at a save that was begun and has not failed."""
    in_flight: bool = False
    """Whether a save is under way."""
    failures: int = 0
    """Saves that failed since the last one that did not."""
    before: PolicyState | None = None
    """What was so before the save under way, for the case that it fails."""

    def begun(
        self, *, step: int, epoch: int = 0, now_s: float, value: float | None = None, mode: Mode
    ) -> PolicyState:
        """Return the state while a save is under way that was taken at this step.

        Args:
            step: Steps that are complete.
            epoch: Epochs that are complete.
            now_s: The present time.
            value: The metric's, as of `CheckpointPolicy.value_of`.
            mode: The policy's.
        """
        best = value if is_better(value, self.best, mode) else self.best
        return PolicyState(
            step=step,
            epoch=epoch,
            saved_s=now_s,
            best=best,
            in_flight=True,
            failures=self.failures,
            before=msgspec.structs.replace(self, before=None),
        )

    def confirmed(self) -> PolicyState:
        """Return the state after the save under way has become a checkpoint."""
        return msgspec.structs.replace(self, in_flight=False, failures=0, before=None)

    def failed(self) -> PolicyState:
        """Return the state after the save under way has failed: its best counts no more.

        The next attempt is due one step later, then two, four, ...
        """
        best = self.best if self.before is None else self.before.best
        return msgspec.structs.replace(
            self, in_flight=False, failures=self.failures + 1, best=best, before=None
        )


class CheckpointPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a durable training saves, and what it keeps.

    Args:
        strategy: `steps`: whenever a multiple of `save_every` has been passed. `epoch`: after
            each epoch. `best`: when `metric` is better than at every save so far. `last`: only
            at the end. `all`: after each step, and nothing is deleted.
        save_every: Steps between saves, for `steps`.
        save_every_s: Besides, when so many seconds have passed since the last save.
        keep_last: How many of the newest confirmed checkpoints are kept; None keeps all.
        save_best: How many of the best are kept besides; True is one. The best is never deleted.
        metric: By which the best is known. A name without its reduction will do: `loss` is
            `loss:mean` or `loss:sum`.
        mode: Whether a smaller (`min`) or a larger value is better.
        ttl_s: Let the server delete a checkpoint after so many seconds (at least 3600), as a
            second guard against leaving some behind; None lets it keep them.
        on_exit: Save when the block ends, and at a SIGTERM.
        before_risky: Save before other weights are loaded over those that training made.

    Raises:
        InvalidInputError: A value is none of these; `field` is which.
    """

    strategy: Strategy = "steps"
    save_every: int = 100
    save_every_s: float | None = None
    keep_last: int | None = 5
    save_best: bool | int = False
    metric: str = "loss"
    mode: Mode = "min"
    ttl_s: float | None = None
    on_exit: bool = True
    before_risky: bool = True

    def __post_init__(self) -> None:
        settings.one_of(self.strategy, ("steps", "epoch", "best", "last", "all"), "strategy")
        settings.one_of(self.mode, ("min", "max"), "mode")
        settings.whole(self.save_every, 1, "save_every")
        if self.save_every_s is not None:
            settings.seconds(self.save_every_s, "save_every_s", open_below=True)
        if self.keep_last is not None:
            settings.whole(self.keep_last, 1, "keep_last")
        if not isinstance(self.save_best, bool):
            settings.whole(self.save_best, 0, "save_best")
        is_name = isinstance(self.metric, str) and bool(self.metric)
        settings.check(is_name, "metric", "must be a metric's name")
        if self.ttl_s is not None:
            settings.seconds(self.ttl_s, "ttl_s", least=_LEAST_TTL_S)
        for field in ("on_exit", "before_risky"):
            settings.yes_or_no(getattr(self, field), field)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Make a policy from a training spec's `{strategy, save_every, keep_last, ...}`.

        Raises:
            InvalidInputError: A value is wrong, or a key means nothing here; `field` is which.
        """
        unknown = sorted(set(spec) - set(cls.__struct_fields__))
        if unknown:
            raise InvalidInputError(
                f"{unknown[0]}: is no setting of a checkpoint policy",
                field=str(unknown[0]),
                hint=f"there are {', '.join(cls.__struct_fields__)}",
            )
        return cls(**spec)

    # When

    def due(
        self,
        state: PolicyState,
        *,
        step: int,
        epoch: int = 0,
        metrics: Mapping[str, float] | None = None,
        now_s: float,
        journal_full: bool = False,
    ) -> Reason | None:
        """Return why a checkpoint is due after a step, or None.

        Never at step 0, never while a save is under way, never twice at one step.

        Args:
            state: What was saved so far.
            step: Steps that are complete.
            epoch: Epochs that are complete.
            metrics: Of this step.
            now_s: The present time, on the clock of `state.saved_s`.
            journal_full: Whether more operations wait for a checkpoint than should.
        """
        if state.in_flight or step <= 0 or step == state.step:
            return None
        if state.failures:
            distance = 2 ** min(state.failures - 1, _MOST_DOUBLINGS)
            return "retry" if step - state.step >= distance else None
        if journal_full:
            return "journal"
        by_schedule = self._scheduled(state, step, epoch, metrics)
        if by_schedule is None and self._is_late(state, now_s):
            return "seconds"
        return by_schedule

    def _scheduled(
        self, state: PolicyState, step: int, epoch: int, metrics: Mapping[str, float] | None
    ) -> Reason | None:
        if self.strategy == "steps":
            return "steps" if step // self.save_every != state.step // self.save_every else None
        if self.strategy == "epoch":
            return "epoch" if epoch > state.epoch else None
        if self.strategy == "best":
            improved = is_better(self.value_of(metrics), state.best, self.mode)
            return "best" if improved else None
        return "all" if self.strategy == "all" else None

    def _is_late(self, state: PolicyState, now_s: float) -> bool:
        return self.save_every_s is not None and now_s - state.saved_s >= self.save_every_s

    def due_before(self, operation: str, state: PolicyState, *, step: int) -> Reason | None:
        """Return `risky` where an operation should not be sent before a save, else None."""
        wanted = self.before_risky and operation in RISKY
        return "risky" if wanted and self._has_news(state, step) else None

    def due_at_end(self, state: PolicyState, *, step: int, signal: bool = False) -> Reason | None:
        """Return `exit` (or `signal`) where the end of the program wants a save, else None."""
        if not self.on_exit or not self._has_news(state, step):
            return None
        return "signal" if signal else "exit"

    @staticmethod
    def _has_news(state: PolicyState, step: int) -> bool:
        """Whether there are steps that no save has; one under way may still fail, but waits."""
        return step > 0 and (step != state.step or bool(state.failures))

    def state_from(self, entries: Sequence[CheckpointEntry], *, now_s: float) -> PolicyState:
        """Return the state in which a program goes on that finds these checkpoints."""
        there = [entry for entry in entries if entry.is_confirmed]
        best: float | None = None
        for entry in there:
            value = self.value_of(entry.metrics)
            best = value if is_better(value, best, self.mode) else best
        newest = there[-1] if there else None
        return PolicyState(
            step=newest.step if newest else 0,
            epoch=newest.epoch if newest else 0,
            saved_s=now_s,
            best=best,
        )

    def value_of(self, metrics: Mapping[str, float] | None) -> float | None:
        """Return the metric's value; None where it is absent or no number."""
        return metric_value(metrics, self.metric)

    # What goes

    def to_delete(
        self,
        entries: Sequence[CheckpointEntry],
        *,
        in_use: Collection[str | int] = (),
        published: Collection[str | int] = (),
    ) -> list[CheckpointEntry]:
        """Return the checkpoints that are to be deleted now, oldest first.

        Only confirmed ones, and only when as many newer ones are confirmed as are to be kept.
        Never the newest confirmed one, the best, one in use, or one that is published.

        Args:
            entries: All of the run's, in order.
            in_use: Paths or numbers of those that something depends on, such as a recovery.
            published: Paths or numbers of those that others may use.
        """
        there = [entry for entry in entries if entry.is_confirmed]
        if self.keep_last is None or self.strategy == "all":
            return []
        kept = {entry.number for entry in there[-self.keep_last :]}
        kept |= {entry.number for entry in self._best(there)}
        held = {*in_use, *published}
        return [
            entry
            for entry in there
            if entry.number not in kept
            and not held & {entry.number, entry.path, entry.sampler_path}
        ]

    def _best(self, there: Sequence[CheckpointEntry]) -> list[CheckpointEntry]:
        return by_value(there, self.metric, self.mode)[: max(int(self.save_best), 1)]


def by_value(entries: Sequence[CheckpointEntry], metric: str, mode: Mode) -> list[CheckpointEntry]:
    """Return those that have a value of the metric, best first; of equal ones the newer first."""
    sign = 1.0 if mode == "min" else -1.0
    rated = [
        (sign * value, -entry.number, entry)
        for entry in entries
        if (value := metric_value(entry.metrics, metric)) is not None
    ]
    return [entry for _, _, entry in sorted(rated, key=lambda one: one[:2])]


def is_better(value: float | None, than: float | None, mode: Mode) -> bool:
    """Whether a value is an improvement; anything is one on nothing."""
    if value is None:
        return False
    return than is None or (value < than if mode == "min" else value > than)


def metric_value(metrics: Mapping[str, float] | None, name: str) -> float | None:
    """Return a finite metric by its name, with its reduction or without; None where there is none."""
    if not metrics:
        return None
    for key in (name, f"{name}:mean", f"{name}:sum"):
        value = metrics.get(key)
        if value is not None:
            return float(value) if math.isfinite(value) else None
    return None
