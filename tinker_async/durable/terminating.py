"""SIGTERM, told to all durable trainings of a program, so that each saves before any ends.

A loop has room for one receiver of a signal: the training that came first holds it for all, and
when that has ended the next takes it over. The rule: of those that were told, none ends before
each has saved, since in many programs the end of one is the end of the others.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import anyio
from anyio.lowlevel import RunVar


class _Shared:
    """What the trainings of one event loop have in common."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self.turn = anyio.Lock()
        """Held by whoever has the receiver."""
        self.changed = anyio.Event()

    def note_change(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()


_shared: RunVar[_Shared] = RunVar("tinker_async_terminations")


class Listener:
    """One who is told. Made by `listening`."""

    def __init__(self, shared: _Shared) -> None:
        self._shared = shared
        self.asked = anyio.Event()
        """Set at a SIGTERM."""
        self.is_ready = False

    async def all_ready(self) -> None:
        """Say that this one may end, and wait until all that were told may, or have ended."""
        self.is_ready = True
        self._shared.note_change()
        while any(one.asked.is_set() and not one.is_ready for one in self._shared.listeners):
            await self._shared.changed.wait()


@asynccontextmanager
async def listening() -> AsyncGenerator[Listener]:
    """Listen for the length of a block. Only the main thread is ever told."""
    try:
        shared = _shared.get()
    except LookupError:
        shared = _Shared()
        _shared.set(shared)
    listener = Listener(shared)
    if any(one.asked.is_set() for one in shared.listeners):
        listener.asked.set()  # the program ends already
    shared.listeners.append(listener)
    try:
        async with anyio.create_task_group() as tasks:
            if threading.current_thread() is threading.main_thread():
                tasks.start_soon(_receive, shared)
            yield listener
            tasks.cancel_scope.cancel()
    finally:
        shared.listeners.remove(listener)
        shared.note_change()


async def _receive(shared: _Shared) -> None:
    """Hold the receiver for all, or wait for whoever has it."""
    async with shared.turn:
        with (
            suppress(NotImplementedError),  # systems whose loops know no signals
            anyio.open_signal_receiver(signal.SIGTERM) as signals,
        ):
            async for _ in signals:
                for listener in shared.listeners:
                    listener.asked.set()
