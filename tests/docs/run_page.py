"""Runs all Python blocks of a Markdown page, in order, as one program.

Usage: python run_page.py PAGE. Tracebacks name the page and its lines.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from docs.markdown import blocks


def main() -> None:
    path = Path(sys.argv[1])
    namespace: dict[str, Any] = {"__name__": "__main__", "__file__": str(path)}
    for block in blocks(path, "python"):
        # Empty lines before it, so that line numbers are the page's own.
        source = "\n" * (block.line - 1) + block.text
        exec(compile(source, str(path), "exec", dont_inherit=True), namespace)  # the very point


main()
