"""What a download tells: how far it is, and what there is at its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

Route: TypeAlias = Literal["external", "archive"]
"""The ways to a checkpoint: each of its files by a URL of its own, or one archive of all."""

Stage: TypeAlias = Literal["downloading", "unpacking", "checking"]


class DownloadProgress(msgspec.Struct, frozen=True):
    """How far a download is. Sizes are what was received so far in all its attempts."""

    stage: Stage
    file: str
    """The file that moved on; of the archive, its own name."""
    file_done_bytes: int
    file_total_bytes: int | None
    """None where the server does not say it."""
    done_bytes: int
    """Of all files together."""
    total_bytes: int | None
    """None until it is known of every file."""


ShowProgress: TypeAlias = Callable[[DownloadProgress], None]


class DownloadedCheckpoint(msgspec.Struct, frozen=True):
    """A checkpoint that is whole and in its place."""

    path: Path
    """The folder."""
    files: tuple[str, ...]
    """Relative to the folder, with `/`, sorted."""
    size_bytes: int
    """Of the files."""
    sha256: dict[str, str]
    """By file, in hex, of what is on disk."""
    resumed_from_bytes: int
    """What an earlier, broken call had left and this one did not have to ask for."""
    route: Route


class Tally:
    """Counts the bytes of all files and tells of them.

    Args:
        show: Whom to tell; what it raises ends the download.
    """

    def __init__(self, show: ShowProgress | None) -> None:
        self._show = show
        self._stage: Stage = "downloading"
        self._done: dict[str, int] = {}
        self._totals: dict[str, int | None] = {}
        self._all_named = True

    def begin(self, stage: Stage, totals: dict[str, int | None] | None) -> None:
        """Begin a stage.

        Args:
            stage: Which.
            totals: The bytes of all of its files; None if it is not known which there are.
        """
        self._stage, self._totals, self._all_named = stage, dict(totals or {}), totals is not None
        self._done = dict.fromkeys(self._totals, 0)

    def note(self, file: str, done_bytes: int, total_bytes: int | None) -> None:
        """Note how far a file is."""
        self._done[file] = done_bytes
        self._totals[file] = total_bytes
        show = self._show
        if show is None:
            return
        totals = list(self._totals.values())
        known = [total for total in totals if total is not None]
        complete = self._all_named and len(known) == len(totals)
        self._show = None  # if it raises, that is told once, whatever other files are doing
        show(
            DownloadProgress(
                stage=self._stage,
                file=file,
                file_done_bytes=done_bytes,
                file_total_bytes=total_bytes,
                done_bytes=sum(self._done.values()),
                total_bytes=sum(known) if complete else None,
            )
        )
        self._show = show

    @property
    def done_bytes(self) -> int:
        """Of all files of this stage."""
        return sum(self._done.values())

    def done_bytes_of(self, file: str) -> int:
        """Of one of them."""
        return self._done.get(file, 0)
