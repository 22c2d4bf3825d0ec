"""How fast does the engine sample for many concurrent requests, against `generate` and SkyRL?

Against `transformers.generate`: SmolLM2-135M in float32 with a rank 32 adapter on its linear
layers, prompts of 64 random tokens, 64 new ones at temperature 1. The engine is asked through
client and server, wall time; `generate` gets the same 64 rows as one batch in its own process, which
needs no server. Rows of the engine that draw an end-of-text token end early; those of `generate`
may not draw it.

Against SkyRL (JAX on the CPU): both serve the same random Qwen3 of two layers with a rank 8
adapter that has taken a step, prompts of 16 tokens, exactly 16 new ones at temperature 1. Both are
asked by the official client 0.24.1, the latest that works with SkyRL; the engine by this library,
too. SkyRL's batches hold 64, its fastest setting here. Two rounds of requests before the timed
ones compile what JAX compiles. Both servers run all the time, one of them idle.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import Bench, Figures, run_json
from benchmarks.rivals import engine, environments, servers, skyrl
from benchmarks.rows import Row, better, column

_GENERATE, _ONE, _GENERATE_ONE = "generate, batch 64", "one by one", "generate, one by one"
_OFFICIAL = f"engine, official client {skyrl.CLIENT}"
_OURS = "engine, this client"


def ask(bench: Bench) -> list[Row]:
    return [*_against_generate(bench), *_against_skyrl(bench)]


def _against_generate(bench: Bench) -> list[Row]:
    new_tokens = bench.scaled(64, least=4)
    many = {"prompt": 64, "new_tokens": new_tokens, "at_once": 64, "number": 64}
    single = {**many, "at_once": 1, "number": bench.scaled(2, least=1)}

    def engine_itself(task: dict[str, int]) -> Figures:
        asked = {"scenario": "sampling", "model": "smollm2-135m", **task}
        return run_json([sys.executable, "-m", "benchmarks.engine_client", json.dumps(asked)])

    def generate(task: dict[str, int]) -> Figures:
        asked = {"scenario": "generate", **task}
        return run_json([sys.executable, "-m", "benchmarks.engine_rivals", json.dumps(asked)])

    found = bench.interleave(
        {
            "engine": lambda: engine_itself(many),
            _ONE: lambda: engine_itself(single),
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


def _against_skyrl(bench: Bench) -> list[Row]:
    with contextlib.ExitStack() as stack:
        model = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tiny-qwen3-")))
        servers.write_model(model)
        ours = stack.enter_context(engine.server(model))
        asked: dict[str, tuple[servers.Server, str | None]] = {_OURS: (ours, None)}
        official = f"official-{skyrl.CLIENT}"
        if environments.present(official):
            asked[_OFFICIAL] = (ours, environments.python(official))
        if environments.present("skyrl", official):
            rival = stack.enter_context(skyrl.server(environments.folder("skyrl"), model))
            asked[skyrl.NAME] = (rival, environments.python(official))
        return [_samples_row(bench, asked, at_once) for at_once in (64, 256)]


def _samples_row(
    bench: Bench, asked: dict[str, tuple[servers.Server, str | None]], at_once: int
) -> Row:
    task = {
        "at_once": at_once, "number": bench.scaled(512, least=at_once), "warm_up": 2 * at_once,
        "prompt": 16, "new_tokens": 16,
    }  # fmt: skip
    found = bench.interleave(
        {who: partial(_samples, server, python, task) for who, (server, python) in asked.items()}
    )
    return Row(
        name=f"engine_sampling_{at_once}_against_skyrl",
        table="engine",
        what=f"samples of 16 tokens, tiny Qwen3, {at_once} concurrent requests",
        unit="samples/s",
        runs=column(found, "samples_per_s"),
        question="engine_sampling",
        ours=_OFFICIAL if _OFFICIAL in asked else _OURS,
        than=skyrl.NAME,
        more_is_better=True,
        must=better(3.0, skyrl.NAME),
        note=servers.absent(asked, skyrl.NAME),
    )


def _samples(server: servers.Server, python: str | None, task: dict[str, Any]) -> Figures:
    module = "samples_ours" if python is None else "samples_official"
    command = [python or sys.executable, "-m", f"benchmarks.rivals.{module}"]
    return run_json([*command, json.dumps({**server.task(), **task})])
