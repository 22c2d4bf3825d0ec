"""`tinker-async run`: the training runs of an account."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tinker_async.cli.connection import Connection, connection_options
from tinker_async.cli.listing import first, tell_of_more
from tinker_async.cli.output import Column, Output, output_options
from tinker_async.cli.quantities import age, limit_option, scope_option
from tinker_async.cli.run_watch import watch

if TYPE_CHECKING:
    import tinker_async as ta


def _lora(run: ta.TrainingRun) -> object:
    if not run.is_lora:
        return "no"
    return f"rank {run.lora_rank}" if run.lora_rank else "yes"


def _status(run: ta.TrainingRun) -> str:
    return "CORRUPTED" if run.corrupted else "ok"


def _path(checkpoint: ta.Checkpoint | None) -> str | None:
    return None if checkpoint is None else checkpoint.tinker_path


COLUMNS = (
    Column("Run", lambda run: run.training_run_id),
    Column("Base model", lambda run: run.base_model),
    Column("LoRA", _lora),
    Column("Last request", lambda run: age(run.last_request_time)),
    Column("Status", _status),
    Column(
        "Last checkpoint",
        lambda run: run.last_checkpoint and run.last_checkpoint.checkpoint_id,
    ),
)
FIELDS = (
    *COLUMNS[:3],
    Column("Owner", lambda run: run.model_owner),
    *COLUMNS[3:5],
    Column("Last training checkpoint", lambda run: _path(run.last_checkpoint)),
    Column("saved", lambda run: run.last_checkpoint and age(run.last_checkpoint.time)),
    Column("Last sampler checkpoint", lambda run: _path(run.last_sampler_checkpoint)),
    Column(
        "saved", lambda run: run.last_sampler_checkpoint and age(run.last_sampler_checkpoint.time)
    ),
    Column("Metadata", lambda run: run.user_metadata or None),
)


@click.group()
def run() -> None:
    """List, inspect and watch training runs."""


@run.command(name="list")
@limit_option("runs")
@scope_option("runs")
@click.option("--project", metavar="ID", help="Only the runs of this project.")
@click.option("--corrupted", is_flag=True, help="Only the runs that cannot go on.")
@output_options
@connection_options
def list_runs(
    *,
    limit: int,
    access_scope: str,
    project: str | None,
    corrupted: bool,
    out: Output,
    connection: Connection,
) -> None:
    """List training runs, the newest first.

    The status CORRUPTED is that of a run that has lost its state: `tinker-async recover` loads its
    last checkpoint into a new one.
    """

    async def work(rest: ta.RestClient) -> tuple[list[ta.TrainingRun], bool]:
        runs = rest.list_training_runs(access_scope=access_scope, project_id=project)
        return await first(runs, limit, lambda run: run.corrupted or not corrupted)

    found, more = connection.ask(work)
    out.table(found, COLUMNS, empty="no training runs")
    tell_of_more(out, len(found), more=more)


@run.command()
@click.argument("run_id", metavar="RUN")
@scope_option("runs")
@output_options
@connection_options
def info(*, run_id: str, access_scope: str, out: Output, connection: Connection) -> None:
    """Show one training run: by its id, or by the path of one of its checkpoints."""

    async def work(rest: ta.RestClient) -> ta.TrainingRun:
        if run_id.startswith("tinker://"):
            return await rest.get_training_run_by_tinker_path(run_id, access_scope)
        return await rest.get_training_run(run_id, access_scope)

    out.record(connection.ask(work), FIELDS)


run.add_command(watch)
