"""`DurableFuture`: what a caller of a durable training waits for, whichever run answers it.

The rule: it is settled once, for its caller; what becomes of the same operation in one run is told
to it by that run's own future.
"""

from __future__ import annotations

from typing import Any, TypeVar

from tinker_async.futures import APIFuture

T = TypeVar("T")


class DurableFuture(APIFuture[T]):
    """A caller's future, which outlives the run that its operation was sent to."""

    __slots__ = ("inner",)

    def __init__(self, operation: str) -> None:
        super().__init__(operation)
        self.inner: APIFuture[Any] | None = None
        """The same operation in the present run; None while it waits for one."""

    def take(self, inner: APIFuture[Any]) -> None:
        """Be the operation that the present run has; its states in the queue are ours."""
        self.inner = inner

        def tell(state: str, reason: str | None) -> None:
            if self.inner is inner:
                self.note_queue_state(state, reason)

        inner.on_queue_state(tell)

    def cancel(self) -> bool:
        """As for any future; in a recovery, what waits for the new run can be withdrawn too."""
        if self.inner is None:
            return super().cancel()
        return not self.done and self.inner.cancel()
