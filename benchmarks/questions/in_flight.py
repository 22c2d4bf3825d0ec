"""Does a sample cost more when 16,000 are in flight than when 512 are?

Every sample's result takes so long that all are outstanding at the same time. The stub allows
1,000 streams on a connection here, and the samples at once that the row says. The program's own
tasks are made before the measurement begins. Python's cycle collector looks at all objects that
live, again and again while their number grows; the row shows what it costs beside a run without it.
The program's own tasks are most of what lives: the row shows what so many of them cost without a
client, each waiting twice for a sample and then ending, beside so few that do the same work.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.harness import OURS, Bench, Figures, stub_server
from benchmarks.rows import Row, column, within

_FEW, _MANY = 512, 16_000
_THE_FEW = f"{_FEW} in flight"
_UNCOLLECTED = "cycle collector off"
_BARE = "the program's own tasks alone"
_BARE_FEW = f"{_FEW} of those"
_LATE_MS = 4000
"""Results come when all samples are out: sending 16,000 takes about two seconds."""


def ask(bench: Bench) -> list[Row]:
    many = bench.scaled(_MANY)
    few_drawn = 16 * _FEW if not bench.quick else 2 * _FEW
    with stub_server(max_streams=1000) as stub:

        def draw(who: str, in_flight: int, number: int, delay_ms: int, **more: Any) -> Figures:
            return bench.client(
                who, stub, "samples", switches="/c50000", in_flight=in_flight, number=number,
                delay_ms=delay_ms, warm_up=_FEW, **more,
            )  # fmt: skip

        rows = []
        for who in OURS:
            variants = {
                _THE_FEW: partial(draw, who, _FEW, few_drawn, 200),
                who: partial(draw, who, many, many, _LATE_MS),
            }
            if who != "uvloop":
                bare = partial(bench.client, who, None, "bare_tasks", number=many)
                variants[_BARE] = partial(bare, in_flight=many)
                variants[_BARE_FEW] = partial(bare, in_flight=_FEW)
            if who == "asyncio":
                variants[_UNCOLLECTED] = partial(draw, who, many, many, _LATE_MS, collector=False)
            rows.append(_row(who, many, bench.interleave(variants)))
    return rows


def _row(who: str, many: int, found: dict[str, list[Figures]]) -> Row:
    return Row(
        name=f"in_flight_{who}",
        table="client",
        what=f"CPU per sample at {many:,} in flight against {_FEW} ({who})",
        unit="ms",
        runs=column(found, "cpu_ms_per_sample"),
        question="in_flight",
        ours=who,
        than=_THE_FEW,
        must=within(1.2, _THE_FEW),
        aim=within(1.05, _THE_FEW),
    )
