"""The pytest plugin `tinker_async`: fixtures with a fake server, and the marker `virtual_time`.

The rule: loading it imports nothing but pytest; a fixture imports what it needs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tinker_async.session import Session
    from tinker_async.testing import FakeService, FaultScript, Ledger


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        "virtual_time: run this async test on trio in virtual time, with a fake server in process",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test with the marker an event loop whose clock jumps."""
    marked = metafunc.definition.get_closest_marker("virtual_time") is not None
    if marked and "anyio_backend" in metafunc.fixturenames:
        from tinker_async.testing.virtual_time import virtual_time_backend  # noqa: PLC0415

        # As a mark, since that takes the place of the parameters that the fixture has.
        metafunc.definition.add_marker(
            pytest.mark.parametrize("anyio_backend", [virtual_time_backend()], ids=["virtual_time"])
        )


@pytest.fixture
def fake_service() -> FakeService:
    """A fake server of this test's own."""
    from tinker_async.testing.service import FakeService  # noqa: PLC0415

    return FakeService()


@pytest.fixture
def tinker_faults(fake_service: FakeService) -> FaultScript:
    """What shall go wrong: `fake_service.faults`."""
    return fake_service.faults


@pytest.fixture
def tinker_ledger(fake_service: FakeService) -> Ledger:
    """What has happened: `fake_service.ledger`."""
    return fake_service.ledger


@pytest.fixture
async def fake_session(fake_service: FakeService, anyio_backend: Any) -> AsyncIterator[Session]:
    """An open session with `fake_service`, in process.

    A test of how sessions end opens its own inside the test: `async with fake_service.session()`.
    """
    del anyio_backend  # makes this fixture the concern of anyio's plugin
    async with fake_service.session() as session:
        yield session
