"""`tinker-async usage`: what the organisation used, and stores."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from tinker_async.cli.connection import Connection, connection_options
from tinker_async.cli.output import Column, Output, output_options
from tinker_async.cli.quantities import Moment, amount
from tinker_async.cli.usage_report import GROUPS, add_up, columns, plot, spans

if TYPE_CHECKING:
    import tinker_async as ta

_HOUR = timedelta(hours=1)
STORED = (
    Column("Project", lambda item: item.project_id),
    Column("Owner", lambda item: item.user_name or item.user_email or item.org_user_urn),
    Column("Checkpoints", lambda item: item.checkpoint_count, right=True),
    Column("Stored", lambda item: amount(item.size_bytes), right=True),
    Column("Cost a month", lambda item: item.estimated_monthly_cost_usd, right=True),
)


class _Found(NamedTuple):
    events: list[ta.BillingUsageEvent]
    sessions: dict[str, ta.BillingUsageSession]
    cost_data_through: datetime | None
    storage: ta.CurrentCheckpointStorageUsageResponse


@click.command()
@click.option("--days", type=click.IntRange(min=1), help="The last so many days.  [default: 7]")
@click.option(
    "--from",
    "starting_on",
    type=Moment(),
    metavar="TIME",
    help="From this hour: 2026-07-13T08:00Z.",
)
@click.option(
    "--to", "ending_before", type=Moment(), metavar="TIME", help="Up to this hour. Default: now."
)
@click.option(
    "--by", type=click.Choice(list(GROUPS)), default="model", show_default=True, help="Add up by."
)
@click.option("--project", metavar="ID", help="Only what is of this project.")
@output_options
@connection_options
def usage(
    *,
    days: int | None,
    starting_on: datetime | None,
    ending_before: datetime | None,
    by: str,
    project: str | None,
    out: Output,
    connection: Connection,
) -> None:
    """Show what the organisation used, in tokens and estimated cost, and what it stores now.

    Costs are the server's estimates before credits. The newest hours may be missing still.
    With --json: every event, by hour. It needs the right to see the organisation's billing.
    """
    start, end = _time(days, starting_on, ending_before)

    async def work(rest: ta.RestClient) -> _Found:
        return await _find(rest, start, end, project)

    found = connection.ask(work)
    if out.as_json:
        out.document(_document(found, start, end))
        return
    out.table(add_up(found.events, by), columns(by), empty="nothing was used")
    if not out.terminal:
        return  # one table is what a program can read
    if found.events:
        blocks = "utf" in (sys.stdout.encoding or "").lower()
        out.text("Tokens by day")
        for line in plot(found.events, start, end, blocks=blocks):
            out.text(line)
        out.text("")
    out.text("Stored now")
    out.table(found.storage.data, STORED, empty="nothing is stored")


def _time(
    days: int | None, starting_on: datetime | None, ending_before: datetime | None
) -> tuple[datetime, datetime]:
    if days is not None and starting_on is not None:
        raise click.UsageError("give --days or --from, not both")
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    end = ending_before or now + _HOUR
    start = starting_on or end - timedelta(days=days or 7)
    for name, time in (("--from", start), ("--to", end)):
        if time.astimezone(UTC) != _full_hour(time):
            raise click.BadParameter(f"{time.isoformat()} is no full hour", param_hint=name)
    if start >= end:
        raise click.UsageError("--from is not before --to")
    return start, end


def _full_hour(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


async def _find(rest: ta.RestClient, start: datetime, end: datetime, project: str | None) -> _Found:
    storage = await rest.get_current_checkpoint_storage_usage(project)
    found = _Found([], {}, None, storage)
    for first, last in spans(start, end):
        part = await rest.get_billing_usage(first, last)
        events = [one for one in part.data if project in (None, one.project_id)]
        found.events.extend(events)
        named = {one.session_id for one in events}
        found.sessions.update({key: one for key, one in part.sessions.items() if key in named})
        found = found._replace(cost_data_through=part.cost_data_through or found.cost_data_through)
    return found


def _document(found: _Found, start: datetime, end: datetime) -> dict[str, Any]:
    return {
        "starting_on": start,
        "ending_before": end,
        "usage": found.events,
        "sessions": found.sessions,
        "cost_data_through": found.cost_data_through,
        "storage": found.storage,
    }
