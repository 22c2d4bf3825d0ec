"""What do one, two and four client processes on one machine manage, and what does a sample cost them?

They draw from one stub at the same time. The rate is of samples that are answered at once, 512 in
flight in each process; the stub takes a part of the machine, too, so on few cores it cannot
double. CPU and memory are of 4,000 samples in flight in each process, all held until the last
one is: user and system time of the whole sample, and resident memory that each adds while
held. Prompts of 512 tokens are shared among samples, and results are dropped.
"""

from __future__ import annotations

import concurrent.futures
import statistics
import time
from typing import Any

from benchmarks.harness import Bench, Figures, Stub, stub_server
from benchmarks.rows import Row, column

_PROCESSES = {"1 process": 1, "2 processes": 2, "4 processes": 4}
_HELD = 4000
_START_S = 5.0
"""For Python to start in every process."""


def ask(bench: Bench) -> list[Row]:
    held = bench.scaled(_HELD)
    with stub_server() as stub:
        rates = _together(
            bench, stub, "samples", number=bench.scaled(20_000), warm_up=128, in_flight=512
        )
        costs = _together(
            bench,
            stub,
            "samples_held",
            switches="/c50000",
            number=held,
            warm_up=128,
            delay_ms=2000 if bench.quick else 12_000,
        )
    connections = costs["1 process"][0]["connections"]
    return [
        _row(
            "client_processes",
            "samples/s of several client processes, 512 in flight each, asyncio",
            "/s",
            column(rates, "samples_per_s"),
            more_is_better=True,
            note="all started at the same time; from the first start to the last end",
        ),
        _row(
            "client_processes_cpu",
            f"CPU per sample of each of several client processes, {held:,} held in each, asyncio",
            "ms",
            column(costs, "cpu_ms_per_sample"),
            note="mean of the processes",
        ),
        _row(
            "client_processes_memory",
            f"memory per sample in flight, {held:,} held in each of several processes, asyncio",
            "kB",
            column(costs, "memory_kb_per_sample"),
            note=f"mean of the processes; {connections:.0f} connections of 250 streams in each",
        ),
    ]


def _together(bench: Bench, stub: Stub, scenario: str, **task: Any) -> dict[str, list[Figures]]:
    """Run a scenario in so many processes at once; the rate is of all, the rest is a mean."""

    def run(count: int) -> Figures:
        task["start_at"] = time.monotonic() + _START_S
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            jobs = [
                pool.submit(bench.client, "asyncio", stub, scenario, **task) for _ in range(count)
            ]
            done = [job.result() for job in jobs]
        found = {name: statistics.fmean(one[name] for one in done) for name in done[0]}
        if "start_s" in found:
            taken_s = max(one["end_s"] for one in done) - min(one["start_s"] for one in done)
            found["samples_per_s"] = count * task["number"] / taken_s
        return found

    return bench.interleave(
        {name: lambda count=count: run(count) for name, count in _PROCESSES.items()}  # type: ignore[misc]
    )


def _row(name: str, what: str, unit: str, runs: dict[str, list[float]], **about: Any) -> Row:
    return Row(
        name=name,
        table="client",
        what=what,
        unit=unit,
        runs=runs,
        question="client_processes",
        ours="4 processes",
        than="1 process",
        **about,
    )
