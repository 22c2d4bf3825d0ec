"""How fast does the engine sample for 64 concurrent requests, against `transformers.generate`?

SmolLM2-135M in float32 with a rank 32 adapter on its linear layers, prompts of 64 random
tokens, 64 new ones at temperature 1. The engine is asked through client and server, wall
time; `generate` gets the same 64 rows as one batch in its own process, which needs no server. Rows
of the engine that draw an end-of-text token end early; those of `generate` may not draw it.
"""

from __future__ import annotations

import json
import sys

from benchmarks.harness import Bench, Figures, run_json
from benchmarks.rows import Row, better, column

_GENERATE, _ONE, _GENERATE_ONE = "generate, batch 64", "one by one", "generate, one by one"


def ask(bench: Bench) -> list[Row]:
    new_tokens = bench.scaled(64, least=4)
    many = {"prompt": 64, "new_tokens": new_tokens, "at_once": 64, "number": 64}
    single = {**many, "at_once": 1, "number": bench.scaled(8, least=1)}

    def engine(task: dict[str, int]) -> Figures:
        asked = {"scenario": "sampling", "model": "smollm2-135m", **task}
        return run_json([sys.executable, "-m", "benchmarks.engine_client", json.dumps(asked)])

    def generate(task: dict[str, int]) -> Figures:
        asked = {"scenario": "generate", **task}
        return run_json([sys.executable, "-m", "benchmarks.engine_rivals", json.dumps(asked)])

    found = bench.interleave(
        {
            "engine": lambda: engine(many),
            _ONE: lambda: engine(single),
            _GENERATE: lambda: generate(many),
            _GENERATE_ONE: lambda: generate(single),
        }
    )
    rates = column(found, "tokens_per_s")
    return [
        Row(
            name=f"engine_sampling_{name}",
            table="engine",
            what=what,
            unit="tokens/s",
            runs=runs,
            question="engine_sampling",
            ours="engine",
            than=than,
            more_is_better=True,
            must=better(factor, than),
        )
        for name, what, than, factor, runs in (
            (
                "generate",
                "sampling, 64 concurrent requests",
                _GENERATE,
                1.0,
                {who: rates[who] for who in ("engine", _GENERATE)},
            ),
            (
                "one_by_one",
                "sampling, 64 concurrent requests against one by one",
                _ONE,
                6.0,
                {who: rates[who] for who in ("engine", _ONE, _GENERATE_ONE)},
            ),
        )
    ]
