"""For the tests of downloads: a host of files, and nothing left behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from download.file_server import Host, host, sockets

from tinker_async.download import disk


@pytest.fixture(autouse=True)
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was flushed, in order. The disk itself is not waited for: that takes a tenth of a second."""
    paths: list[Path] = []
    monkeypatch.setattr(disk, "_flush", paths.append)
    return paths


@pytest.fixture
async def serving(anyio_backend: object) -> AsyncIterator[Host]:
    """A host; after the test there are no more sockets and tasks than there were before."""
    sockets_before, tasks_before = sockets(), len(anyio.get_running_tasks())
    async with host() as found:
        yield found
    assert sockets() <= sockets_before
    assert len(anyio.get_running_tasks()) <= tasks_before
