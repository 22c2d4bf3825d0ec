"""How many samples a second does one client process manage, 2,000 started at once?

Wall time from the first call to the last result; the answer of each is ready at once.
"""

from __future__ import annotations

from benchmarks.harness import Bench, stub_server
from benchmarks.rows import Row, better, column


def ask(bench: Bench) -> list[Row]:
    number = bench.scaled(2000)
    with stub_server() as stub:
        found = bench.each_client(stub, "samples", number=number, warm_up=64, in_flight=number)
    return [
        Row(
            name="sample_throughput",
            table="client",
            what=f"samples/s of one process, {number:,} at once",
            unit="/s",
            runs=column(found, "samples_per_s"),
            question="sample_throughput",
            more_is_better=True,
            must=better(8),
            aim=better(20),
        )
    ]
