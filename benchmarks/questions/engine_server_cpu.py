"""What does the server itself spend on one promise: submit, hold, retrieve?

Optimizer steps of the tiny model, sixteen under way, one thread of torch. CPU of the server's
process less that of the engine's thread, per step; a step is two requests.
"""

from __future__ import annotations

import json
import sys

from benchmarks.harness import Bench, run_json
from benchmarks.rows import Row, at_most


def ask(bench: Bench) -> list[Row]:
    task = {
        "scenario": "promises",
        "model": "tiny-llama",
        "threads": 1,
        "window": 16,
        "number": bench.scaled(1000, least=100),
    }
    command = [sys.executable, "-m", "benchmarks.engine_client", json.dumps(task)]
    runs = bench.interleave({"server": lambda: run_json(command)})["server"]
    return [
        Row(
            name="engine_server_cpu",
            table="engine",
            what="server's own CPU per promise (submit and retrieve)",
            unit="ms",
            runs={
                "server": [run["server_ms"] for run in runs],
                "engine's thread": [run["engine_ms"] for run in runs],
            },
            question="engine_server_cpu",
            ours="server",
            than=None,
            must=at_most(3),
        )
    ]
