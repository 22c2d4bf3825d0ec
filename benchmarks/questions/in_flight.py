"""Does a sample cost more when 16,000 are in flight than when 512 are?

Every sample's result takes so long that all are outstanding at the same time. The stub allows
1,000 streams on a connection here, and the samples at once that the row says. The program's own
tasks are made before the measurement begins. Python's cycle collector looks at all objects that
live, again and again while their number grows; the row shows what it costs beside a run without it.
"""

from __future__ import annotations

from benchmarks.harness import OURS, Bench, stub_server
from benchmarks.rows import Row, column, within

_FEW, _MANY = 512, 16_000
_UNCOLLECTED = "cycle collector off"


def ask(bench: Bench) -> list[Row]:
    many = bench.scaled(_MANY)
    rows = []
    with stub_server(max_streams=1000) as stub:
        for who in OURS:
            found = bench.interleave(
                {
                    "few": lambda who=who: bench.client(  # type: ignore[misc]
                        who, stub, "samples", switches="/c50000", in_flight=_FEW,
                        number=16 * _FEW if not bench.quick else 2 * _FEW, warm_up=_FEW, delay_ms=200,
                    ),
                    "many": lambda who=who: bench.client(  # type: ignore[misc]
                        who, stub, "samples", switches="/c50000", in_flight=many,
                        number=many, warm_up=_FEW, delay_ms=6000 if not bench.quick else 2000,
                    ),
                    _UNCOLLECTED: lambda who=who: bench.client(  # type: ignore[misc]
                        who, stub, "samples", switches="/c50000", in_flight=many, collector=False,
                        number=many, warm_up=_FEW, delay_ms=6000 if not bench.quick else 2000,
                    ),
                }
            )  # fmt: skip
            costs = column(found, "cpu_ms_per_sample")
            rows.append(
                Row(
                    name=f"in_flight_{who}",
                    table="client",
                    what=f"CPU per sample at {many:,} in flight against {_FEW} ({who})",
                    unit="ms",
                    runs={
                        who: costs["many"],
                        _UNCOLLECTED: costs[_UNCOLLECTED],
                        f"{_FEW} in flight": costs["few"],
                    },
                    question="in_flight",
                    ours=who,
                    than=f"{_FEW} in flight",
                    must=within(1.2, f"{_FEW} in flight"),
                    aim=within(1.05, f"{_FEW} in flight"),
                )
            )
    return rows
