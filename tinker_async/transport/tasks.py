"""The tasks in which connections live: they end with the transport, and not before.

Rule: whoever has last words to say when it is cancelled, under a shield of its own, still has
the connections for them.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio

from tinker_async.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from anyio.abc import TaskGroup


class LastingTasks:
    """Starts tasks in a task group that go on while its block is being cancelled."""

    def __init__(self, tasks: TaskGroup) -> None:
        self._tasks = tasks
        self._scopes: set[anyio.CancelScope] = set()
        self._ended = False

    def start_soon(self, work: Callable[..., Awaitable[Any]], *arguments: object) -> None:
        """As `TaskGroup.start_soon`."""
        self._tasks.start_soon(self._run, anyio.CancelScope(), work, arguments)

    async def start(self, work: Callable[..., Awaitable[Any]]) -> None:
        """As `TaskGroup.start`: return when the work says `started()`.

        Cancelled, it cancels the work and waits for its end.

        Raises:
            TransportError: What ended the work before it was started.
        """
        start, scope = _Start(), anyio.CancelScope()
        self._tasks.start_soon(self._run_first, scope, work, start)
        try:
            await start.known.wait()
        except BaseException:
            scope.cancel()
            with anyio.CancelScope(shield=True):
                await start.ended.wait()
            raise
        if start.error is not None:
            raise start.error

    async def _run(
        self,
        scope: anyio.CancelScope,
        work: Callable[..., Awaitable[Any]],
        arguments: tuple[object, ...] = (),
        **options: object,
    ) -> None:
        scope.shield = not self._ended
        self._scopes.add(scope)
        try:
            with scope:
                await work(*arguments, **options)
        finally:
            self._scopes.discard(scope)

    async def _run_first(
        self, scope: anyio.CancelScope, work: Callable[..., Awaitable[Any]], start: _Start
    ) -> None:
        try:
            await self._run(scope, work, task_status=start)
        except TransportError as error:
            if start.known.is_set():
                raise
            start.error = error
        finally:
            start.known.set()
            start.ended.set()

    def end(self) -> None:
        """Cancel them all."""
        self._ended = True
        for scope in tuple(self._scopes):
            scope.cancel()
        self._tasks.cancel_scope.cancel()


@asynccontextmanager
async def lasting_tasks() -> AsyncIterator[LastingTasks]:
    """Give such tasks for the length of a block; they are cancelled when it is left.

    An exception of the block leaves as itself, never in an exception group.
    """
    failure: BaseException | None = None
    try:
        async with anyio.create_task_group() as group_of_all:
            tasks = LastingTasks(group_of_all)
            try:
                yield tasks
            except BaseException as error:
                failure = error
                raise
            finally:
                tasks.end()
    except BaseExceptionGroup as group:
        # Our tasks handle their own failures, so a group around one error holds the block's. But
        # trio raises Ctrl-C in any task: then the block was cancelled, and the group says why.
        cancelled = isinstance(failure, anyio.get_cancelled_exc_class())
        if failure is None or cancelled or len(group.exceptions) != 1:
            raise
    if failure is not None:
        try:
            raise failure
        finally:
            del failure


class _Start:
    """How far a task is: a `TaskStatus`."""

    def __init__(self) -> None:
        self.known = anyio.Event()
        """Set when it is started, or will never be."""
        self.ended = anyio.Event()
        self.error: TransportError | None = None

    def started(self, value: object = None) -> None:
        """Note that it is started."""
        del value
        self.known.set()
