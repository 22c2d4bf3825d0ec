"""`durable_training`: the block in which a durable training lives.

The rule: it is left in order: what was asked for is settled, the last step is saved, and only then
is the record closed. A run that cannot be brought back ends the block, with one error.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from random import SystemRandom
from typing import Any
from weakref import WeakKeyDictionary

import anyio
import anyio.abc
import anyio.to_thread
import msgspec

from tinker_async.data.optimizers import OptimizerConfig, config_to_send
from tinker_async.data.params import LoraConfig
from tinker_async.durable import settings
from tinker_async.durable.attempts import Means
from tinker_async.durable.calls import Calls
from tinker_async.durable.checkpoint_policy import CheckpointPolicy
from tinker_async.durable.client import DurableTrainingClient
from tinker_async.durable.journal import Journal
from tinker_async.durable.leaving import Leaving
from tinker_async.durable.ledger import Ledger
from tinker_async.durable.making import Maker, ModelPlan, described
from tinker_async.durable.opening import Start, started
from tinker_async.durable.reached import Reached
from tinker_async.durable.records import Record
from tinker_async.durable.recovering import Recovery
from tinker_async.durable.recovery_policy import RecoveryPolicy
from tinker_async.durable.saving import Disk, Saver
from tinker_async.durable.states import Machine
from tinker_async.errors import (
    ConfigError,
    InvalidInputError,
    RecoveryExhaustedError,
)
from tinker_async.lone_errors import lone_errors
from tinker_async.renewal import Renewal, Seat

_SEEDS = 2**31 - 1
_TERMINATED = 128 + signal.SIGTERM

_turns: WeakKeyDictionary[Renewal, anyio.CapacityLimiter] = WeakKeyDictionary()
"""By session: how many of its runs may be in recovery at a time, as the first one said."""


class Arguments(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What `Session.durable_training` is given."""

    run_dir: str | os.PathLike[str]
    base_model: str
    lora: LoraConfig
    metadata: Mapping[str, str] | None
    optimizer: OptimizerConfig | None
    checkpoints: CheckpointPolicy
    recovery: RecoveryPolicy
    grace_s: float
    on_record: Callable[[Record], None] | None

    def options(self) -> dict[str, Any]:
        """What the record keeps of the model, besides its base, rank and seed."""
        switches = msgspec.to_builtins(self.lora)
        for name in ("rank", "seed"):
            switches.pop(name, None)
        return {**switches, "optimizer": described(self.optimizer)}


def arguments_of(
    run_dir: str | os.PathLike[str],
    *,
    base_model: str,
    lora: Mapping[str, Any],
    metadata: Mapping[str, str] | None,
    optimizer: OptimizerConfig | None,
    checkpoints: CheckpointPolicy | None,
    recovery: RecoveryPolicy | None,
    grace_s: float,
    on_record: Callable[[Record], None] | None = None,
) -> Arguments:
    """Return the arguments of a durable training, checked, with what is usual for those not given.

    Raises:
        InvalidInputError: One is wrong; `field` is which.
    """
    config_to_send(optimizer)  # wrong ones raise here
    if not base_model:
        raise InvalidInputError("base_model is empty", field="base_model")
    settings.seconds(grace_s, "grace_s")
    return Arguments(
        run_dir=run_dir,
        base_model=base_model,
        lora=LoraConfig(**lora),
        metadata=metadata,
        optimizer=optimizer,
        checkpoints=CheckpointPolicy() if checkpoints is None else checkpoints,
        recovery=RecoveryPolicy(enabled=True) if recovery is None else recovery,
        grace_s=grace_s,
        on_record=on_record,
    )


@asynccontextmanager
async def durable_training(
    renewal: Renewal, arguments: Arguments
) -> AsyncGenerator[DurableTrainingClient]:
    """As `Session.durable_training`."""
    if not renewal.keeps_data:
        raise ConfigError(
            "the session's own engine loses its checkpoints when it ends",
            hint="give Session.local a data_dir",
        )
    async with AsyncExitStack() as stack:
        disk = Disk(
            await anyio.to_thread.run_sync(
                partial(Ledger, arguments.run_dir, on_record=arguments.on_record)
            )
        )
        stack.callback(disk.ledger.close)
        run = await disk.call(
            disk.ledger.describe,
            arguments.base_model,
            arguments.lora.rank,
            SystemRandom().randrange(_SEEDS)
            if arguments.lora.seed is None
            else arguments.lora.seed,
            arguments.options(),
        )
        plan = ModelPlan(
            base_model=run.base_model,
            lora=msgspec.structs.replace(arguments.lora, seed=run.seed),
            optimizer=arguments.optimizer,
            metadata=dict(arguments.metadata) if arguments.metadata else None,
        )
        maker = Maker(renewal, plan, restore_optimizer=arguments.recovery.restore_optimizer)
        reached = await disk.call(Reached, arguments.run_dir)
        stack.callback(reached.close)
        block = _Block(renewal, arguments, disk, maker, reached)
        async with block.entered() as trainer:
            yield trainer


