"""For the tests of durable training."""

from __future__ import annotations

import pytest


@pytest.fixture
def fast_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats that notice at once."""
    monkeypatch.setattr("tinker_async.session._HEARTBEAT_S", 0.02)
