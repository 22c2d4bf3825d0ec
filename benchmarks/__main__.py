"""`python -m benchmarks`: asks every question and writes RESULTS.md, results.json and the plots."""

from __future__ import annotations

import argparse
import datetime as dt
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import readme, report
from benchmarks.harness import ROOT, Bench, BenchmarkFailedError
from benchmarks.questions import CLIENT, ENGINE
from benchmarks.rows import Row


def _arguments(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help="a question, `client` or `engine`; repeatable",
    )
    parser.add_argument("--runs", type=int, default=5, help="of each cell")
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the work, once: does it run at all?"
    )
    parser.add_argument(
        "--official",
        type=Path,
        default=Bench.official_python,
        help="python of the official client's environment",
    )
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--list", action="store_true", help="list the questions")
    parser.add_argument(
        "--report", action="store_true", help="write RESULTS.md again, measure nothing"
    )
    return parser.parse_args(given)


def _chosen(only: list[str] | None) -> list[str]:
    if not only:
        return [*CLIENT, *ENGINE]
    names: list[str] = []
    for name in only:
        group = {"client": CLIENT, "engine": ENGINE}.get(name, (name,))
        names += [item for item in group if item not in names]
    unknown = set(names) - {*CLIENT, *ENGINE}
    if unknown:
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; see --list")
    return names


def _load(path: Path) -> dict[str, Any]:
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    return {"facts": {}, "rows": []}


def _write(folder: Path, rows: list[Row], facts: dict[str, Any]) -> None:
    report.write(folder, rows, facts)
    if folder == ROOT / "benchmarks":
        path = ROOT / "README.md"
        path.write_text(readme.replaced(path.read_text(encoding="utf-8"), rows, facts), "utf-8")


def main() -> None:
    """Ask the questions that were chosen; rows of the others stay as they were."""
    options = _arguments(sys.argv[1:])
    if options.list:
        print("\n".join([*CLIENT, *ENGINE]))
        return
    folder = options.out or (
        ROOT / "build" / "benchmarks" if options.quick else ROOT / "benchmarks"
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    known = _load(path)
    rows = {data["name"]: Row.from_json(data) for data in known["rows"]}
    bench = Bench(
        runs=1 if options.quick else options.runs,
        quick=options.quick,
        official_python=options.official,
    )
    if options.report:
        _write(folder, list(rows.values()), known["facts"])
        return
    if not bench.has_official:
        print("the official client's environment is missing: `make bench` makes it")
    facts = {
        **report.machine(bench),
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "runs": bench.runs,
        "command": "make bench",
    }
    if options.only and known["facts"]:  # the other rows are still those of the whole run
        later = {*known["facts"].get("later", ()), *options.only}
        facts = {**known["facts"], "later": sorted(later)}
    failed = []
    for name in _chosen(options.only):
        start = time.monotonic()
        print(f"{name}:", flush=True)
        try:
            answers = importlib.import_module(f"benchmarks.questions.{name}").ask(bench)
        except BenchmarkFailedError as error:
            print(f"  FAILED: {error}")
            failed.append(name)
            continue
        rows = {key: row for key, row in rows.items() if row.question != name}
        rows |= {row.name: row for row in answers}
        for row in answers:
            medians = ", ".join(f"{who} {report.number(v)}" for who, v in row.medians.items())
            print(f"  {row.what}: {medians} {row.unit}")
        print(f"  {time.monotonic() - start:.0f} s", flush=True)
        saved = {"facts": facts, "rows": [row.to_json() for row in rows.values()]}
        path.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
        _write(folder, list(rows.values()), facts)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
