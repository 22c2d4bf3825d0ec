"""`tinker-async checkpoint delete`."""

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

_VERB = Verb("delete", "deleted", " for good", always_asks=True)


@click.command()
@choice_options
@dry_run_option
@yes_option
@output_options
@connection_options
def delete(
    *, choice: Choice, yes: bool, dry_run: bool, out: Output, connection: Connection
) -> None:
    """Delete checkpoints for good: those at PATH..., or all that are selected.

    \b
    checkpoint delete tinker://RUN/weights/0001 tinker://RUN/weights/0002
    checkpoint delete --run RUN --kind sampler --keep-last 3
    checkpoint delete --older-than 30d --dry-run

    It asks before, and tells of each what became of it.
    """  # noqa: D301  # click's mark: leave these lines as they are

    async def act(rest: ta.RestClient, path: str) -> None:
        await rest.delete_checkpoint_from_tinker_path(path)

    Bulk(_VERB, choice, yes, dry_run, out, connection).run(act)
