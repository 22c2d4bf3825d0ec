"""Runs all Python blocks of a Markdown page, in order, as one program.

Usage: python run_page.py PAGE. Tracebacks name the page and its lines. The blocks run as this
very module, so processes that a page spawns find its functions where they look: in the
main module, which they import.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from docs.markdown import blocks


def run_page() -> None:
    path = Path(sys.argv[1])
    for block in blocks(path, "python"):
        # Empty lines before it, so that line numbers are the page's own.
        source = "\n" * (block.line - 1) + block.text
        exec(compile(source, str(path), "exec", dont_inherit=True), globals())  # the very point


run_page()
