"""`tinker-async session`: what programs have made on the server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tinker_async.cli.connection import Connection, connection_options
from tinker_async.cli.lazy import PortedGroup
from tinker_async.cli.listing import first, tell_of_more
from tinker_async.cli.output import Column, Output, output_options
from tinker_async.cli.quantities import age, amount, limit_option, scope_option
from tinker_async.errors import (
    NotFoundError,
    PermissionDeniedError,
    UnsupportedByServerError,
)

if TYPE_CHECKING:
    import tinker_async as ta

_AT_ONCE = 8
_FINISHES = ("success", "errored", "interrupted")
_STATUSES = ("active", "cancelled", "failed", "finished", *_FINISHES)

LIST_COLUMNS = (
    Column("Session", lambda one: one["session_id"]),
    Column("Name", lambda one: one["display_name"]),
    Column("Runs", lambda one: _count(one["training_run_ids"]), right=True),
    Column("Samplers", lambda one: _count(one["sampler_ids"]), right=True),
    Column("Metadata", lambda one: one["user_metadata"] or None),
)
INFO_FIELDS = (
    Column("Session", lambda one: one["session_id"]),
    Column("Name", lambda one: one["display_name"]),
    Column("Runs", lambda one: one["training_run_ids"] or None),
    Column("Samplers", lambda one: one["sampler_ids"] or None),
    Column("Metadata", lambda one: one["user_metadata"] or None),
)


def status_of(summary: ta.SessionSummary) -> str | None:
    """Return how a session is, in a word or two: `active`, `finished (success)`, `failed`."""
    status = summary.status
    if status is None:
        return None
    reason = getattr(getattr(status, "reason", None), "type", None)
    if status.type == "client_finished":
        return f"finished ({reason})"
    return f"{status.type} ({reason})" if reason else str(status.type)


SEARCH_COLUMNS = (
    Column("Session", lambda one: one.session_id),
    Column("Name", lambda one: one.display_name),
    Column("Created", lambda one: age(one.created_at)),
    Column("Status", status_of),
    Column("Owner", lambda one: one.owner),
    Column("Project", lambda one: one.project_id),
    Column("Checkpoints", lambda one: one.checkpoints_count, right=True),
    Column("Stored", lambda one: amount(one.checkpoint_storage_bytes), right=True),
)


def _count(ids: list[str] | None) -> int | None:
    return None if ids is None else len(ids)


@click.group(cls=PortedGroup, ported={"export-trace": "trace"})
def session() -> None:
    """List, search and inspect sessions."""


@session.command(name="list")
@limit_option("sessions")
@scope_option("sessions")
@click.option("--ids", is_flag=True, help="Only their ids, without a request for each.")
@output_options
@connection_options
def list_sessions(
    *, limit: int, access_scope: str, ids: bool, out: Output, connection: Connection
) -> None:
    """List sessions, the newest first, with the number of their runs and samplers."""

    async def work(rest: ta.RestClient) -> tuple[list[dict[str, Any]], bool]:
        found, more = await first(rest.list_sessions(access_scope=access_scope), limit)
        if ids:
            return [{"session_id": session_id} for session_id in found], more
        return await _described(rest, found, access_scope), more

    found, more = connection.ask(work)
    out.table(found, LIST_COLUMNS[:1] if ids else LIST_COLUMNS, empty="no sessions")
    tell_of_more(out, len(found), more=more)


async def _described(rest: ta.RestClient, ids: list[str], scope: str) -> list[dict[str, Any]]:
    import anyio  # noqa: PLC0415  # `--help` shall not load it

    rows = {session_id: _row(session_id, None) for session_id in ids}
    left = iter(ids)

    async def work() -> None:
        for session_id in left:
            try:
                rows[session_id] = _row(session_id, await rest.get_session(session_id, scope))
            except (NotFoundError, PermissionDeniedError, UnsupportedByServerError):
                continue  # it is gone since, or not for us: the id is what there is

    async with anyio.create_task_group() as tasks:
        for _ in range(min(_AT_ONCE, len(ids))):
            tasks.start_soon(work)
    return list(rows.values())


def _row(session_id: str, found: ta.GetSessionResponse | None) -> dict[str, Any]:
    names = ("display_name", "training_run_ids", "sampler_ids", "user_metadata")
    return {"session_id": session_id, **{name: getattr(found, name, None) for name in names}}


@session.command()
@click.argument("session_id", metavar="SESSION")
@scope_option("sessions")
@output_options
@connection_options
def info(*, session_id: str, access_scope: str, out: Output, connection: Connection) -> None:
    """Show one session: its runs and its samplers."""

    async def work(rest: ta.RestClient) -> dict[str, Any]:
        return _row(session_id, await rest.get_session(session_id, access_scope))

    out.record(connection.ask(work), INFO_FIELDS)


@session.command()
@click.argument("words", nargs=-1)
@click.option("--id", "session_id", metavar="SESSION", help="This one, or what WORDS find.")
@click.option("--project", "projects", multiple=True, metavar="ID", help="In these projects.")
@click.option(
    "--metadata", multiple=True, metavar="KEY=VALUE", help="With all of these in its metadata."
)
@click.option("--status", "statuses", multiple=True, type=click.Choice(_STATUSES))
@click.option(
    "--owner",
    "owners",
    multiple=True,
    metavar="own|accessible|URN",
    help="Yours (the default), those of everybody that you may see, or those of these users.",
)
@limit_option("sessions")
@output_options
@connection_options
def search(
    *,
    words: tuple[str, ...],
    session_id: str | None,
    projects: tuple[str, ...],
    metadata: tuple[str, ...],
    statuses: tuple[str, ...],
    owners: tuple[str, ...],
    limit: int,
    out: Output,
    connection: Connection,
) -> None:
    """Search sessions, the newest first: those with all of WORDS in their name.

    `finished` is what ended by its program's own word: with success, errored or interrupted.
    """
    import tinker_async as ta  # noqa: PLC0415  # `--help` shall not load it

    request = ta.SessionSearchRequest(
        session_id=session_id,
        display_name=" ".join(words) or None,
        project_ids=list(projects) or None,
        user_metadata=dict(_pair(text) for text in metadata),
        statuses=_status_queries(statuses),
        owner=_owner(owners),
        limit=min(limit or 200, 200),
    )

    async def work(rest: ta.RestClient) -> tuple[list[ta.SessionSummary], bool]:
        return await first(rest.search_sessions(request), limit)

    found, more = connection.ask(work)
    out.table(found, SEARCH_COLUMNS, empty="no sessions")
    tell_of_more(out, len(found), more=more)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise click.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--metadata")
    return name, value


def _status_queries(names: tuple[str, ...]) -> list[Any] | None:
    import tinker_async as ta  # noqa: PLC0415  # as above

    plain: dict[str, Any] = {
        "active": ta.ActiveSessionStatusQuery,
        "cancelled": ta.CancelledSessionStatusQuery,
        "failed": ta.FailedSessionStatusQuery,
        "finished": ta.ClientFinishedSessionStatusQuery,
    }
    queries = [plain[name]() for name in names if name in plain]
    reasons = [name for name in names if name in _FINISHES]
    if reasons and "finished" not in names:
        queries.append(ta.ClientFinishedSessionStatusQuery(reasons=reasons))
    return queries or None


def _owner(names: tuple[str, ...]) -> Any:
    import tinker_async as ta  # noqa: PLC0415  # as above

    if names in {(), ("own",)}:
        return ta.OwnSearchOwner()
    if names == ("accessible",):
        return ta.AccessibleSearchOwner()
    if {"own", "accessible"} & set(names):
        raise click.BadParameter("own and accessible stand alone", param_hint="--owner")
    return ta.UserSearchOwner(owner_urns=list(names))


@session.command(name="trace")
@click.argument("session_id", metavar="SESSION")
@click.option(
    "--output",
    "-o",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file. Default: SESSION.pftrace here.",
)
@click.option("--url-only", is_flag=True, help="Print its address, which is good for an hour.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@output_options
@connection_options
def trace(
    *,
    session_id: str,
    target: Path | None,
    url_only: bool,
    force: bool,
    out: Output,
    connection: Connection,
) -> None:
    """Save the timeline of a session's requests, for https://ui.perfetto.dev.

    The server may take a while to build it.
    """
    from tinker_async.cli.traces import fetch_file, file_of  # noqa: PLC0415  # loads the downloads

    file = target or Path(file_of(session_id))
    if not url_only and not force and file.exists():
        raise click.UsageError(f"{file} is there already; --force replaces it")

    async def work() -> dict[str, Any]:
        async with connection.rest() as rest:
            url = await rest.export_session_trace(session_id)
        if url_only:
            return {"session_id": session_id, "url": url}
        size_bytes = await fetch_file(url, file, connection)
        return {"session_id": session_id, "path": str(file), "size_bytes": size_bytes}

    done = connection.run(work)
    if url_only and not out.as_json:
        out.text(done["url"])  # alone, for $(...)
    else:
        out.record(done, TRACE_FIELDS)


TRACE_FIELDS = (
    Column("Session", lambda one: one["session_id"]),
    Column("File", lambda one: one["path"]),
    Column("Size", lambda one: amount(one["size_bytes"])),
)
