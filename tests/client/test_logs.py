"""The log: structlog's, and loaded by the first event."""

from __future__ import annotations

import subprocess
import sys

import pytest
import structlog

from tinker_async.logs import log


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_events_go_through_structlog_as_the_program_set_it_up(level: str) -> None:
    """Also when that happens after the library was imported and has logged."""
    log.info("an_earlier_event")
    with structlog.testing.capture_logs() as logs:
        getattr(log, level)("something", number=3)

    assert [{"event": "something", "number": 3, "log_level": level}] == logs


def test_structlog_is_loaded_with_the_first_event() -> None:
    """Not with the module."""
    code = """
import sys
from tinker_async.logs import log
before = "structlog" in sys.modules
log.error("first")
print(before, "structlog" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout.splitlines()[-1] == "False True"
    assert "first" in done.stdout
