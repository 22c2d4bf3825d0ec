"""What the transport's tests share: requests in tasks of their own, and waiting for a state."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import anyio.lowlevel

from tinker_async.errors import TinkerError
from tinker_async.transport import Request, Response, Transport

BOUND_S = 20.0
"""No test takes longer."""


class Asked:
    """A request in a task of its own, and how it ended."""

    def __init__(self) -> None:
        self.response: Response | None = None
        self.error: TinkerError | None = None
        self.ended = anyio.Event()
        self.scope = anyio.CancelScope()

    async def ask(self, t: Transport, request: Request, *, silence_s: float | None = None) -> None:
        with self.scope:
            try:
                self.response = await t.request(request, silence_s=silence_s)
            except TinkerError as error:
                self.error = error
        self.ended.set()


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until a condition holds."""
    while not condition():
        await anyio.lowlevel.checkpoint()
