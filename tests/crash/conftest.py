"""The process that forks servers, one for the folder: it imports torch once."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from crash.lives import Zygote, zygote


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """Servers, one at a time."""
    if not hasattr(os, "fork"):
        pytest.skip("servers are forked")
    with zygote(tmp_path_factory.mktemp("zygote")) as process:
        yield process
