"""Says the seed of the fuzz tests, so that a run can be repeated."""

from __future__ import annotations

from fuzz.harness import FACTOR, SEED


def pytest_report_header() -> str:
    """The seed and the number of cases."""
    return f"fuzz: FUZZ_SEED={SEED} FUZZ_FACTOR={FACTOR:g}"
