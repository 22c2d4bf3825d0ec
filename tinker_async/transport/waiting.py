"""The lightest thing to wait for: a waiter of one task, which is woken once.

`anyio.Event` is made of several objects and coroutines, all held while a task waits; with
thousands of waiting requests these are most of what Python's cycle collector walks over. Rule:
the event loop's own primitives are used here only, and only by whoever made the waiter.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


class Waiter(Protocol):
    """Awaited by one task, once, which is cancelled in it as in any other wait."""

    def __await__(self) -> Generator[Any, Any, Any]:
        """Wait until it is woken."""

    def done(self) -> bool:
        """Whether it was woken, or its task cancelled."""

    def set_result(self, result: None, /) -> None:
        """Wake the task; only if not `done`. See `wake`."""


def wake(waiter: Waiter) -> None:
    """Let the waiting task go on, unless it does already."""
    if not waiter.done():
        waiter.set_result(None)


def waiters() -> Callable[[], Waiter]:
    """Return what makes waiters in the event loop that runs here now: look it up once."""
    if "trio" in sys.modules:
        from trio.lowlevel import in_trio_task  # noqa: PLC0415 - loaded already

        if in_trio_task():
            return _trio_waiter()
    from asyncio import get_running_loop  # noqa: PLC0415 - trio needs none of it

    return get_running_loop().create_future


@functools.cache
def _trio_waiter() -> Callable[[], Waiter]:
    from trio import lowlevel  # noqa: PLC0415 - as above

    def give_up(_: object) -> lowlevel.Abort:
        return lowlevel.Abort.SUCCEEDED

    class TrioWaiter:
        __slots__ = ("_task", "_woken")

        def __init__(self) -> None:
            self._woken = False
            self._task: lowlevel.Task | None = None

        def __await__(self) -> Generator[Any, Any, Any]:
            if self._woken:
                return lowlevel.checkpoint().__await__()  # noqa: ASYNC105 - the caller awaits it
            self._task = task = lowlevel.current_task()
            task.custom_sleep_data = self  # until it is rescheduled, by us or by its cancellation
            suspended = lowlevel.wait_task_rescheduled(give_up)  # noqa: ASYNC105 - as above
            return suspended.__await__()

        def done(self) -> bool:
            task = self._task
            return self._woken or (task is not None and task.custom_sleep_data is not self)

        def set_result(self, _: None, /) -> None:
            self._woken = True
            if self._task is not None:
                lowlevel.reschedule(self._task)

    return TrioWaiter
