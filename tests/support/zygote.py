"""Forks servers that need not import torch again, many at a time; run as a program by `support.forks`.

Reads one request a line: an order, which is answered with the pid of a new server, or the pid of
one, which is answered with its exit status, or `None` while it lives.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading

import msgspec
from crash.zygote import Order, live

WARM = (
    *("cli.serve", "local.engine.engine", "local.server.hosting", "local.serving"),
    *("local.server.endpoints.training", "local.server.endpoints.sampling"),
)
"""What a server imports of this library; the rest comes with it."""
WARM_LIBRARIES = (
    *("hypercorn.asyncio", "tokenizers"),
    *("transformers.models.llama.modeling_llama", "transformers.models.qwen3.modeling_qwen3"),
)


def forked(order: Order) -> int:
    """Return the pid of a new server."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        live(order)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(status)


def run() -> None:
    """Serve requests until standard input ends, and take the servers along."""
    for module in WARM:
        importlib.import_module(f"tinker_async.{module}")
    for module in WARM_LIBRARIES:
        importlib.import_module(module)
    assert [threading.main_thread()] == threading.enumerate(), "a fork would lose threads"
    living: set[int] = set()
    print("ready", flush=True)  # noqa: T201
    for line in iter(sys.stdin.buffer.readline, b""):
        request = msgspec.json.decode(line, type=Order | int)
        if isinstance(request, Order):
            pid = forked(request)
            living.add(pid)
            print(pid, flush=True)  # noqa: T201
            continue
        pid, status = os.waitpid(request, os.WNOHANG)
        living.discard(pid)
        print(os.waitstatus_to_exitcode(status) if pid else None, flush=True)  # noqa: T201
    for pid in living:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    run()
