"""A command on a terminal of its own, which is read and typed on."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import struct
import subprocess
import termios
from fcntl import ioctl
from typing import TYPE_CHECKING, Any

from cli.conftest import TIMEOUT_S

if TYPE_CHECKING:
    from cli.conftest import Cli

ROWS, COLUMNS = 50, 160


def interrupt(process: subprocess.Popen[Any]) -> None:
    """Press Ctrl-C until a process that waits for a line ends.

    A signal that comes just before Python reads the line is not noticed by the read.
    """
    for wait_s in (5, TIMEOUT_S):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
            break


class Terminal:
    """Stdin and stderr of the process are the terminal; stdout too if `shows_output`."""

    def __init__(self, cli: Cli, *words: str, shows_output: bool = False) -> None:
        self._ours, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        streams = {"stdin": theirs, "stderr": theirs}
        if shows_output:
            streams["stdout"] = theirs
        self.process = cli.process(*words, **streams)
        os.close(theirs)
        self.seen = ""

    def until(self, text: str) -> None:
        """Wait until it has shown a text."""
        while text not in self.seen:
            assert self._read(), self.seen

    def answer(self, text: str) -> tuple[int, str]:
        """Type, and return the exit code and what came on stdout."""
        os.write(self._ours, text.encode())
        return self.end()

    def end(self) -> tuple[int, str]:
        """Return the exit code, and what came on stdout if that is not the terminal."""
        while self._read():
            pass
        output, _ = self.process.communicate(timeout=TIMEOUT_S)
        os.close(self._ours)
        return self.process.returncode, output or ""

    def _read(self) -> bool:
        try:
            part = os.read(self._ours, 1 << 16)
        except OSError:  # Linux's end of a terminal that nobody holds
            return False
        self.seen += part.decode(errors="replace")
        return bool(part)
