"""How many optimizer steps a second does the served tiny model take, eight under way?

A step is `forward_backward` of 2 x 16 tokens and `optim_step`, with this library's client and
with the official one, on the same server. The figures of other servers are not measured
here: they were recorded once, on the same kind of machine, with the official client of the age that
each of them works with. `tinker-async bench --url` measures such a server where one runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.harness import OFFICIAL, ROOT, Bench, BenchmarkFailedError
from benchmarks.rows import Row, at_least, column

_TUFT, _SKYRL = 13.2, 6.0
_RECORDED = "recorded on 2026-11-22, not run here: TuFT 0.2.2 13.2/s, SkyRL 0.3.0 5.7 to 6.2/s"


def ask(bench: Bench) -> list[Row]:
    with _served() as server:
        task = {
            "model": server["models"][0],
            "key": server["api_key"],
            "url": server["url"],
            "window": 8,
            "number": bench.scaled(200, least=20),
            "warm_up": 20,
        }
        who = [*([OFFICIAL] if bench.has_official else []), "asyncio"]
        found = bench.each_client(None, "steps", who=who, **task)
    rates = column(found, "steps_per_s")
    return [
        Row(
            name=f"engine_steps_{client}",
            table="engine",
            what=f"optimizer steps/s, tiny model, pipelined, {what}",
            unit="/s",
            runs=runs,
            question="engine_steps",
            ours=client,
            than=None,
            more_is_better=True,
            must=at_least(factor * _TUFT),
            note=f"{factor:g} x TuFT; {_RECORDED}",
        )
        for client, what, factor, runs in (
            ("asyncio", "this client", 5.0, {"asyncio": rates["asyncio"]}),
            (OFFICIAL, "official client", 3.0, {OFFICIAL: rates.get(OFFICIAL, [])}),
        )
        if runs[client]
    ]


@contextmanager
def _served() -> Iterator[dict[str, Any]]:
    """Run `tinker-async serve` with the tiny model; it ends with its standard input."""
    command = [sys.executable, "-m", "tinker_async.cli", "serve", "--model", "tiny-llama"]
    command += ["--json", "--temporary", "--exit-on-stdin-eof"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    if process.stdin is None or process.stdout is None:
        raise BenchmarkFailedError("no pipes")
    try:
        line = process.stdout.readline()
        if not line:
            raise BenchmarkFailedError("the server did not start")
        yield json.loads(line)
    finally:
        process.stdin.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
