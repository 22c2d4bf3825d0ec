"""How many optimizer steps a second does a served tiny model take, against TuFT and SkyRL?

A step is `forward_backward` of 2 x 16 tokens with cross entropy and `optim_step`, for a rank 8
adapter of a random Qwen3 of two layers, the same weights in every server. Pipelined: eight
steps are under way at any time. Waited for: both calls of a step are sent together and awaited before
the next step. TuFT is asked by the official client 0.25.0 and SkyRL by 0.24.1, the latest that
work with them; the engine by 0.25.0, by the official client of the other tables, and by this library.
TuFT computes the batch as one micro-batch, which is faster than its default. Twenty steps before
the timed ones compile what JAX compiles. All servers run all the time, idle but for one.
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
from benchmarks.rivals import engine, environments, servers, skyrl, tuft
from benchmarks.rows import Row, better, column

_OURS = "engine, this client"
_SAME = f"engine, official client {tuft.CLIENT}"
_NEWEST = "engine, newest official client"

_MODES = (("pipelined", 8), ("waited for", 1))

Asked = dict[str, tuple[servers.Server, str | None]]
"""Who is measured: a server, and the python whose official client asks it; None is this library."""


def ask(bench: Bench) -> list[Row]:
    with contextlib.ExitStack() as stack:
        model = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tiny-qwen3-")))
        servers.write_model(model)
        asked = _asked(bench, model, stack)
        return [row for mode, window in _MODES for row in _rows(bench, asked, mode, window)]


def _asked(bench: Bench, model: Path, stack: contextlib.ExitStack) -> Asked:
    ours = stack.enter_context(engine.server(model))
    asked: Asked = {_OURS: (ours, None)}
    if bench.has_official:
        asked[_NEWEST] = (ours, str(bench.official_python))
    if environments.present(f"official-{tuft.CLIENT}"):
        asked[_SAME] = (ours, environments.python(f"official-{tuft.CLIENT}"))
    for rival, name in ((tuft, "tuft"), (skyrl, "skyrl")):
        client = f"official-{rival.CLIENT}"
        if environments.present(name, client):
            server = stack.enter_context(rival.server(environments.folder(name), model))
            asked[rival.NAME] = (server, environments.python(client))
    return asked


def _rows(bench: Bench, asked: Asked, mode: str, window: int) -> list[Row]:
    found = bench.interleave(
        {who: partial(_steps, bench, who, *whom, window) for who, whom in asked.items()}
    )
    rates = column(found, "steps_per_s")
    rivals = [name for name in (tuft.NAME, skyrl.NAME) if name in asked]
    return [
        Row(
            name=f"engine_steps_{client}_{mode.replace(' ', '_')}",
            table="engine",
            what=f"optimizer steps/s, tiny Qwen3, {mode}, {what}",
            unit="/s",
            runs={who: rates[who] for who in (*measured, *rivals) if who in rates},
            question="engine_steps",
            ours=measured[0],
            than=tuft.NAME,
            more_is_better=True,
            must=better(factor, tuft.NAME),
            note=servers.absent(asked, tuft.NAME, skyrl.NAME),
        )
        for client, what, factor, measured in (
            ("asyncio", "this client", 5.0, (_OURS,)),
            ("official", "official client", 3.0, (_SAME, _NEWEST)),
        )
        if any(who in rates for who in measured)
    ]


def _steps(
    bench: Bench, who: str, server: servers.Server, python: str | None, window: int
) -> Figures:
    task: dict[str, Any] = {
        **server.task(),
        "scenario": "steps",
        "window": window,
        "number": bench.scaled(50 if who == skyrl.NAME else 300, least=20),
        "warm_up": 20,
    }
    if python is not None:
        command = [python, "-m", "benchmarks.client_official"]
    else:
        command, task["backend"] = [sys.executable, "-m", "benchmarks.client_ours"], "asyncio"
    return run_json([*command, json.dumps(task)])
