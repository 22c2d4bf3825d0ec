"""`tinker-async run watch`: a table that follows the runs, or a line for each change."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from tinker_async.cli.connection import Connection, connection_options
from tinker_async.cli.exits import CORRUPTED, one_line
from tinker_async.cli.output import Output, iso, output_options, text_of
from tinker_async.cli.quantities import ago, limit_option, scope_option

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    import tinker_async as ta
    from tinker_async.cli.run_watch_polls import Change, Glance, Watch

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


class Interval(click.ParamType[float]):
    """A time of more than nothing, in seconds: `500ms`, `30s`, `5m`, `12h`, `7d`."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the seconds that a text means."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d{1,9})(ms|[smhd]?)", str(value).strip(), re.ASCII)
        seconds = int(found[1]) * _UNITS_S[found[2] or "s"] if found else 0.0
        if not seconds:
            self.fail(f"{value!r} is no time: the form is 500ms, 30s, 5m, 12h or 7d", param, ctx)
        return seconds


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@limit_option("runs")
@scope_option("runs")
@click.option(
    "--every",
    "every_s",
    type=Interval(),
    default="30s",
    show_default=True,
    metavar="TIME",
    help="How often to look: 30s, 5m.",
)
@click.option(
    "--for",
    "for_s",
    type=Interval(),
    metavar="TIME",
    help="How long to watch: 12h, 7d. Default: until Ctrl-C.",
)
@click.option("--go-on", is_flag=True, help="Do not end when a run is corrupted.")
@output_options
@connection_options
def watch(
    *,
    runs: tuple[str, ...],
    for_s: float | None,
    out: Output,
    connection: Connection,
    **options: Any,
) -> None:
    """Watch runs until one of them is corrupted: those named, or else the newest ones.

    The exit code is 12 if a run was corrupted, and 0 at Ctrl-C or when the time of --for is over. A
    terminal gets a table that follows; otherwise there is a line for each change, with --json an
    object. A look that fails is told, and the next ones come further apart.

    Without a RUN, runs that were corrupted before the first look are only shown.
    """
    # Not at the top: `--help` shall not load the client.
    from tinker_async.cli.run_watch_polls import Watch  # noqa: PLC0415

    watched = Watch(run_ids=runs, **options)
    try:
        with _shown(out) as show:
            _watch(connection, watched, for_s, show)
    except KeyboardInterrupt:
        pass  # how a watch is ended
    for run_id in watched.corrupted:
        out.note(f"run {run_id} is corrupted")
        out.note(f"hint: tinker-async recover {run_id}")
    if watched.corrupted:
        sys.exit(CORRUPTED)


def _watch(connection: Connection, watched: Watch, for_s: float | None, show: _Shown) -> None:
    import anyio  # noqa: PLC0415  # as above

    async def work(rest: ta.RestClient) -> None:
        with anyio.move_on_after(for_s):
            await watched.run(rest, show.glance)

    connection.ask(work)


@contextmanager
def _shown(out: Output) -> Iterator[_Shown]:
    """Give what shows each look: on a terminal in a table, for the length of a block."""
    if out.as_json or not out.terminal:
        yield _Shown(out, None)
        return
    from rich.live import Live  # noqa: PLC0415  # only terminals need it

    with Live(auto_refresh=False) as live:
        yield _Shown(out, live)


class _Shown:
    """Shows each look."""

    def __init__(self, out: Output, live: Live | None) -> None:
        self._out = out
        self._live = live

    def glance(self, glance: Glance) -> None:
        """Show one."""
        if self._live is not None:
            self._live.update(_table(glance), refresh=True)
            return
        for change in glance.changes:
            self._change(change)
        if glance.error is not None:
            self._failure(glance, glance.error)

    def _change(self, change: Change) -> None:
        if self._out.as_json:
            self._out.line(change.as_json())
            return
        run = change.run
        last = run.last_checkpoint and run.last_checkpoint.tinker_path
        cells = (change.time, change.what, run.training_run_id, _status(run), last)
        self._out.text("\t".join(text_of(cell, shown=False) for cell in cells))

    def _failure(self, glance: Glance, error: ta.TinkerError) -> None:
        if self._out.as_json:
            told = {"type": type(error).__name__, "message": error.message}
            what = {"event": "failed", "error": told, "next_s": round(glance.pause_s, 3)}
            self._out.line({"time": glance.time, **what})
        self._out.note(f"{iso(glance.time)} {_failed(glance, error)}")


def _status(run: ta.TrainingRun) -> str:
    return "CORRUPTED" if run.corrupted else "ok"


def _failed(glance: Glance, error: ta.TinkerError) -> str:
    return f"the look failed, the next is in {glance.pause_s:.3g} s: {one_line(error.message)}"


def _table(glance: Glance) -> Table:
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415  # only terminals need it
    from rich.table import Table  # noqa: PLC0415  # as above
    from rich.text import Text  # noqa: PLC0415  # as above

    said = f"{iso(glance.time)}, the next look is in {glance.pause_s:.3g} s. Ctrl-C ends."
    if glance.error is not None:
        said = f"{iso(glance.time)} {_failed(glance, glance.error)}"
    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption=Text(said), caption_justify="left")
    for title in ("Run", "Base model", "Last request", "Status", "Last checkpoint"):
        table.add_column(title, overflow="fold")
    now = datetime.now(UTC)
    for run in glance.runs:
        at, last = run.last_request_time, run.last_checkpoint
        cells = (
            run.training_run_id,
            run.base_model,
            None if at is None else ago(now - at),
            _status(run),
            last and last.checkpoint_id,
        )
        table.add_row(
            *(Text(text_of(cell)) for cell in cells), style="bold red" if run.corrupted else ""
        )
    return table
