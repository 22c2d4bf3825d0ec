"""What does it cost that concurrent requests use different adapters?

As `engine_sampling`, 64 concurrent requests: all of one adapter, and of four in turn.
"""

from __future__ import annotations

import json
import sys

from benchmarks.harness import Bench, Figures, run_json
from benchmarks.rows import Row, Target, column

_ONE = "one adapter"


def ask(bench: Bench) -> list[Row]:
    def engine(adapters: int) -> Figures:
        task = {
            "scenario": "sampling",
            "model": "smollm2-135m",
            "adapters": adapters,
            "prompt": 64,
            "new_tokens": bench.scaled(32, least=4),
            "at_once": 64,
            "number": 64,
        }
        return run_json([sys.executable, "-m", "benchmarks.engine_client", json.dumps(task)])

    found = bench.interleave({"four adapters": lambda: engine(4), _ONE: lambda: engine(1)})
    return [
        Row(
            name="engine_mixed_adapters",
            table="engine",
            what="sampling, 64 concurrent requests, four adapters against one",
            unit="tokens/s",
            runs=column(found, "tokens_per_s"),
            question="engine_mixed_adapters",
            ours="four adapters",
            than=_ONE,
            more_is_better=True,
            must=Target("times_better", round(1 / 1.3, 3), _ONE),
        )
    ]
