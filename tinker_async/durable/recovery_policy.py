"""Whether and how a lost run is brought back: settings, the order of candidates, the pauses.

The rule: a checkpoint that failed is not tried again in the same incident; after the chosen one
come the others, newest first, so that one bad checkpoint does not end a run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from tinker_async.data.paths import parse_path
from tinker_async.durable import settings
from tinker_async.durable.checkpoint_policy import Mode, by_value
from tinker_async.durable.records import CheckpointEntry
from tinker_async.errors import InvalidInputError

if TYPE_CHECKING:
    from tinker_async.training import TrainingClient

Choice: TypeAlias = Callable[[Sequence[CheckpointEntry]], Sequence[CheckpointEntry]]
"""A strategy of one's own: from what is there, newest first, to what is tried, in order."""

OnRecovery: TypeAlias = Callable[
    ["TrainingClient", "TrainingClient", "Candidate | None"], Awaitable[None] | None
]
"""Called after a recovery: the client of the run that was lost, that of the new one, and the
checkpoint that it went on from (None is the model as it was made)."""
OnFailure: TypeAlias = Callable[[str, BaseException], Awaitable[None] | None]
"""Called when there is nothing left to try: the run's id, and the error that leaves the block."""

_NAMED = ("latest", "best", "specific")
_MOST_DOUBLINGS = 30


