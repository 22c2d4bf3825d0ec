"""Turns rows into `RESULTS.md` and its plots."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import OFFICIAL, Bench
from benchmarks.questions import CLIENT, ENGINE
from benchmarks.rows import Row

_PACKAGES = (
    "anyio", "h2", "hpack", "msgspec", "numpy", "peft", "torch", "transformers", "trio", "uvloop",
)  # fmt: skip
_CLIENT_COLUMNS = (OFFICIAL, "asyncio", "uvloop", "trio")


def machine(bench: Bench) -> dict[str, Any]:
    """Return what the results depend on, besides the code."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "official": _official_version(bench),
        "load_at_start": round(os.getloadavg()[0], 1),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _official_version(bench: Bench) -> str:
    if not bench.has_official:
        return "absent"
    code = "import importlib.metadata as m; print(m.version('tinker'))"
    return subprocess.run(
        [str(bench.official_python), "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def write(folder: Path, rows: list[Row], facts: dict[str, Any]) -> None:
    """Write `RESULTS.md` and a plot for each table into a folder."""
    rows = sorted(rows, key=_order)
    client = [row for row in rows if row.table == "client"]
    engine = [row for row in rows if row.table == "engine"]
    against_official = [row for row in client if row.than == OFFICIAL]
    _plot(folder / "client.png", against_official, "times better than the official client")
    _plot(folder / "engine.png", engine, "times better than what it is compared with")
    text = "\n".join(
        [
            *_head(facts),
            *_section("The client", "client.png", client, _client_line, _client_head()),
            *_section("The engine", "engine.png", engine, _engine_line, _ENGINE_HEAD),
            *_missed(rows),
            *_questions(rows),
        ]
    )
    (folder / "RESULTS.md").write_text(text + "\n", encoding="utf-8")


def _order(row: Row) -> int:
    questions = [*CLIENT, *ENGINE]
    return questions.index(row.question) if row.question in questions else len(questions)


def _head(facts: dict[str, Any]) -> list[str]:
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    return [
        "# Results of the benchmarks",
        "",
        "Written by `make bench`. Each cell is the median of several runs, every run a process of its",
        "own, the variants in shuffled order; below it the lowest and the highest. CPU is user and",
        "system time of all threads of the measured process. Absolute figures depend on the machine and",
        "its load: the ratios are what to look at.",
        "",
        f"- Machine: {facts['cpu']}, {facts['cores']} cores, {facts['memory_gb']} GB, {facts['system']}",
        f"- Load average at the start: {facts['load_at_start']}",
        f"- Python {facts['python']}; {packages}",
        f"- Official client: tinker {facts['official']}, unmodified, in an environment of its own",
        f"- Date: {facts['date']}; runs of each cell: {facts['runs']}",
        f"- Command: `{facts['command']}`" + _later(facts.get("later", ())),
        "",
    ]


def _later(names: Sequence[str]) -> str:
    """Say which questions were asked again, or for the first time, after the whole run."""
    if not names:
        return ""
    return "; afterwards `python -m benchmarks" + "".join(f" --only {name}" for name in names) + "`"


def _client_head() -> list[str]:
    titles = ["what", "unit", "official", "asyncio", "uvloop", "trio", "ratio", "must", "aim"]
    return ["| " + " | ".join([*titles, "command"]) + " |", "|" + "---|" * (len(titles) + 1)]


_ENGINE_HEAD = [
    "| what | unit | measured | ratio | must | command |",
    "|---|---|---|---|---|---|",
]


def _section(title: str, plot: str, rows: list[Row], line: Any, head: list[str]) -> list[str]:
    if not rows:
        return []
    return [f"## {title}", "", f"![{title}: ratios]({plot})", "", *head, *map(line, rows), ""]


def _client_line(row: Row) -> str:
    others = [who for who in row.runs if who not in _CLIENT_COLUMNS]
    more = "".join(f"; {who}: {_cell(row, who, range_too=False)}" for who in others)
    cells = [_cell(row, who) for who in _CLIENT_COLUMNS]
    return (
        f"| {row.what}{more} | {row.unit} | {' | '.join(cells)} | {_ratio(row)} |"
        f" {_target(row, row.must)} | {_target(row, row.aim)} | `{row.command}` |"
    )


def _engine_line(row: Row) -> str:
    cells = "<br>".join(f"{who}: {_cell(row, who)}" for who in row.runs)
    note = f" ({row.note})" if row.note else ""
    return (
        f"| {row.what}{note} | {row.unit} | {cells} | {_ratio(row)} | {_target(row, row.must)} |"
        f" `{row.command}` |"
    )


def _cell(row: Row, who: str, *, range_too: bool = True) -> str:
    values = row.runs.get(who)
    if not values:
        return "-"
    text = number(row.medians[who])
    if range_too and len(values) > 1:
        text += f"<br>({number(min(values))} - {number(max(values))})"
    return text


def number(value: float) -> str:
    """Write a number with three digits."""
    if value != value:  # noqa: PLR0124  # NaN
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _ratio(row: Row) -> str:
    ratio = row.times_better()
    return "" if ratio is None else f"{number(ratio)}x"


def _target(row: Row, target: Any) -> str:
    if target is None:
        return ""
    verdict = row.verdict(target)
    mark = {True: "held", False: "**missed**", None: "?"}[verdict]
    return f"{target.text()}: {mark}"


def _missed(rows: list[Row]) -> list[str]:
    lines = [
        f"- {row.what} ({row.ours}): {number(row.medians[row.ours])} {row.unit}, must be {row.must.text()}"
        for row in rows
        if row.must is not None and row.verdict(row.must) is False
    ]
    if not lines:
        return ["## Missed", "", "Nothing that must hold was missed.", ""]
    return ["## Missed", "", *lines, ""]


def _questions(rows: list[Row]) -> list[str]:
    lines = ["## How each was measured", ""]
    for name in (*CLIENT, *ENGINE):
        asked = [row for row in rows if row.question == name]
        if not asked:
            continue
        text = importlib.import_module(f"benchmarks.questions.{name}").__doc__ or ""
        lines += [f"### {name}", "", text.strip(), ""]
        notes = dict.fromkeys(row.note for row in asked if row.note and row.table == "client")
        lines += [*(f"- {note}" for note in notes), *([""] if notes else [])]
    return lines[:-1]


def _plot(path: Path, rows: list[Row], label: str) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    shown = [(row, ratio) for row in rows if (ratio := row.times_better()) is not None]
    if not shown:
        return
    shown.reverse()
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.3 * len(shown)))
    colours = ["#c44e52" if row.verdict(row.must) is False else "#4c72b0" for row, _ in shown]
    axes.barh([row.what for row, _ in shown], [ratio for _, ratio in shown], color=colours)
    axes.set_xscale("log")
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.margins(x=0.15)
    axes.axvline(1.0, color="black", linewidth=0.8)
    for index, (_, ratio) in enumerate(shown):
        axes.text(ratio, index, f" {number(ratio)}x", va="center", fontsize=7)
    axes.tick_params(labelsize=7)
    axes.set_xlabel(f"{label} (red: less than it must be)", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=80, metadata={"Software": None})
    plt.close(figure)
