"""Cancels a call at one wait of many, on any backend: counts what the call yields to the loop.

The rule: the scope is cancelled by the call's own task, so that the place is exact. `early`
cancels as the call goes to wait, `late` when it has what it waited for and has not run on yet.
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from typing import Any, Generic, Literal, TypeVar

import anyio

T = TypeVar("T")

When = Literal["early", "late"]


class Cut:
    """One run of a call, cancelled at its `at`-th wait."""

    def __init__(self, at: int, when: When = "early") -> None:
        self.at = at
        self.when = when
        self.waits = 0
        """How often it has waited so far."""
        self.scope = anyio.CancelScope()

    @property
    def happened(self) -> bool:
        """Whether the call came as far as that."""
        return self.scope.cancel_called

    def drive(self, work: Awaitable[T]) -> Awaitable[T]:
        """Count the waits of (a part of) the call."""
        return _Driven(self, work)

    def waiting(self) -> bool:
        """Note one more wait; return whether to cancel behind it."""
        self.waits += 1
        if self.waits != self.at:
            return False
        if self.when == "early":
            self.scope.cancel()
            return False
        return True


class _Driven(Generic[T]):
    def __init__(self, cut: Cut, work: Awaitable[T]) -> None:
        self._cut = cut
        self._work = work

    def __await__(self) -> Generator[Any, Any, T]:
        inner: Any = self._work.__await__()
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                wanted = inner.send(value) if error is None else inner.throw(error)
            except StopIteration as end:
                result: T = end.value
                return result
            value = error = None
            late = self._cut.waiting()
            try:
                value = yield wanted
            except BaseException as thrown:  # noqa: BLE001  # the loop's, for the call
                error = thrown
            if late:
                self._cut.scope.cancel()
