"""For the sweeps: quiet logs, as for the faults, and a disk that is not waited for."""

from __future__ import annotations

import os

import pytest
from faults.conftest import quiet  # noqa: F401  # a fixture


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of records are written here, and no power fails: see `tests/durable` for that."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
