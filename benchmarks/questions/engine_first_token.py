"""How long does a sample wait for its first token while the engine trains?

Samples of one token after a prompt of 64, one after the other: on an idle engine, and
while two calls of 8 x 128 tokens are computed. Sampling and training take turns by micro-batch, so the
bound is one micro-batch of training and one of sampling.
"""

from __future__ import annotations

import json
import sys

from benchmarks.harness import Bench, run_json
from benchmarks.rows import Row


def ask(bench: Bench) -> list[Row]:
    task = {
        "scenario": "first_token",
        "model": "smollm2-135m",
        "prompt": 64,
        "number": bench.scaled(5, least=1),
        "rows": 8,
        "tokens": 128,
    }
    command = [sys.executable, "-m", "benchmarks.engine_client", json.dumps(task)]
    runs = bench.interleave({"engine": lambda: run_json(command)}, min(3, bench.runs))["engine"]
    return [
        Row(
            name="engine_first_token",
            table="engine",
            what="time to the first token while the engine trains on 8 x 128 tokens",
            unit="ms",
            runs={
                "median": [run["training_ms"] for run in runs],
                "worst": [run["training_worst_ms"] for run in runs],
                "idle engine": [run["idle_ms"] for run in runs],
            },
            question="engine_first_token",
            ours="median",
            than="idle engine",
            note="bounded by one micro-batch of 256 tokens",
        )
    ]
