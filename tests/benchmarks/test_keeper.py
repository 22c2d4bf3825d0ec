"""The keeper of the benchmarks' rival servers leaves nothing running, whatever they started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KEEPER = ROOT / "benchmarks" / "rivals" / "keeper.py"

DAEMON = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:  # its parent dies: nothing but the keeper can find it
        print(os.getpid(), flush=True)
        time.sleep(600)
    os._exit(0)
os.wait()
{then}
"""


def start(then: str) -> tuple[subprocess.Popen[bytes], int]:
    """Return a keeper of a command that has left a daemon, and the daemon's number."""
    command = [sys.executable, str(KEEPER), sys.executable, "-c", DAEMON.format(then=then)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


@pytest.mark.skipif(sys.platform != "linux", reason="the keeper finds processes in /proc")
@pytest.mark.parametrize(
    ("then", "status"),
    [
        pytest.param("sys.exit(3)", 3, id="ended"),
        pytest.param("signal.signal(15, signal.SIG_DFL); signal.pause()", 256 - 15, id="running"),
    ],
)
def test_nothing_of_a_command_is_left_after_its_keeper(then: str, status: int) -> None:
    """A daemon that ignores SIGTERM is gone once the keeper has ended, and so is the command."""
    process, daemon = start(then)
    if status != 3:
        assert process.stdin is not None
        process.stdin.close()
    assert status == process.wait(60)
    assert not Path(f"/proc/{daemon}").exists()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
