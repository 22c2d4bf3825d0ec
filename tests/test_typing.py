"""Users see the right types: mypy checks code as they write it, strictly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_user_code_has_the_types_that_the_api_promises() -> None:
    """`assert_type` holds everywhere; a wrong call that passes leaves an unused ignore."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "tests/typing/api.py"],  # strict by pyproject.toml
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
