"""What the page about testing says beyond its programs, which `tests/docs` runs."""

from __future__ import annotations

import re
from pathlib import Path

from docs.markdown import ROOT, blocks
from testing.test_plugin import run

from tinker_async.testing import Ledger, faults

PAGE = ROOT / "docs" / "how-to" / "testing.md"


def test_the_page_names_every_fault() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}

    assert {*faults.__all__} - {"Fault"} <= named


def test_what_the_page_says_of_the_ledger_exists() -> None:
    text = PAGE.read_text(encoding="utf-8").partition("## The ledger")[2].partition("\n## ")[0]
    names = set(re.findall(r"`(\w+)\(", text))

    assert len(names) > 5
    assert all(hasattr(Ledger, name) for name in names)


def test_the_tests_of_the_page_pass(tmp_path: Path) -> None:
    """As a user's file: the loop under test, then the tests."""
    first, *_ = blocks(PAGE, "python")
    (tests,) = [block for block in blocks(PAGE, "python") if "pytestmark" in block.text]
    loop = first.text.partition("\n\nasync def main")[0]
    done = run(tmp_path, f"{loop}\n\n{tests.text}")

    # On asyncio and trio, as anyio's own fixture has it; the second in virtual time only.
    assert "3 passed" in done.stdout, done.stdout + done.stderr
