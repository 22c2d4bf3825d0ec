"""How far a download is, on stderr: a bar with its speed on a terminal, a few lines elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn
from rich.progress import TimeRemainingColumn as Remaining
from rich.progress import TransferSpeedColumn as Speed

from tinker_async.cli.output import size

if TYPE_CHECKING:
    import tinker_async as ta

_LINE_EVERY = 0.1
"""Part of the whole after which there is another line, where there is no terminal."""


class Bars:
    """A bar for each stage. Call it with each `DownloadProgress`."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        columns = (TextColumn("{task.description:<11}"), BarColumn(), DownloadColumn())
        self._progress = Progress(*columns, Speed(), Remaining(), console=self._console)
        self._stage = ""
        self._task: TaskID | None = None
        self._told = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._progress.stop()

    def __call__(self, step: ta.DownloadProgress) -> None:
        """Show where it is."""
        if self._task is None or step.stage != self._stage:
            self._stage, self._told = step.stage, 0.0
            self._task = self._progress.add_task(step.stage, total=step.total_bytes)
        self._progress.update(self._task, completed=step.done_bytes, total=step.total_bytes)
        if not self._console.is_terminal:
            self._line(step)

    def _line(self, step: ta.DownloadProgress) -> None:
        if not step.total_bytes:
            return
        part = step.done_bytes / step.total_bytes
        if part - self._told >= _LINE_EVERY or (part >= 1.0 > self._told):
            self._told = part
            line = f"{step.stage} {size(step.done_bytes)} of {size(step.total_bytes)}"
            self._console.print(line, markup=False, soft_wrap=True)
