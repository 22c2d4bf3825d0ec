"""Forks server processes that need not import torch again; run as a program, by `crash.lives`.

Reads one order a line, forks, and says the child's pid, and its status when asked. The child runs
`tinker-async serve` as the command line does. It can be told to kill itself with SIGKILL at the
n-th call of a C function, in whatever thread that is: a random instant without a clock.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

import msgspec


class Order(msgspec.Struct, frozen=True):
    """One life."""

    arguments: list[str]
    stdout: str
    """A named pipe for the child's standard output."""
    stderr: str
    kill_among: str | None = None
    """Count "calls" of C functions, or those of "storage" only; None kills never."""
    kill_at: int = 0
    """Which of them, counted from SIGUSR1; 0 kills never."""
    file_limit_bytes: int | None = None
    obey_permissions: bool = False
    """Also as root."""


STORAGE = {
    "execute",
    "fsync",
    "mkdir",
    "open",
    "rename",
    "rmdir",
    "serialize_file",
    "unlink",
    "utime",
}
"""C functions of the system, of sqlite3 and of safetensors through which a save goes."""


class Counter:
    """Counts calls and returns of C functions from the signal on; kills at one of them."""

    def __init__(self, among: str, at: int) -> None:
        self._only_storage = among == "storage"
        self._at = at
        self._armed = False
        self._count = 0
        self._out = os.dup(1)  # the server points 1 at standard error

    def install(self) -> None:
        signal.signal(signal.SIGUSR1, self._signalled)
        threading.setprofile(self._called)
        sys.setprofile(self._called)

    def _signalled(self, *_: object) -> None:
        if self._armed:
            os.write(self._out, b"%d\n" % self._count)
        self._armed = True
        self._count = 0

    def _called(self, _frame: object, event: str, function: Any) -> None:
        if not self._armed or not event.startswith("c_"):
            return
        if self._only_storage and getattr(function, "__name__", "") not in STORAGE:
            return
        self._count += 1
        if self._count == self._at:
            os.kill(os.getpid(), signal.SIGKILL)


def live(order: Order) -> None:
    """Be the server, in the forked process."""
    import resource

    os.dup2(os.open(order.stderr, os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
    os.dup2(os.open(order.stdout, os.O_WRONLY), 1)
    if order.obey_permissions and os.geteuid() == 0:
        _drop_privileges()
    if order.file_limit_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order.file_limit_bytes,) * 2)
    if order.kill_among is not None:
        Counter(order.kill_among, order.kill_at).install()

    from tinker_async.cli import main

    main(["serve", *order.arguments])


def _drop_privileges() -> None:
    """Give up what lets root pass by the permissions of files (Linux's capabilities)."""
    import ctypes

    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    if ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError("capset")


def run() -> None:
    """Take orders until standard input ends."""
    import importlib

    for module in ("cli.serve", "local.engine.engine", "local.server.hosting", "local.serving"):
        importlib.import_module(f"tinker_async.{module}")
    for module in ("hypercorn.asyncio", "transformers.models.llama.modeling_llama", "tokenizers"):
        importlib.import_module(module)
    assert [threading.main_thread()] == threading.enumerate(), "a fork would lose threads"
    print("ready", flush=True)  # noqa: T201
    for line in iter(sys.stdin.buffer.readline, b""):
        order = msgspec.json.decode(line, type=Order)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                live(order)
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 1
            finally:
                os._exit(status)
        print(pid, flush=True)  # noqa: T201
        if not sys.stdin.buffer.readline():  # asked for its status; else the tests are gone
            os.kill(pid, signal.SIGKILL)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)  # noqa: T201


if __name__ == "__main__":
    run()
