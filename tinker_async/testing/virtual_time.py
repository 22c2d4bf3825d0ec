"""Virtual time: trio's mock clock, which jumps to the next deadline when nothing else happens.

All of this library's waiting goes by the event loop's clock, so a test with hours of polls,
retries and heartbeats ends in milliseconds. The rule: only in process. A socket's other
end is a matter of real time, and the clock would jump ahead of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio

T = TypeVar("T")


def virtual_time_backend() -> tuple[str, dict[str, Any]]:
    """Return an `anyio_backend` for one test in virtual time. Needs trio.

    With pytest the marker `virtual_time` is simpler. Times begin at 0.
    """
    import trio.testing  # noqa: PLC0415  # only for those who want virtual time

    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


def run_in_virtual_time(function: Callable[..., Awaitable[T]], *args: object) -> T:
    """Run an async function from synchronous code, in virtual time. Needs trio."""
    backend, options = virtual_time_backend()
    return anyio.run(function, *args, backend=backend, backend_options=options)
