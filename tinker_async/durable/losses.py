"""The custom losses of one durable training, by what the present session calls them.

A handle belongs to the session that made it. The rule: whoever has one goes on with it after the
session was renewed, whether it was used before or not.
"""

from __future__ import annotations

from collections.abc import Iterable

from tinker_async.custom_losses import CustomLosses
from tinker_async.data.custom_loss import LossHandle
from tinker_async.errors import TinkerError
from tinker_async.logs import log


class Losses:
    """Knows the session's own handle for each handle that a user may have."""

    def __init__(self) -> None:
        self._own: dict[int, tuple[LossHandle, LossHandle]] = {}
        """By `id` of the handle that the user has: itself, and what the present session has."""
        self._used: set[int] = set()

    def own(self, handle: LossHandle, session_id: str) -> LossHandle:
        """Return what a session calls a loss; the handle as it is where that is not known."""
        own = self._own.get(id(handle), (handle, handle))[1]
        return own if own.session_id == session_id else handle

    def note_used(self, handle: LossHandle) -> None:
        """Take in that an operation needs a loss: without it, it could not be repeated."""
        self._own.setdefault(id(handle), (handle, handle))
        self._used.add(id(handle))

    def know(self, handles: Iterable[LossHandle]) -> None:
        """Take in the losses of a session that is lost: some may be used for the first time yet."""
        for handle in handles:
            self._own.setdefault(id(handle), (handle, handle))

    async def adopt_by(self, losses: CustomLosses) -> None:
        """Make all losses known to the present session, which may be another one now.

        Raises:
            TinkerError: It does not take one that is needed.
        """
        for key, (handle, own) in list(self._own.items()):
            try:
                self._own[key] = (handle, await losses.adopt(own))
            except TinkerError as error:
                if key in self._used:
                    raise
                log.info("custom_loss_not_adopted", name=handle.name, error=type(error).__name__)
