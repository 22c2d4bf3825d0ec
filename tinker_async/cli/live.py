"""Progress on stderr: bars on a terminal, plain lines elsewhere. stdout stays the caller's."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

_NO_DIGITS = {ord(digit): None for digit in "0123456789"}


class Live:
    """One bar for each stage, with its current figures. Refreshes on events: no thread of its own."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            auto_refresh=False,
        )
        self._task: TaskID | None = None
        self._title = ""
        self._noted = ""
        self._done, self._total = 0, 0

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

    def stage(self, title: str, total: int) -> None:
        """Begin the next bar."""
        self._title, self._done, self._total = title, 0, total
        self._task = self._progress.add_task(title, total=total, figures="")
        self._refresh()

    def note(self, text: str) -> None:
        """Show a line beside the bar, without moving it. Logs get no line for each new number."""
        shape = text.translate(_NO_DIGITS)
        if self._console.is_terminal or shape != self._noted:
            self._show(text)
        self._noted = shape

    def step(self, figures: str = "") -> None:
        """Move the bar by one and show the current figures."""
        self._done += 1
        self._show(figures)

    def _show(self, figures: str) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=self._done, figures=figures)
        if self._console.is_terminal:
            self._refresh()
        else:
            line = f"{self._title} {self._done}/{self._total}  {figures}".rstrip()
            self._console.print(line, markup=False, soft_wrap=True)

    def _refresh(self) -> None:
        if self._console.is_terminal:
            self._progress.refresh()
