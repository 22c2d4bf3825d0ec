"""`tinker-async checkpoint save`: a checkpoint once more, under another name or for another use.

A model that a program trains is not saved from here: its operations are numbered by that program,
and one of ours in between would end its work.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from tinker_async.cli.checkpoint.choosing import KINDS, newest_first
from tinker_async.cli.connection import Connection, connection_options
from tinker_async.cli.output import Column, Output, output_options
from tinker_async.cli.quantities import Duration
from tinker_async.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    import tinker_async as ta

MADE_BY = {"created_by": "tinker-async checkpoint"}
"""Metadata of the runs that the command line makes."""


@click.command()
@click.argument("source")
@click.option("--name", required=True, help="Of the new checkpoint.")
@click.option(
    "--as",
    "kind",
    type=click.Choice(KINDS),
    default="training",
    show_default=True,
    help="What it shall be for: to go on training, to sample from, or for other programs.",
)
@click.option("--ttl", type=Duration(), metavar="TIME", help="It expires after so long: 12h, 7d.")
@output_options
@connection_options
def save(
    *,
    source: str,
    name: str,
    kind: str,
    ttl: timedelta | None,
    out: Output,
    connection: Connection,
) -> None:
    """Save a checkpoint once more, under another name or for another use.

    SOURCE is the path of a training checkpoint, or the id of a run, whose newest training
    checkpoint is meant. It is loaded into a new run, from which the new checkpoint is saved: so
    training checkpoints become such for sampling (--as sampler), or such that every server
    lets download (--as external).

    A model that is being trained is saved by the program that trains it, not from here.
    """
    check_name(name)
    _check_source(source)
    seconds = None if ttl is None else int(ttl.total_seconds())

    async def work() -> str:
        async with connection.session(display_name="checkpoint save") as session:
            path = await _path_of(session.rest, source)
            trainer = await load(session, path, with_optimizer=kind == "training")
            return await _save(trainer, kind, name, seconds)

    path = connection.run(work)
    out.record({"tinker_path": path}, (Column("Checkpoint", lambda row: row["tinker_path"]),))


def check_name(name: str) -> None:
    """Refuse what cannot be the name of a checkpoint."""
    if re.fullmatch(r"[A-Za-z0-9._-]{1,128}", name) is None or set(name) == {"."}:
        raise InvalidInputError(
            f"name: {name!r} is no name of a checkpoint",
            field="name",
            hint="it has letters, digits, dots, dashes and underscores",
        )


def _check_source(source: str) -> None:
    import tinker_async as ta  # noqa: PLC0415  # `--help` shall not load it

    if source.startswith("tinker://"):
        ta.parse_path(source, expect="training", field="source")


async def _path_of(rest: ta.RestClient, source: str) -> str:
    if source.startswith("tinker://"):
        return source
    listed = [one async for one in rest.list_checkpoints(source)]
    for one in newest_first(listed):
        if one.checkpoint_type == "training":
            return one.tinker_path
    raise NotFoundError(f"the run {source} has no training checkpoint", status=404)


async def load(session: ta.Session, path: str, *, with_optimizer: bool = False) -> Any:
    """Load a training checkpoint into a new run, and return its `TrainingClient`."""
    if with_optimizer:
        return await session.create_training_client_from_state_with_optimizer(
            path, user_metadata=MADE_BY
        )
    return await session.create_training_client_from_state(path, user_metadata=MADE_BY)


async def _save(trainer: ta.TrainingClient, kind: str, name: str, ttl_s: int | None) -> str:
    if kind == "training":
        return (await trainer.save_state(name, ttl_seconds=ttl_s)).path
    if kind == "sampler":
        return (await trainer.save_weights_for_sampler(name, ttl_seconds=ttl_s)).path
    return (await trainer.save_weights_external(name, ttl_seconds=ttl_s)).path
