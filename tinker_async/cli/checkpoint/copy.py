"""`tinker-async checkpoint copy`."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from tinker_async.cli.checkpoint.bulk import Bulk, Verb
from tinker_async.cli.checkpoint.choosing import Choice, Filters
from tinker_async.cli.connection import Connection, connection_options
from tinker_async.cli.output import Output, output_options
from tinker_async.cli.quantities import Duration

if TYPE_CHECKING:
    import tinker_async as ta

_TOKEN = "TINKER_WEIGHTS_ACCESS_TOKEN"  # noqa: S105  # the name of a variable
_VERB = Verb("copy", "copied")


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--project",
    envvar="TINKER_PROJECT_ID",
    show_envvar=True,
    required=True,
    metavar="ID",
    help="The project to copy to.",
)
@click.option("--ttl", type=Duration(), metavar="TIME", help="The copies expire after so long.")
@output_options
@connection_options
def copy(
    *,
    paths: tuple[str, ...],
    project: str,
    ttl: timedelta | None,
    out: Output,
    connection: Connection,
) -> None:
    """Copy checkpoints into a project, and print the paths of the copies. No bytes are doubled.

    A checkpoint of another account is copied with the token in TINKER_WEIGHTS_ACCESS_TOKEN.
    """
    choice = Choice(paths, (), Filters())
    choice.check()
    seconds = None if ttl is None else int(ttl.total_seconds())
    token = os.environ.get(_TOKEN) or None

    async def act(rest: ta.RestClient, path: str) -> str:
        return await rest.copy_weights(
            path, project, ttl_seconds=seconds, weights_access_token=token
        )

    Bulk(_VERB, choice, yes=True, dry_run=False, out=out, connection=connection).run(act)