class RecoveryPolicy(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Whether a durable training brings a lost run back by itself, and how.

    Args:
        enabled: Nothing is automatic unless this is True.
        max_attempts: Attempts without any progress between them before it is given up.
        backoff_s: Most seconds before the second attempt; it doubles with each, and the pause is
            drawn between 0 and that, so that many runs of one incident do not come at once.
        max_backoff_s: Where the doubling ends.
        poll_interval_s: Seconds between looks at the run's state on the server, in case nothing
            else tells of a loss.
        strategy: Which checkpoint is tried first: the `latest`, the `best` by the checkpoint
            policy's metric, the `specific` one of `specific_path`, or a function that is given
            the confirmed checkpoints, newest first, and returns those to try, in order; it is
            not asked where there are none. After the `best` come the next best; after the other
            two the rest, newest first.
        specific_path: For `specific`: a path of `save_state`.
        restore_optimizer: Load the optimizer's state too; without it the run goes on, but not as
            it would have.
        on_recovery: Called after a recovery, while work goes on, with the client of the lost run
            (which refuses all operations), that of the new one, and the `Candidate` it went on
            from (None is the model as it was made). May be a coroutine function. What it raises is
            told as an event (`RecoveryFailed` with `stage="on_recovery"`) and changes nothing.
        on_failure: Called with the run's id and the error when all attempts are used up, before
            the error leaves the block; otherwise like `on_recovery`.
        hook_time_s: How long each of the two may take, in seconds; then it is cancelled. The next
            loss of the same run waits for it.
        concurrency: How many runs of a session may be in recovery at a time.
        fallback: How many checkpoints before the newest confirmed one a living program can go
            back to: so long the operations since then are kept.
        copy_data: Keep copies of the data since then, for programs that write other numbers into
            the arrays of a batch that was sent. Without it they are kept by reference, which costs
            next to nothing, and data that were changed in place cannot be repeated.

    Raises:
        InvalidInputError: A value is none of these; `field` is which.
    """

    enabled: bool = False
    max_attempts: int = 3
    backoff_s: float = 5.0
    max_backoff_s: float = 60.0
    poll_interval_s: float = 30.0
    strategy: Literal["latest", "best", "specific"] | Choice = "latest"
    specific_path: str | None = None
    restore_optimizer: bool = True
    on_recovery: OnRecovery | None = None
    on_failure: OnFailure | None = None
    hook_time_s: float = 30.0
    concurrency: int = 1
    fallback: int = 1
    copy_data: bool = False

    def __post_init__(self) -> None:
        for field in ("enabled", "restore_optimizer", "copy_data"):
            settings.yes_or_no(getattr(self, field), field)
        for field, least in (("max_attempts", 1), ("concurrency", 1), ("fallback", 0)):
            settings.whole(getattr(self, field), least, field)
        for field in ("backoff_s", "max_backoff_s"):
            settings.seconds(getattr(self, field), field)
        for field in ("poll_interval_s", "hook_time_s"):
            settings.seconds(getattr(self, field), field, open_below=True)
        settings.check(
            self.max_backoff_s >= self.backoff_s,
            "max_backoff_s",
            f"must not be less than backoff_s ({self.backoff_s})",
        )
        for field in ("on_recovery", "on_failure"):
            hook = getattr(self, field)
            settings.check(hook is None or callable(hook), field, "must be a function")
        self._check_strategy()

    def _check_strategy(self) -> None:
        named = isinstance(self.strategy, str) and self.strategy in _NAMED
        settings.check(
            named or callable(self.strategy),
            "strategy",
            f"must be one of {', '.join(_NAMED)} or a function, got {self.strategy!r}",
        )
        wants_path = self.strategy == "specific"
        settings.check(
            wants_path == (self.specific_path is not None),
            "specific_path",
            "belongs to the strategy `specific`, and to no other",
        )
        if self.specific_path is not None:
            parse_path(self.specific_path, expect="training", field="specific_path")

    @property
    def strategy_name(self) -> str:
        """The strategy as events and logs tell it: its name, or that of the function."""
        if isinstance(self.strategy, str):
            return self.strategy
        return getattr(self.strategy, "__name__", "function")

    def delay_s(self, attempt: int, random: Callable[[], float]) -> float:
        """Return the seconds to wait after an attempt that failed.

        Args:
            attempt: Which one it was, from 1.
            random: A source of numbers in [0, 1).
        """
        doublings = min(max(attempt - 1, 0), _MOST_DOUBLINGS)
        return random() * min(self.backoff_s * 2.0**doublings, self.max_backoff_s)


class Candidate(msgspec.Struct, frozen=True):
    """A checkpoint to go on from."""

    path: str
    """Of weights and optimizer."""
    entry: CheckpointEntry | None
    """What is on record of it; None for a `specific_path` that is not of this run."""

    @property
    def step(self) -> int | None:
        """Steps that are in it; None where that is not known."""
        return None if self.entry is None else self.entry.step


def choose(
    entries: Sequence[CheckpointEntry],
    policy: RecoveryPolicy,
    failed: Collection[str] = (),
    *,
    metric: str = "loss",
    mode: Mode = "min",
    now_s: float | None = None,
    reachable: Callable[[CheckpointEntry], bool] | None = None,
) -> list[Candidate]:
    """Return the checkpoints to try, in order.

    Args:
        entries: All of the run's, in order; only confirmed ones are candidates.
        policy: Whose strategy decides what comes first.
        failed: Paths that were tried in this incident, and are not to be tried again.
        metric: The checkpoint policy's, for `best`.
        mode: The checkpoint policy's, for `best`.
        now_s: Seconds since 1970, to leave out what the server has deleted by its time to live;
            None leaves nothing out.
        reachable: Whether one can go on from a checkpoint; a living program can only from those
            whose later operations the journal still has. None is for a new program, which does
            what comes after a checkpoint again itself.

    Raises:
        InvalidInputError: A strategy of one's own returned something that is no confirmed entry.
    """
    there = [
        entry
        for entry in reversed(entries)
        if entry.is_confirmed
        and entry.path is not None
        and (now_s is None or not entry.has_expired(now_s))
        and (reachable is None or reachable(entry))
    ]
    ordered = _ordered(there, policy, metric, mode)
    candidates = [Candidate(entry.path, entry) for entry in ordered if entry.path is not None]
    specific = policy.specific_path
    if specific is not None:
        known = next((one for one in candidates if one.path == specific), None)
        if known is None and reachable is None:
            known = Candidate(specific, None)
        if known is not None:
            candidates = [known, *(one for one in candidates if one is not known)]
    return [one for one in candidates if one.path not in failed]


def _ordered(
    there: list[CheckpointEntry], policy: RecoveryPolicy, metric: str, mode: Mode
) -> list[CheckpointEntry]:
    if isinstance(policy.strategy, str):
        first = by_value(there, metric, mode) if policy.strategy == "best" else []
        return [*first, *(entry for entry in there if entry not in first)]
    chosen: list[Any] = list(policy.strategy(tuple(there))) if there else []
    strange = [one for one in chosen if one not in there]
    if strange:
        raise InvalidInputError(
            f"strategy: {policy.strategy_name} returned {strange[0]!r}, which is none of the "
            "checkpoints that it was given",
            field="strategy",
        )
    return chosen
