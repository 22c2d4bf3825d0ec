"""Virtual time for asyncio: the counterpart of trio's mock clock, for tests in process only.

The loop's clock jumps to the next deadline as soon as nothing else is to be done. The rule:
a loop that would wait for ever without a deadline is an error, not a hang.
"""

from __future__ import annotations

import asyncio
import selectors
from functools import partial
from typing import Any

import trio.testing

_STUCK_AFTER_S = 30.0


class _JumpingSelector(selectors.DefaultSelector):
    """Passes time instead of waiting."""

    def __init__(self, patience_s: float) -> None:
        super().__init__()
        self.now_s = 0.0
        self._patience_s = patience_s

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            events = super().select(_STUCK_AFTER_S)
            if not events:
                raise RuntimeError("nothing is due, and nothing happens: the test hangs")
            return events
        events = super().select(min(timeout, self._patience_s))
        if not events and timeout > 0:
            self.now_s += timeout
        return events


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, patience_s: float) -> None:
        self._jumping = _JumpingSelector(patience_s)
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


def virtual_backends(patience_s: float = 0.0) -> list[tuple[str, dict[str, Any]]]:
    """Return `anyio_backend` for asyncio and for trio, both in virtual time.

    Args:
        patience_s: How long worker threads are waited for, in real seconds, before each jump.
    """
    clock = partial(trio.testing.MockClock, autojump_threshold=patience_s)
    return [
        ("asyncio", {"loop_factory": partial(_VirtualLoop, patience_s)}),
        ("trio", {"clock": clock()}),
    ]
