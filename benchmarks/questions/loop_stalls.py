"""For how long does a large training call keep the event loop from everything else?

A task ticks every millisecond in the loop in which the client works; the longest gap counts.
Measured apart from the other rows, since the ticks cost CPU. The wall-clock gap includes
the time in which the machine ran something else, such as the stub; the CPU one is the
loop's own.
"""

from __future__ import annotations

from benchmarks.harness import Bench, stub_server
from benchmarks.rows import Row, at_most, column


def ask(bench: Bench) -> list[Row]:
    rows = []
    with stub_server() as stub:
        for count, tokens in ((64, 4096), (1024, 1024)):
            found = bench.each_client(
                stub,
                "forward_backward",
                rows=count,
                tokens=tokens,
                number=bench.scaled(8, least=2),
                watch_stalls=True,
            )
            for figure, clock in (("stall_ms", "wall"), ("stall_cpu_ms", "CPU")):
                rows.append(
                    Row(
                        name=f"{figure}_{count}x{tokens}",
                        table="client",
                        what=f"longest stall of the loop, forward_backward {count} x {tokens}, {clock}",
                        unit="ms",
                        runs=column(found, figure),
                        question="loop_stalls",
                        must=at_most(8),
                        aim=at_most(2),
                    )
                )
    return rows
