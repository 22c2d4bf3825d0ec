"""Runs one command and leaves nothing of it behind: `python -m benchmarks.rivals.keeper COMMAND ...`.

The command's descendants, daemons included, become this process's children when their parents
die. When standard input closes, or the command ends, all of them are ended: asked first, then killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_ASKED_S = 15.0
"""How long the command may take to end by itself."""
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux


def descendants(ancestor: int) -> list[int]:
    """Return the process numbers of all children, their children, and so on."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # it has just ended
                fields = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, left = [], [ancestor]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found


def _until_told(process: subprocess.Popen[bytes]) -> None:
    """Wait until the command has ended or nobody holds our standard input."""
    while process.poll() is None:
        readable, _, _ = select.select([sys.stdin], [], [], 0.2)
        if readable and not os.read(sys.stdin.fileno(), 4096):
            return


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_ASKED_S)
    while left := descendants(os.getpid()):  # killing one may hand us its children
        for number in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.02)


def main() -> None:
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(1))
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    try:
        _until_told(process)
    finally:
        _end(process)
    sys.exit(process.returncode or 0)


if __name__ == "__main__":
    main()
