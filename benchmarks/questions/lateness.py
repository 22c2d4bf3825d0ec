"""How late does the caller see a result that became ready 100 ms after it was asked for?

The stub puts the time at which a result is ready into its sequence id; the client compares it
with the time at which the awaiting task has the decoded result, on the same monotonic
clock. So many samples are outstanding at any time: each is followed by the next at once.
"""

from __future__ import annotations

from benchmarks.harness import Bench, stub_server
from benchmarks.rows import Row, Target, at_most, column, within

_DELAY_MS = 100


def ask(bench: Bench) -> list[Row]:
    rows = []
    with stub_server() as stub:
        for outstanding, number in (
            (512, bench.scaled(2048, least=1024)),
            (1, bench.scaled(40, 8)),
        ):
            found = bench.each_client(
                stub,
                "samples",
                delay_ms=_DELAY_MS,
                in_flight=outstanding,
                number=number,
                warm_up=min(outstanding, number),
            )
            targets: dict[str, tuple[Target | None, Target | None]] = {
                "p50": (at_most(25), at_most(5))
                if outstanding > 1
                else (within(1, "official"), at_most(1.2)),
                "p99": (at_most(60), at_most(15)) if outstanding > 1 else (None, None),
            }
            for point, (must, aim) in targets.items():
                rows.append(
                    Row(
                        name=f"lateness_{outstanding}_{point}",
                        table="client",
                        what=f"lateness {point} of a result, {outstanding} outstanding, "
                        f"ready after {_DELAY_MS} ms",
                        unit="ms",
                        runs=column(found, f"late_{point}_ms"),
                        question="lateness",
                        must=must,
                        aim=aim,
                    )
                )
    return rows
