"""`tinker-async checkpoint download`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tinker_async.cli.checkpoint.fetching import ROUTES, Wanted, fetch
from tinker_async.cli.connection import Connection, connection_options
from tinker_async.cli.output import Column, Output, output_options
from tinker_async.cli.quantities import amount

if TYPE_CHECKING:
    import tinker_async as ta

FIELDS = (
    Column("Folder", lambda done: done["path"]),
    Column("Files", lambda done: done["files"]),
    Column("Size", lambda done: amount(done["size_bytes"])),
    Column("Was here already", lambda done: amount(done["resumed_from_bytes"] or None)),
)


@click.command()
@click.argument("path")
@click.option(
    "--output",
    "-o",
    "parent",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Where to make the folder, which is named after the checkpoint. Default: here.",
)
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder itself, in place of --output.",
)
@click.option("--force", is_flag=True, help="Replace a folder that is there.")
@click.option(
    "--route",
    type=click.Choice(ROUTES),
    default="auto",
    show_default=True,
    help="Its files, one archive, or by way of an export; auto finds what the server has.",
)
@click.option("--parallel", type=click.IntRange(min=1), default=4, show_default=True)
@output_options
@connection_options
def download(
    *,
    path: str,
    parent: Path,
    folder: Path | None,
    force: bool,
    route: str,
    parallel: int,
    out: Output,
    connection: Connection,
) -> None:
    """Download a checkpoint into a folder, which appears whole or not at all.

    After a broken connection, Ctrl-C or a full disk, the same command goes on where it was.

    A server may have files of external checkpoints only. A training checkpoint is then loaded
    into a new run and exported, which takes longer and may cost; the export is deleted after.
    """
    from tinker_async.cli.checkpoint.bars import Bars  # noqa: PLC0415  # loads rich

    target = folder or parent / folder_of(path)
    wanted = Wanted(path, target, route, force, parallel)

    async def work() -> ta.DownloadedCheckpoint:
        with Bars() as bars:
            return await fetch(connection, wanted, note=out.note, progress=bars)

    out.record(as_json(path, connection.run(work)), FIELDS)


def folder_of(path: str) -> str:
    """Return the name of a checkpoint's folder, which every system takes: `RUN_weights_NAME`.

    Raises:
        InvalidInputError: Not a checkpoint's path.
    """
    import tinker_async as ta  # noqa: PLC0415  # `--help` shall not load it

    ta.parse_path(path)
    return re.sub(r"[^\w.-]", "_", path.removeprefix("tinker://"), flags=re.ASCII)


def as_json(path: str, done: ta.DownloadedCheckpoint) -> dict[str, Any]:
    """Return a download as JSON has it."""
    return {
        "tinker_path": path,
        "path": str(done.path),
        "files": list(done.files),
        "size_bytes": done.size_bytes,
        "sha256": done.sha256,
        "resumed_from_bytes": done.resumed_from_bytes,
        "route": done.route,
    }
