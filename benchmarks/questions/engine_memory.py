"""Does the server's memory stay flat over 1,000 steps and 10,000 samples?

Resident memory after each quarter; the row shows the last quarter's against the second's, by
which everything that is kept for a while is full.
"""

from __future__ import annotations

import json
import sys

from benchmarks.harness import Bench, run_json
from benchmarks.rows import Row, at_most


def ask(bench: Bench) -> list[Row]:
    task = {
        "scenario": "memory",
        "model": "tiny-llama",
        "steps": bench.scaled(1000),
        "samples": bench.scaled(10_000),
    }
    command = [sys.executable, "-m", "benchmarks.engine_client", json.dumps(task)]
    runs = bench.interleave({"server": lambda: run_json(command)}, 1)["server"]
    return [
        Row(
            name=f"engine_memory_{what}",
            table="engine",
            what=f"server's memory over {task[what]:,} {what}: last quarter against second",
            unit="x",
            runs={"server": [run[f"{what}_growth"] for run in runs]},
            question="engine_memory",
            ours="server",
            than=None,
            must=at_most(1.05),
            note="MB after each quarter: "
            + ", ".join(f"{runs[-1][f'{what}_{quarter}_mb']:.0f}" for quarter in range(1, 5)),
        )
        for what in ("steps", "samples")
    ]
