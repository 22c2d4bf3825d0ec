"""`tinker-async checkpoint set-ttl`."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from tinker_async.cli.asking import dry_run_option, yes_option
from tinker_async.cli.checkpoint.bulk import Bulk, Verb
from tinker_async.cli.checkpoint.choosing import Choice, choice_options
from tinker_async.cli.connection import Connection, connection_options
from tinker_async.cli.output import Output, output_options
from tinker_async.cli.quantities import Duration

if TYPE_CHECKING:
    import tinker_async as ta


@click.command(name="set-ttl")
@choice_options
@click.option(
    "--ttl",
    type=Duration(),
    metavar="TIME",
    help="Delete them after so long, from now: 12h, 7d. From an hour to ten years.",
)
@click.option("--remove", is_flag=True, help="Keep them for good.")
@dry_run_option
@yes_option
@output_options
@connection_options
def set_ttl(
    *,
    choice: Choice,
    ttl: timedelta | None,
    remove: bool,
    yes: bool,
    dry_run: bool,
    out: Output,
    connection: Connection,
) -> None:
    """Let checkpoints expire, or keep them: those at PATH..., or all that are selected.

    It asks before if they are selected.
    """
    if (ttl is None) is not remove:
        raise click.UsageError("give one of --ttl and --remove")
    seconds = None if ttl is None else int(ttl.total_seconds())
    verb = Verb("keep", "kept") if ttl is None else Verb("expire", "set to expire", f" in {ttl}")

    async def act(rest: ta.RestClient, path: str) -> None:
        await rest.set_checkpoint_ttl_from_tinker_path(path, seconds)

    Bulk(verb, choice, yes, dry_run, out, connection).run(act)
