"""The head of the results, between two marks in README.md: `make bench` writes it there."""

from __future__ import annotations

from typing import Any

from benchmarks.report import number
from benchmarks.rows import Row

BEGIN, END = "<!-- results of the benchmarks: begin -->", "<!-- results of the benchmarks: end -->"
_SHOWN = (
    "sample_cpu",
    "sample_cpu_http1",
    "sample_throughput",
    "lateness_512_p50",
    "pipelined_step_cpu",
    "forward_backward_1024x1024_cpu",
    "import_cpu_ms",
    "threads_loaded",
)


def section(rows: list[Row], facts: dict[str, Any]) -> str:
    """Return the text between the marks, from what was measured."""
    known = {row.name: row for row in rows}
    lines = [
        f"Against the official client, tinker {facts['official']}, on the same server in the same run",
        f"(`make bench`, {facts['date']}, {facts['cores']} cores; medians of {facts['runs']} runs):",
        "",
        "| | unit | official | tinker-async | ratio |",
        "|---|---|---|---|---|",
    ]
    for name in _SHOWN:
        row = known.get(name)
        ratio = row.times_better() if row is not None else None
        if row is not None and ratio is not None:
            medians = row.medians
            lines.append(
                f"| {row.what} | {row.unit} | {number(medians['official'])} |"
                f" {number(medians[row.ours])} | {number(ratio)}x |"
            )
    return "\n".join(
        [
            *lines,
            "",
            "![Times better than the official client](benchmarks/client.png)",
            "",
            "All rows, the engine's too, with ranges, commands and what was missed:",
            "[benchmarks/RESULTS.md](benchmarks/RESULTS.md).",
        ]
    )


def replaced(readme: str, rows: list[Row], facts: dict[str, Any]) -> str:
    """Return the README with the section as it is now."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        return readme
    return f"{before}{BEGIN}\n\n{section(rows, facts)}\n\n{END}{after}"
