"""Which checkpoints a command is about: named by their paths, or selected by what they are.

The rule: what is selected is looked up before anything is done, and a checkpoint whose age is not
known is never selected by age.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from tinker_async.cli.output import Column
from tinker_async.cli.quantities import Duration, Moment, age, amount
from tinker_async.errors import APIStatusError, NotFoundError

if TYPE_CHECKING:
    import tinker_async as ta

T = TypeVar("T")

KINDS = ("training", "sampler", "external")
_FOLDERS = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}
_NO_LISTING = {403, 404, 405, 501}
"""What servers answer that do not list the checkpoints of a run, or not to us."""

COLUMNS = (
    Column("Checkpoint", lambda one: one.tinker_path),
    Column("Kind", lambda one: one.checkpoint_type),
    Column("Size", lambda one: amount(one.size_bytes), right=True),
    Column("Saved", lambda one: age(one.time)),
    Column("Expires", lambda one: age(one.expires_at)),
    Column("Public", lambda one: one.public),
)
"""Of lists of checkpoints."""


class Kind(click.Choice[str]):
    """A kind of checkpoint; also as paths have it, and the official command line: `weights`."""

    def __init__(self) -> None:
        super().__init__(KINDS)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return which of `KINDS` is meant."""
        return super().convert(_FOLDERS.get(value, value), param, ctx)


class Chosen(NamedTuple):
    """A checkpoint to do something with."""

    path: str
    found: ta.Checkpoint | None
    """What the server lists of it, as far as that was asked for and is known."""


class Filters(NamedTuple):
    """What selects among listed checkpoints."""

    kind: str | None = None
    older_than: timedelta | None = None
    keep_last: int | None = None
    """So many of each run and kind are never selected: the newest."""
    before: datetime | None = None
    after: datetime | None = None

    def select(self, checkpoints: Iterable[ta.Checkpoint], now: datetime) -> list[ta.Checkpoint]:
        """Return those that are meant, the newest first. Pure."""
        ordered = newest_first(checkpoints)
        if self.keep_last is not None:
            ordered = _without_newest(ordered, self.keep_last)
        return [one for one in ordered if self._matches(one, now)]

    def _matches(self, one: ta.Checkpoint, now: datetime) -> bool:
        if self.kind is not None and one.checkpoint_type != self.kind:
            return False
        if self.older_than is None and self.before is None and self.after is None:
            return True
        return (
            one.time is not None
            and (self.older_than is None or now - one.time > self.older_than)
            and (self.before is None or one.time < self.before)
            and (self.after is None or one.time > self.after)
        )


class Choice(NamedTuple):
    """What the command line says of checkpoints."""

    paths: tuple[str, ...]
    runs: tuple[str, ...]
    filters: Filters

    @property
    def named(self) -> bool:
        """Whether each of them is named."""
        return bool(self.paths)

    def check(self) -> None:
        """Refuse what says nothing, or too much.

        Raises:
            click.UsageError: Neither paths nor a selection, or both.
            InvalidInputError: Not a checkpoint's path.
        """
        import tinker_async as ta  # noqa: PLC0415  # `--help` shall not load it

        selection = self.runs or any(value is not None for value in self.filters)
        if self.paths and selection:
            raise click.UsageError("give paths or a selection, not both")
        if not self.paths and not selection:
            raise click.UsageError(
                "give paths of checkpoints, or select some with --run, --kind, --older-than, "
                "--before, --after or --keep-last"
            )
        for path in self.paths:
            ta.parse_path(path)

    async def find(self, rest: ta.RestClient) -> list[Chosen]:
        """Return the checkpoints, with what the server lists of them."""
        if self.named:
            return await look_up(rest, tuple(dict.fromkeys(self.paths)))
        listed: list[ta.Checkpoint] = []
        for run in dict.fromkeys(self.runs):
            listed += [one async for one in rest.list_checkpoints(run)]
        if not self.runs:
            listed = [one async for one in rest.list_user_checkpoints()]
        selected = self.filters.select(listed, datetime.now(UTC))
        return [Chosen(one.tinker_path, one) for one in selected]


async def look_up(rest: ta.RestClient, paths: Iterable[str]) -> list[Chosen]:
    """Find named checkpoints in the listings of their runs: one listing for each run."""
    import tinker_async as ta  # noqa: PLC0415  # as above

    listed: dict[str, dict[str, ta.Checkpoint]] = {}
    chosen = []
    for path in paths:
        run = ta.parse_path(path).training_run_id
        if run not in listed:
            listed[run] = await listing(rest, run)
        chosen.append(Chosen(path, listed[run].get(path)))
    return chosen


async def listing(rest: ta.RestClient, run: str) -> dict[str, ta.Checkpoint]:
    """Return the checkpoints of a run by path; none where the server does not list them."""
    try:
        return {one.tinker_path: one async for one in rest.list_checkpoints(run)}
    except APIStatusError as error:
        if error.status not in _NO_LISTING:
            raise
        return {}


def missing(path: str) -> NotFoundError:
    """Make the error for a checkpoint that no listing has."""
    return NotFoundError(f"there is no checkpoint {path}", status=404)


def newest_first(checkpoints: Iterable[ta.Checkpoint]) -> list[ta.Checkpoint]:
    """Sort by time; those without one come last."""
    never = datetime.min.replace(tzinfo=UTC)
    return sorted(checkpoints, key=lambda one: one.time or never, reverse=True)


def _without_newest(ordered: list[ta.Checkpoint], count: int) -> list[ta.Checkpoint]:
    seen: Counter[tuple[str, str]] = Counter()
    rest = []
    for one in ordered:
        group = (one.tinker_path.removeprefix("tinker://").partition("/")[0], one.checkpoint_type)
        seen[group] += 1
        if seen[group] > count and one.time is not None:
            rest.append(one)
    return rest


_OPTIONS = (
    click.argument("paths", nargs=-1, metavar="[PATH]..."),
    click.option(
        "--run",
        "--run-id",
        "runs",
        multiple=True,
        metavar="RUN",
        help="Select the checkpoints of this run; may be given several times. Default: all runs.",
    ),
    click.option("--kind", "--type", "kind", type=Kind(), help="Select this kind."),
    click.option(
        "--older-than",
        type=Duration(),
        metavar="TIME",
        help="Select what was saved longer ago: 12h, 7d, 2w.",
    ),
    click.option(
        "--before",
        type=Moment(),
        metavar="TIME",
        help="Select what was saved before: 2026-07-13, 2026-07-13T08:00Z.",
    ),
    click.option("--after", type=Moment(), metavar="TIME", help="Select what was saved after."),
    click.option(
        "--keep-last",
        type=click.IntRange(min=0),
        metavar="N",
        help="Leave out the newest N of each run and kind.",
    ),
)


def choice_options(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command paths and a selection, as its argument `choice`, a checked `Choice`."""

    @wraps(command)
    def with_choice(
        *args: Any,
        paths: tuple[str, ...],
        runs: tuple[str, ...],
        kind: str | None,
        older_than: timedelta | None,
        keep_last: int | None,
        before: datetime | None,
        after: datetime | None,
        **kwargs: Any,
    ) -> T:
        filters = Filters(kind, older_than, keep_last, before, after)
        choice = Choice(paths, runs, filters)
        choice.check()
        return command(*args, choice=choice, **kwargs)

    for option in reversed(_OPTIONS):
        with_choice = option(with_choice)
    return with_choice
