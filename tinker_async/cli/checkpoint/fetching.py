"""Getting a checkpoint's files, however the server lets them be got.

The rule: a training checkpoint of a server without archives goes by way of an export, which is
deleted once it is here, and is named if it is not, so that the same download can go on from it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tinker_async.cli.checkpoint.save import load
from tinker_async.cli.connection import Connection
from tinker_async.errors import APIStatusError, TinkerError

if TYPE_CHECKING:
    import tinker_async as ta

ROUTES = ("auto", "external", "archive", "export")
_NO_FILES = {400, 404, 405, 410, 422, 501}
"""What servers answer that have no files of such a checkpoint."""
_EXPORT_TTL_S = 86_400


class Wanted(NamedTuple):
    """What to get, and where to."""

    path: str
    target: Path
    route: str = "auto"
    overwrite: bool = False
    parallel: int = 4


async def fetch(
    connection: Connection,
    wanted: Wanted,
    *,
    note: Callable[[str], None],
    progress: Callable[[ta.DownloadProgress], None] | None = None,
) -> ta.DownloadedCheckpoint:
    """Download a checkpoint.

    Args:
        connection: Of the server.
        wanted: What, and where to.
        note: Tells people.
        progress: As for `RestClient.download_checkpoint`.

    Raises:
        TinkerError: As `RestClient.download_checkpoint`, and as loading and saving a checkpoint.
    """
    import tinker_async as ta  # noqa: PLC0415  # `--help` shall not load it

    if wanted.route == "export":
        ta.parse_path(wanted.path, expect="training")
    else:
        async with connection.rest() as rest:
            try:
                return await _download(rest, wanted.path, wanted, progress)
            except APIStatusError as error:
                training = ta.parse_path(wanted.path).checkpoint_type == "training"
                if wanted.route != "auto" or not training or error.status not in _NO_FILES:
                    raise
            await rest.get_weights_info_by_tinker_path(wanted.path)  # it is there at all
        note("the server has no files of it: it is loaded into a new run and exported")
    return await _by_export(connection, wanted, note, progress)


async def _by_export(
    connection: Connection,
    wanted: Wanted,
    note: Callable[[str], None],
    progress: Callable[[ta.DownloadProgress], None] | None,
) -> ta.DownloadedCheckpoint:
    async with connection.session(display_name="checkpoint download") as session:
        trainer = await load(session, wanted.path)
        saved = await trainer.save_weights_external("download", ttl_seconds=_EXPORT_TTL_S)
        try:
            done = await _download(session.rest, saved.path, wanted, progress)
        except BaseException:
            note(f"to go on within a day, download {saved.path} to {wanted.target}")
            raise
        try:
            await session.rest.delete_checkpoint_from_tinker_path(saved.path)
        except TinkerError as error:
            note(f"the export {saved.path} is left, for a day: {error.message}")
        return done


async def _download(
    rest: ta.RestClient,
    path: str,
    wanted: Wanted,
    progress: Callable[[ta.DownloadProgress], None] | None,
) -> ta.DownloadedCheckpoint:
    return await rest.download_checkpoint(
        path,
        wanted.target,
        route="auto" if wanted.route == "export" else wanted.route,  # type: ignore[arg-type]  # click has checked it
        overwrite=wanted.overwrite,
        parallel=wanted.parallel,
        progress=progress,
    )
