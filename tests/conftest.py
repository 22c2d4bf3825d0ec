"""For all tests: each async one runs on asyncio and on trio; none tells a key."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from hypothesis import settings
from support.leaks import pytest_configure, pytest_runtest_makereport  # noqa: F401  # hooks
from support.loops import USUAL

# A shell's background job ignores Ctrl-C and so would all processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Properties meet the same examples in each run, so that a change is judged by what it changes;
# `make fuzz` draws others.
settings.register_profile("same", derandomize=True)
settings.register_profile("fuzz", max_examples=1_000, deadline=None)
settings.load_profile("same")


@pytest.fixture(params=USUAL)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Name and options of the event loop that runs the test; the core's folders have uvloop too."""
    return request.param
