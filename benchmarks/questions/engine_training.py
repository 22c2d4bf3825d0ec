"""How many tokens does forward_backward compute in a CPU second, and in how much memory?

SmolLM2-135M in float32, rank 32 on the linear layers, cross entropy, one thread of torch. The
engine is asked through client and server and all CPU of the server's process counts; the
rival is peft as it comes with all logits, in its own process.
"""

from __future__ import annotations

import json
import sys

from benchmarks.harness import Bench, Figures, run_json
from benchmarks.rows import Row, at_most, better, column

_PEFT = "peft + full logits"


def _run(module: str, rows: int, tokens: int, number: int) -> Figures:
    task = {
        "scenario": "training", "model": "smollm2-135m", "threads": 1,
        "rows": rows, "tokens": tokens, "number": number,
    }  # fmt: skip
    return run_json([sys.executable, "-m", f"benchmarks.{module}", json.dumps(task)])


def ask(bench: Bench) -> list[Row]:
    small = bench.interleave(
        {
            "engine": lambda: _run("engine_client", 8, 64, bench.scaled(2)),
            _PEFT: lambda: _run("engine_rivals", 8, 64, bench.scaled(2)),
        }
    )
    tokens = 512 if not bench.quick else 128
    large = bench.interleave(
        {
            "engine": lambda: _run("engine_client", 4, tokens, 1),
            _PEFT: lambda: _run("engine_rivals", 4, tokens, 1),
        },
        min(3, bench.runs),
    )
    return [
        *(
            Row(
                name=f"engine_training_{shape.replace(' ', '')}",
                table="engine",
                what=f"forward_backward {shape}, tokens per CPU second, float32",
                unit="tokens/s",
                runs=column(found, "tokens_per_cpu_s"),
                question="engine_training",
                ours="engine",
                than=_PEFT,
                more_is_better=True,
                must=better(1.0, _PEFT),
            )
            for shape, found in (("8 x 64", small), (f"4 x {tokens}", large))
        ),
        Row(
            name="engine_training_memory",
            table="engine",
            what=f"forward_backward 4 x {tokens}, peak memory of the process, float32",
            unit="MB",
            runs=column(large, "peak_mb"),
            question="engine_training",
            ours="engine",
            than=_PEFT,
            must=at_most(4500),
        ),
    ]
