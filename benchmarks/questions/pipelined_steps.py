"""How much CPU does a small training step cost the client, eight under way?

A step is `forward_backward` of 2 x 16 tokens and `optim_step`: four requests.
"""

from __future__ import annotations

from benchmarks.harness import Bench, stub_server
from benchmarks.rows import Row, better, column


def ask(bench: Bench) -> list[Row]:
    with stub_server() as stub:
        found = bench.each_client(
            stub, "steps", window=8, number=bench.scaled(400, least=60), warm_up=40
        )
    return [
        Row(
            name="pipelined_step_cpu",
            table="client",
            what="CPU per pipelined forward_backward + optim_step, window 8",
            unit="ms",
            runs=column(found, "cpu_ms_per_step"),
            question="pipelined_steps",
            must=better(6),
            aim=better(15),
        )
    ]
