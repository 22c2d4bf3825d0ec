"""The core: each test runs with uvloop, too."""

from __future__ import annotations

from typing import Any

import pytest
from support.loops import CORE


@pytest.fixture(params=CORE)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Name and options of the event loop that runs the test."""
    return request.param
