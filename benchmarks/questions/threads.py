"""How many threads of the operating system does a client have: idle, and with 2,000 samples at once?

Threads that numpy starts when it is imported (its linear algebra's) are not counted: both
clients have the same ones and use none.
"""

from __future__ import annotations

import sys

from benchmarks.harness import Bench, run_json, stub_server
from benchmarks.rows import Row, at_most, column

_COUNT = "import os, numpy; print('{\"threads\":%d}' % len(os.listdir('/proc/self/task')))"


def ask(bench: Bench) -> list[Row]:
    of_numpy = run_json([sys.executable, "-c", _COUNT])["threads"] - 1
    number = bench.scaled(2000)
    with stub_server() as stub:
        idle = bench.each_client(stub, "idle")
        loaded = bench.each_client(
            stub, "samples", number=number, in_flight=number, count_threads_every=50
        )
    return [
        Row(
            name=f"threads_{state}",
            table="client",
            what=f"threads, {what}",
            unit="",
            runs={
                who: [max(1.0, count - of_numpy) for count in counts]
                for who, counts in column(found, "threads").items()
            },
            question="threads",
            must=at_most(1),
            aim=at_most(1),
            note=f"without the {of_numpy:.0f} that numpy starts",
        )
        for state, what, found in (
            ("idle", "idle", idle),
            ("loaded", f"{number:,} samples at once", loaded),
        )
    ]
