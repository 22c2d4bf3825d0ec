"""What does durable training cost where nothing is lost: CPU of a step, and memory?

The same loop of pipelined steps (`forward_backward`, `optim_step`) on a plain client and in
`Session.durable_training`, over TLS and HTTP/2. CPU: user and system time of all threads per
step; its ratio to the plain client's is that of two turns that follow each other in one process,
in shuffled order, and a run's figure is the median of its turns: two processes differ by more
than what is looked for. The steps are those of 64 rows x 4096 tokens, whose data are numpy arrays,
and tiny ones of 2 x 16, of which little is left but what each call costs. The durable program sets
its `position` in each step and has one `random.Random` tracked. "Journal alone" takes no
checkpoint in the turn; with checkpoints, one each 100 steps is in it, with its probe, its two lines
on the disk and the deletion of an older one. A journal whose data outgrow its memory writes them to
a file, a quarter of its memory at a time: a row of its own shows steps after that has begun.

Memory: of a training whose 1,000 steps have new data of 64 x 1024 each, 1 MB. Above its start without
a checkpoint, where the journal has to keep everything: a quarter more than its limit is allowed. And
over 1,000 small steps with a checkpoint each 10, resident memory after the last quarter against the
second.
"""

from __future__ import annotations

from functools import partial
from inspect import signature
from typing import Any

import msgspec

from benchmarks.harness import OURS, Bench, Figures, Stub, stub_server
from benchmarks.rows import Row, Target, at_most, column
from tinker_async.durable.journal import Journal

_PLAIN, _DURABLE = "plain client, ms", "durable, ms"
_MOST_RATIO = 1.02
_ROOM_MB = signature(Journal).parameters["memory_bytes"].default / 1e6
_MOST_MB = 1.25 * _ROOM_MB
"""What the journal may take, and what steps under way do."""


class _Case(msgspec.Struct, frozen=True, kw_only=True):
    """Steps whose cost is compared."""

    name: str
    what: str
    rows: int
    tokens: int
    window: int
    number: int
    """Steps of a turn."""
    warm_up: int
    rounds: int
    save_every: int = 0
    must: Target | None = None


_CASES = (
    _Case(
        name="typical",
        what="64 x 4096, journal alone",
        rows=64,
        tokens=4096,
        window=2,
        number=30,
        warm_up=5,
        rounds=8,
        must=at_most(_MOST_RATIO),
    ),
    _Case(
        name="typical_file",
        what="64 x 4096, journal in its file",
        rows=64,
        tokens=4096,
        window=2,
        number=64,
        warm_up=130,
        rounds=3,
    ),
    _Case(
        name="tiny",
        what="2 x 16, journal alone",
        rows=2,
        tokens=16,
        window=8,
        number=400,
        warm_up=40,
        rounds=12,
    ),
    _Case(
        name="tiny_saving",
        what="2 x 16, a checkpoint each 100 steps",
        rows=2,
        tokens=16,
        window=8,
        number=400,
        warm_up=40,
        rounds=12,
        save_every=100,
    ),
)


def ask(bench: Bench) -> list[Row]:
    with stub_server() as stub:
        return [*(_cpu(bench, stub, case) for case in _CASES), *_memory(bench, stub)]


def _cpu(bench: Bench, stub: Stub, case: _Case) -> Row:
    task: dict[str, Any] = msgspec.to_builtins(case)
    for name in ("name", "what", "must"):
        task.pop(name)
    task["rounds"] = bench.scaled(case.rounds, least=2)
    found = bench.each_client(stub, "durable_steps", who=list(OURS), **task)
    asyncio = found["asyncio"]
    return Row(
        name=f"durable_{case.name}_cpu",
        table="client",
        what=f"CPU per step of durable training against a plain client, {case.what}",
        unit="x",
        runs={
            **column(found, "ratio"),
            _PLAIN: [run["plain_ms"] for run in asyncio],
            _DURABLE: [run["durable_ms"] for run in asyncio],
        },
        question="durable_overhead",
        than=None,
        must=case.must,
    )


def _memory(bench: Bench, stub: Stub) -> list[Row]:
    def train(save_every: int | None, **task: Any) -> Figures:
        return bench.client("asyncio", stub, "durable_memory", save_every=save_every, **task)

    large = {"rows": 64, "tokens": 1024, "window": 2, "warm_up": 4, "number": bench.scaled(1000)}
    peaks = bench.interleave(
        {"asyncio": partial(train, 0, **large), "plain client": partial(train, None, **large)}
    )
    small = {"rows": 16, "tokens": 64, "window": 8, "warm_up": 40, "number": bench.scaled(1000)}
    flat = bench.interleave({"asyncio": partial(train, 10, **small)})["asyncio"]
    half = [run["peak_2_mb"] for run in peaks["asyncio"]]
    return [
        Row(
            name="durable_peak_memory",
            table="client",
            what=f"durable training, peak memory above start, {large['number']} steps of 64 x 1024"
            " without a checkpoint",
            unit="MB",
            runs={**column(peaks, "peak_4_mb"), "after half of them": half},
            question="durable_overhead",
            than=None,
            must=at_most(_MOST_MB),
        ),
        Row(
            name="durable_memory_growth",
            table="client",
            what=f"durable training, memory over {small['number']:,} steps, a checkpoint each 10:"
            " last quarter against second",
            unit="x",
            runs={"asyncio": [run["growth"] for run in flat]},
            question="durable_overhead",
            than=None,
            must=at_most(1.05),
            note="MB after each quarter: "
            + ", ".join(f"{flat[-1][f'quarter_{quarter}_mb']:.0f}" for quarter in range(1, 5)),
        ),
    ]