class _Block:
    """The parts of one durable training, while its block is open."""

    def __init__(
        self,
        renewal: Renewal,
        arguments: Arguments,
        disk: Disk,
        maker: Maker,
        reached: Reached,
    ) -> None:
        self._renewal = renewal
        self._arguments = arguments
        self._disk = disk
        self._maker = maker
        self._calls: Calls
        self._saver: Saver
        self._machine: Machine
        self._trainer: DurableTrainingClient
        self._leaving: Leaving
        self._reached = reached
        self._exhausted: RecoveryExhaustedError | None = None

    @asynccontextmanager
    async def entered(self) -> AsyncIterator[DurableTrainingClient]:
        """Begin, give the client, and leave in order."""
        arguments = self._arguments
        events = self._maker.parts.caller.events
        start = await started(
            self._disk,
            self._maker,
            checkpoints=arguments.checkpoints,
            recovery=arguments.recovery,
            events=events,
            reached=self._reached.before,
        )
        self._machine = Machine(arguments.recovery.max_attempts, start.generation)
        fallback = arguments.recovery.fallback
        try:
            with (
                Journal(
                    arguments.run_dir, fallback=fallback, copies=arguments.recovery.copy_data
                ) as journal,
                lone_errors(),
            ):
                async with anyio.create_task_group() as tasks:
                    self._assemble(start, journal, tasks)
                    if arguments.recovery.enabled:
                        await tasks.start(self._watch, journal, start)
                    if arguments.checkpoints.on_exit:
                        tasks.start_soon(self._leaving.mind_signals, tasks.cancel_scope)
                    async with self._leaving.in_order():
                        yield self._trainer
                    tasks.cancel_scope.cancel()
        except RecoveryExhaustedError as error:
            if self._exhausted is None or error is self._exhausted:
                raise
            raise self._exhausted from error
        if self._exhausted is not None:
            raise self._exhausted
        if self._leaving.is_terminated:
            raise SystemExit(_TERMINATED)

    def _assemble(self, start: Start, journal: Journal, tasks: anyio.abc.TaskGroup) -> None:
        arguments, entry = self._arguments, start.entry
        journal.mark_loaded(start.mark)
        parts = self._maker.parts
        self._calls = calls = Calls(journal, self._machine, parts.unobserved.note)
        calls.client = start.client
        self._saver = saver = Saver(
            disk=self._disk,
            journal=journal,
            policy=arguments.checkpoints,
            calls=calls,
            machine=self._machine,
            maker=self._maker,
            events=parts.caller.events,
            tasks=tasks,
        )
        entries = self._disk.ledger.account.entries
        saver.state = arguments.checkpoints.state_from(entries, now_s=anyio.current_time())
        saver.parent = None if entry is None else entry.number
        self._trainer = DurableTrainingClient(
            calls, saver, arguments.checkpoints, entry, self._reached
        )
        self._leaving = Leaving(
            self._trainer,
            calls=calls,
            saver=saver,
            machine=self._machine,
            policy=arguments.checkpoints,
            grace_s=arguments.grace_s,
        )

    # Losses

    async def _watch(
        self,
        journal: Journal,
        start: Start,
        *,
        task_status: anyio.abc.TaskStatus[None],
    ) -> None:
        """Bring the run back whenever it is lost; where that fails, end the block."""
        arguments = self._arguments
        with self._renewal.seat(arguments.recovery, self._session_lost) as seat:
            recovery = self._recovery(journal, seat)
            self._calls.detector = recovery.watch(start.client)
            task_status.started()
            try:
                await recovery.run()
            except RecoveryExhaustedError as error:
                self._exhausted = error
                self._calls.close(error)
                raise

    def _recovery(self, journal: Journal, seat: Seat) -> Recovery:
        arguments = self._arguments
        turn = _turns.get(self._renewal)
        if turn is None:
            turn = anyio.CapacityLimiter(arguments.recovery.concurrency)
            _turns[self._renewal] = turn
        means = Means(
            policy=arguments.recovery,
            checkpoints=arguments.checkpoints,
            calls=self._calls,
            saver=self._saver,
            disk=self._disk,
            journal=journal,
            machine=self._machine,
            maker=self._maker,
            seat=seat,
            events=self._maker.parts.caller.events,
        )
        return Recovery(means, turn)

    def _session_lost(self, loss: Any) -> None:
        parts = self._renewal.parts
        if parts is not None:
            self._calls.losses.know(parts.custom_losses.made)
        if self._calls.detector is not None:
            self._calls.detector.note_loss(loss)
