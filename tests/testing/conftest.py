"""What the tests of the kit share."""

from __future__ import annotations

import pytest

from tinker_async.testing import FakeService


@pytest.fixture
def service() -> FakeService:
    return FakeService()
