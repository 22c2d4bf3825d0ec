"""The README's figures are those that were measured."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import readme
from benchmarks.rows import Row

ROOT = Path(__file__).resolve().parents[2]


def test_the_readme_shows_the_results_as_they_are() -> None:
    """`python -m benchmarks --report` writes them; nobody edits them by hand."""
    results = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    rows = [Row.from_json(data) for data in results["rows"]]
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    assert text == readme.replaced(text, rows, results["facts"])
    assert readme.section(rows, results["facts"]) in text
