"""`tinker-async doctor`: from the settings to a sample, step by step, to the first that fails."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from tinker_async.cli.connection import Connection, connection_options
from tinker_async.cli.output import Output, output_options, printable

if TYPE_CHECKING:
    from tinker_async.cli.doctor_stages import Stage

_LIMIT_S = 60.0
_COLORS = {"ok": "green", "failed": "red", "skipped": "bright_black"}


@click.command()
@click.option("--base-model", help="What to sample from. Default: the first that is named.")
@click.option("--sample/--no-sample", default=True, help="Whether to open a session and sample.")
@output_options
@connection_options
def doctor(*, base_model: str | None, sample: bool, out: Output, connection: Connection) -> None:
    """Try everything between here and a sample, and name the first thing that is broken.

    The stages: settings, dns, tcp, proxy, tls, http, credential, protocol, models, session and
    sample (one token, which a paid service charges for). --timeout is for each of them; its
    default is a minute. The exit code is that of the stage that failed.
    """
    # Not at the top: `--help` shall not load the client.
    from tinker_async.cli.doctor_stages import Doctor  # noqa: PLC0415

    limit_s, connection.timeout_s = connection.timeout_s or _LIMIT_S, None
    examined = Doctor(
        connection,
        model=base_model,
        with_sample=sample,
        tell=lambda stage: None if out.as_json else _print(stage, out),
        limit_s=limit_s,
    )
    connection.run(examined.examine)
    broken = examined.broken
    if out.as_json:
        out.document(
            {
                "healthy": broken is None,
                "broken": broken.name if broken else None,
                "stages": examined.stages,
                "features": examined.features,
            }
        )
    elif broken is not None:
        out.note(f"broken: {broken.name}")
    if broken is not None:
        sys.exit(broken.exit_code)


def _print(stage: Stage, out: Output) -> None:
    """Print a stage as soon as it has ended."""
    took = "" if stage.took_ms is None else f"{stage.took_ms:.1f} ms"
    if not out.terminal:
        fields = (stage.name, stage.state, took, stage.found, stage.todo or "")
        click.echo("\t".join(printable(" ".join(field.split())) for field in fields))
    else:
        state = click.style(f"{stage.state:8}", fg=_COLORS[stage.state])
        click.echo(f"{state}{stage.name:11}{took:>10}  {printable(stage.found)}")
        if stage.todo:
            click.echo(f"{'':31}{click.style('do:', bold=True)} {printable(stage.todo)}")
    sys.stdout.flush()
