"""How long does a short request take while 50 long polls are held?

Fifty samples wait for a result that takes four seconds; meanwhile one request that needs no
wait is made fifteen times, and one short sample (two requests). Median of each.
"""

from __future__ import annotations

from benchmarks.harness import Bench, stub_server
from benchmarks.rows import Row, at_most, column

_HELD = 50


def ask(bench: Bench) -> list[Row]:
    with stub_server() as stub:
        found = bench.each_client(stub, "held_polls", held=_HELD)
    return [
        Row(
            name=f"held_polls_{figure}",
            table="client",
            what=f"{what} while {_HELD} polls are held",
            unit="ms",
            runs=column(found, f"{figure}_ms"),
            question="held_polls",
            must=at_most(10),
            aim=at_most(2) if figure == "request" else None,
        )
        for figure, what in (("request", "a short request"), ("sample", "a short sample"))
    ]
