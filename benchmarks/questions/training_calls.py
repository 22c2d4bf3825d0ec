"""What does a large `forward_backward` cost the client: CPU, and memory above its start?

Data of numpy arrays is built beforehand; a call is made, sent, retrieved and decoded, one
after the other. Memory: highest resident size over all calls, the first included, less that
with the data built and no call made.
"""

from __future__ import annotations

from benchmarks.harness import Bench, stub_server
from benchmarks.rows import Row, at_most, better, column

_SHAPES = ((64, 4096, 2.0, 4.0), (1024, 1024, 2.5, 4.0))


def ask(bench: Bench) -> list[Row]:
    rows = []
    with stub_server() as stub:
        for count, tokens, must, aim in _SHAPES:
            found = bench.each_client(
                stub, "forward_backward", rows=count, tokens=tokens, number=bench.scaled(8, least=2)
            )
            shape = f"{count} x {tokens}"
            rows.append(
                Row(
                    name=f"forward_backward_{count}x{tokens}_cpu",
                    table="client",
                    what=f"forward_backward {shape}, CPU",
                    unit="ms",
                    runs=column(found, "cpu_ms"),
                    question="training_calls",
                    must=better(must),
                    aim=better(aim),
                )
            )
            large = count > 64
            rows.append(
                Row(
                    name=f"forward_backward_{count}x{tokens}_memory",
                    table="client",
                    what=f"forward_backward {shape}, peak memory above start",
                    unit="MB",
                    runs=column(found, "memory_above_start_mb"),
                    question="training_calls",
                    must=at_most(30) if large else None,
                    aim=at_most(20) if large else None,
                )
            )
    return rows
