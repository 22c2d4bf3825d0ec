"""How does the rate of samples grow with client processes on one machine?

One, two and four processes draw samples from one stub at the same time, 512 in flight each. The
stub takes a part of the machine, too, so on few cores the rate cannot double.
"""

from __future__ import annotations

import concurrent.futures

from benchmarks.harness import Bench, Figures, stub_server
from benchmarks.rows import Row


def ask(bench: Bench) -> list[Row]:
    number = bench.scaled(4000)
    runs: dict[str, list[float]] = {}
    with stub_server() as stub, concurrent.futures.ThreadPoolExecutor(4) as pool:

        def one() -> Figures:
            return bench.client(
                "asyncio", stub, "samples", number=number, warm_up=128, in_flight=512
            )

        def together(count: int) -> Figures:
            done = [job.result() for job in [pool.submit(one) for _ in range(count)]]
            return {"rate": sum(figures["samples_per_s"] for figures in done)}

        found = bench.interleave(
            {
                "1 process": lambda: together(1),
                "2 processes": lambda: together(2),
                "4 processes": lambda: together(4),
            }
        )
        runs = {name: [run["rate"] for run in all_runs] for name, all_runs in found.items()}
    return [
        Row(
            name="client_processes",
            table="client",
            what="samples/s of several client processes, 512 in flight each, asyncio",
            unit="/s",
            runs=runs,
            question="client_processes",
            ours="4 processes",
            than="1 process",
            more_is_better=True,
            note="each process's own rate, added up; the processes start up at slightly different times",
        )
    ]
