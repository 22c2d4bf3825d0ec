"""How a durable training's block is left: by its end, by an exception, or at a SIGTERM.

The rule: what was asked for is settled, the last step that has ended is saved, and only then may
the record be closed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from tinker_async.durable.calls import Calls
from tinker_async.durable.checkpoint_policy import CheckpointPolicy
from tinker_async.durable.client import DurableTrainingClient
from tinker_async.durable.saving import Saver
from tinker_async.durable.states import Machine, State
from tinker_async.durable.terminating import listening
from tinker_async.errors import RecoveryExhaustedError, SessionClosedError


class Leaving:
    """Leaves one block in order.

    Args:
        trainer: Knows which step has ended.
        calls: Whose callers wait.
        saver: Takes the last checkpoint.
        machine: Whether there is a run that can save.
        policy: Whether the end is saved.
        grace_s: How long that may take after an exception or a signal.
    """

    def __init__(
        self,
        trainer: DurableTrainingClient,
        *,
        calls: Calls,
        saver: Saver,
        machine: Machine,
        policy: CheckpointPolicy,
        grace_s: float,
    ) -> None:
        self._trainer = trainer
        self._calls = calls
        self._saver = saver
        self._machine = machine
        self._policy = policy
        self._grace_s = grace_s
        self.is_terminated = False
        """Whether the block ends because of a SIGTERM."""

    @asynccontextmanager
    async def in_order(self) -> AsyncIterator[None]:
        """Wrap the user's block."""
        try:
            yield
            await self._calls.settled()
            await self._save_last()
            await self._calls.settled()
        except BaseException:
            is_exhausted = isinstance(self._calls.closed, RecoveryExhaustedError)
            if not is_exhausted and not self.is_terminated:
                with anyio.move_on_after(self._grace_s, shield=True):
                    await self._save_last()
            raise
        finally:
            if self._calls.closed is None:
                self._calls.close(SessionClosedError("the durable training's block has ended"))

    async def _save_last(self, *, by_signal: bool = False) -> None:
        """Save the last step that has ended, if the policy wants that and no save has it."""
        await self._saver.idle()
        trainer, saver = self._trainer, self._saver
        reason = self._policy.due_at_end(saver.state, step=trainer.step, signal=by_signal)
        if reason is not None and saver.can_save and self._machine.state is State.HEALTHY:
            saver.begin(trainer.boundary, reason)
            await saver.idle()

    async def mind_signals(self, scope: anyio.CancelScope) -> None:
        """At a SIGTERM, let the step end, save it, and end the block with the others."""
        async with listening() as listener:
            await listener.asked.wait()
            with anyio.move_on_after(self._grace_s):
                await self._save_ending()
                await listener.all_ready()
            self.is_terminated = True
            scope.cancel()

    async def _save_ending(self) -> None:
        """Save the last step that has ended, or else the next one that does."""
        trainer, ledger = self._trainer, self._saver.ledger
        at = trainer.step
        trainer.ending = True
        await self._save_last(by_signal=True)
        while at > 0 and not any(entry.step >= at for entry in ledger.account.confirmed):
            await trainer.next_step()
            await self._saver.idle()
        trainer.ending = False
