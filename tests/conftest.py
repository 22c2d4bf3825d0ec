"""For all tests: each async one runs on asyncio, asyncio with uvloop, and trio; none tells a key."""

from __future__ import annotations

from typing import Any

import pytest
from support.leaks import pytest_configure, pytest_runtest_makereport  # noqa: F401  # hooks


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"debug": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
        pytest.param(("trio", {}), id="trio"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Name and options of the event loop that runs the test."""
    return request.param
