"""The step that a program has come to, for the one after it: so it is known what a kill has cost.

The rule: it is written at each step and never waited for. A killed program leaves it as it was;
after the end of the whole machine it may be older, which is said with no more than a number.
"""

from __future__ import annotations

import os
from pathlib import Path

from tinker_async.logs import log

FILE = "reached"
_WIDTH = 20


class Reached:
    """Keeps one number in a file of the run's folder. Blocks when made.

    Args:
        run_dir: The folder.
    """

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        path = Path(run_dir) / FILE
        self.before = _read(path)
        """What an earlier program came to; 0 where there was none."""
        self._fd = -1
        try:
            flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0)
            self._fd = os.open(path, flags, 0o600)
        except OSError as error:
            log.debug("steps_not_noted", detail=str(error))

    def note(self, step: int) -> None:
        """Write a number down; where that is not possible, it is left."""
        if self._fd < 0:
            return
        try:
            _write_at_0(self._fd, f"{step:{_WIDTH}d}\n".encode("ascii"))
        except OSError as error:
            log.debug("step_not_noted", step=step, detail=str(error))

    def close(self) -> None:
        """Let go of the file; may be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _write_at_0(fd: int, text: bytes) -> None:
    if hasattr(os, "pwrite"):
        os.pwrite(fd, text, 0)  # half the time, at each step
        return
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, text)


def _read(path: Path) -> int:
    try:
        return int(path.read_bytes()[:_WIDTH])
    except (OSError, ValueError):
        return 0
