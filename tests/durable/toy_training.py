"""Durable trainings of the toy, and what they are compared with: the same on a plain client."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import msgspec
from cancellation.scene import QUICK
from durable.program import batch

from tinker_async import AdamParams, CheckpointPolicy, DurableEvent, RecoveryPolicy, Session
from tinker_async.durable.client import DurableTrainingClient
from tinker_async.testing import FakeService

STEPS = 60
AT_ONCE = RecoveryPolicy(
    enabled=True, max_attempts=5, backoff_s=0.001, max_backoff_s=0.002, poll_interval_s=0.05
)
EVERY_10 = CheckpointPolicy(save_every=10)
ADAM = AdamParams(learning_rate=1e-3)


def recovery(**changes: Any) -> RecoveryPolicy:
    """A policy that loses no time."""
    return msgspec.structs.replace(AT_ONCE, **changes)


def training(
    session: Session,
    run_dir: Path,
    *,
    checkpoints: CheckpointPolicy = EVERY_10,
    recovery: RecoveryPolicy = AT_ONCE,
    **options: Any,
) -> AbstractAsyncContextManager[DurableTrainingClient]:
    """A durable training of the toy."""
    return session.durable_training(
        run_dir,
        base_model="toy",
        rank=4,
        seed=7,
        checkpoints=checkpoints,
        recovery=recovery,
        **options,
    )


async def train(
    trainer: DurableTrainingClient,
    steps: int,
    befall: Callable[[int], object] = lambda step: None,
    *,
    save_all: bool = True,
) -> list[float]:
    """Train as `undisturbed`, and return the losses of the steps.

    Args:
        trainer: What to train.
        steps: Up to this one.
        befall: Called at the beginning of each step, after the saves of those before; may be a
            coroutine function.
        save_all: Wait for each save, so that there is the same at each run of a test.
    """
    rng = trainer.track("data", random.Random(3))
    losses = []
    for step in trainer.steps(steps):
        if save_all:
            await trainer.saved()
        awaited = befall(step)
        if inspect.isawaitable(awaited):
            await awaited
        result = trainer.forward_backward(batch(rng), "cross_entropy")
        await trainer.optim_step(ADAM)
        losses.append((await result).metrics["loss:sum"])
    return losses


def lost_at(
    step: int, service: FakeService, trainer: DurableTrainingClient
) -> Callable[[int], None]:
    """What befalls a training whose run is corrupted at a step."""

    def befall(at: int) -> None:
        if at == step:
            service.corrupt(trainer.model_id)

    return befall


QUIET = {"CheckpointSaved", "CheckpointDeleted"}


class Ear:
    """Hears what a durable training tells."""

    def __init__(self) -> None:
        self.heard: list[DurableEvent] = []
        self._more = anyio.Event()

    def __call__(self, event: object) -> None:
        if isinstance(event, DurableEvent) and type(event).__name__ not in QUIET:
            self.heard.append(event)
            self._more.set()

    async def until(self, name: str) -> None:
        """Wait for an event."""
        while name not in self.names:
            self._more = anyio.Event()
            await self._more.wait()

    @property
    def names(self) -> list[str]:
        """Of the events, without what all begin with."""
        return [type(event).__name__.removeprefix("Recovery") for event in self.heard]

    def only(self, kind: Any) -> Any:
        """The one event of a kind."""
        (found,) = (event for event in self.heard if isinstance(event, kind))
        return found


class Outcome(msgspec.Struct):
    """All that two runs are compared by."""

    losses: list[float]
    weights: dict[int, bytes]
    optimizer: dict[str, Any]


def outcome(service: FakeService, model_id: str, losses: list[float]) -> Outcome:
    """What a run came to."""
    state = service.state.models[model_id].toy.state()
    return Outcome(
        losses=losses,
        weights={token: row.tobytes() for token, row in state.weights.rows.items()},
        optimizer={
            "steps": state.steps,
            "first": {token: row.tobytes() for token, row in state.first_moments.items()},
            "second": {token: row.tobytes() for token, row in state.second_moments.items()},
        },
    )


_known: dict[int, Outcome] = {}
"""The toy gives the same in every process, so it is asked once."""


async def undisturbed(steps: int = STEPS) -> Outcome:
    """The same training on a plain client."""
    if steps not in _known:
        service, rng = FakeService(hold_s=0.01), random.Random(3)
        async with service.session(retry=QUICK) as session:
            trainer = await session.create_lora_training_client("toy", rank=4, seed=7)
            losses = []
            for _ in range(steps):
                result = trainer.forward_backward(batch(rng), "cross_entropy")
                await trainer.optim_step(ADAM)
                losses.append((await result).metrics["loss:sum"])
            _known[steps] = outcome(service, trainer.model_id, losses)
    return _known[steps]
