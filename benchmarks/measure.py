"""What a measured process can say of itself: CPU of all its threads, memory, threads, stalls.

Needs nothing but Python, so that the official client's environment can use it, too.
Times are in seconds or, where the name says so, in milliseconds.
"""

from __future__ import annotations

import math
import os
import resource
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_MB = 1_000_000


def cpu_s() -> float:
    """Return user and system time of all threads of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Meter:
    """CPU and wall time between `start` and `stop`."""

    def start(self) -> None:
        """Start; collect garbage before, not here: that would be a stall."""
        self._wall, self._cpu = time.monotonic(), cpu_s()

    def stop(self) -> dict[str, float]:
        """Return `cpu_s` and `wall_s`."""
        return {"cpu_s": cpu_s() - self._cpu, "wall_s": time.monotonic() - self._wall}


def memory_mb() -> float:
    """Return the resident memory of this process."""
    return _status("VmRSS", "self")


def forget_peak() -> None:
    """Make the present resident memory the peak."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_mb(process: int | str = "self") -> float:
    """Return the highest resident memory of a process since it started or `forget_peak`."""
    return _status("VmHWM", process)


def resident_mb(process: int) -> float:
    """Return the resident memory of another process."""
    return _status("VmRSS", process)


def _status(name: str, process: int | str) -> float:
    for line in Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024 / _MB
    return math.nan


def thread_count() -> int:
    """Return the number of the operating system's threads in this process."""
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def thread_cpu_s(process: int) -> dict[int, float]:
    """Return the CPU time of each thread of a process, by its number; that of the main thread is the process's."""
    tick = os.sysconf("SC_CLK_TCK")
    found = {}
    for task in Path(f"/proc/{process}/task").iterdir():
        try:
            fields = (task / "stat").read_text(encoding="ascii").rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        found[int(task.name)] = (int(fields[11]) + int(fields[12])) / tick
    return found


def process_cpu_s(process: int) -> float:
    """Return the CPU time of another process, ended threads included."""
    text = Path(f"/proc/{process}/stat").read_text(encoding="ascii")
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile; NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def spread_ms(name: str, seconds: Iterable[float]) -> dict[str, float]:
    """Return median and 99th percentile of times, in milliseconds."""
    values = list(seconds)
    return {
        f"{name}_p50_ms": 1e3 * percentile(values, 50),
        f"{name}_p99_ms": 1e3 * percentile(values, 99),
    }


class Stalls:
    """The longest time an event loop did nothing else, seen by a task that ticks in it.

    `cpu_ms` counts the thread's own CPU time, so other load of the machine does not show.
    """

    TICK_S = 0.001

    def __init__(self) -> None:
        self.wall_s = 0.0
        self.thread_cpu_s = 0.0
        self._last: tuple[float, float] | None = None

    def tick(self) -> None:
        """Note that the loop runs; called every `TICK_S` or so, in the loop's thread."""
        now = (time.monotonic(), time.thread_time())
        if self._last is not None:
            self.wall_s = max(self.wall_s, now[0] - self._last[0] - self.TICK_S)
            self.thread_cpu_s = max(self.thread_cpu_s, now[1] - self._last[1])
        self._last = now

    def figures(self) -> dict[str, float]:
        """Return the longest stall by both clocks."""
        return {"stall_ms": 1e3 * self.wall_s, "stall_cpu_ms": 1e3 * self.thread_cpu_s}


def calibration_s(rounds: int = 9) -> float:
    """Return the CPU time of a fixed piece of pure Python: what this machine is worth just now.

    The median of several rounds: what disturbs them disturbs what they are compared with.
    """
    found = []
    for _ in range(rounds):
        start = time.process_time()
        table: dict[int, Any] = {}
        for number in range(20_000):
            table[number & 1023] = (number, b"%d" % number, table.get(number & 511))
            if number & 1023 == 1023:
                table.clear()
        found.append(time.process_time() - start)
    return statistics.median(found)
