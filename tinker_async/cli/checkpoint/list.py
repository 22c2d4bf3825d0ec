"""`tinker-async checkpoint list`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from tinker_async.cli.checkpoint.choosing import COLUMNS, Filters, Kind, newest_first
from tinker_async.cli.connection import Connection, connection_options
from tinker_async.cli.listing import first, tell_of_more
from tinker_async.cli.output import Output, output_options
from tinker_async.cli.quantities import Duration, limit_option

if TYPE_CHECKING:
    import tinker_async as ta


@click.command(name="list")
@click.option("--run", "--run-id", "run_id", metavar="RUN", help="Of this run. Default: of all.")
@click.option("--kind", "--type", "kind", type=Kind(), help="Only of this kind.")
@click.option(
    "--older-than", type=Duration(), metavar="TIME", help="Only what was saved longer ago: 12h, 7d."
)
@limit_option("checkpoints")
@output_options
@connection_options
def list_command(
    *,
    run_id: str | None,
    kind: str | None,
    older_than: timedelta | None,
    limit: int,
    out: Output,
    connection: Connection,
) -> None:
    """List the checkpoints of a run, or of all runs, the newest first."""
    filters = Filters(kind, older_than)

    async def work(rest: ta.RestClient) -> tuple[list[ta.Checkpoint], bool]:
        if run_id is None:
            now = datetime.now(UTC)
            listed = rest.list_user_checkpoints()
            return await first(listed, limit, lambda one: bool(filters.select([one], now)))
        found = [one async for one in rest.list_checkpoints(run_id)]
        found = newest_first(filters.select(found, datetime.now(UTC)))
        return (found[:limit] if limit else found), 0 < limit < len(found)

    found, more = connection.ask(work)
    out.table(found, COLUMNS, empty="no checkpoints")
    tell_of_more(out, len(found), more=more)
