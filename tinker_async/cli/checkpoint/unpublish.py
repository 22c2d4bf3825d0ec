"""`tinker-async checkpoint unpublish`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tinker_async.cli.asking import dry_run_option, yes_option
from tinker_async.cli.checkpoint.bulk import Bulk, Verb
from tinker_async.cli.checkpoint.choosing import Choice, choice_options
from tinker_async.cli.connection import Connection, connection_options
from tinker_async.cli.output import Output, output_options

if TYPE_CHECKING:
    import tinker_async as ta

_VERB = Verb("unpublish", "unpublished")


@click.command()
@choice_options
@dry_run_option
@yes_option
@output_options
@connection_options
def unpublish(
    *, choice: Choice, yes: bool, dry_run: bool, out: Output, connection: Connection
) -> None:
    """Let only their owner read checkpoints again: those at PATH..., or all that are selected.

    It asks before if they are selected.
    """

    async def act(rest: ta.RestClient, path: str) -> None:
        await rest.unpublish_checkpoint_from_tinker_path(path)

    Bulk(_VERB, choice, yes, dry_run, out, connection).run(act)
