"""What durable trainings of the toy are compared with: the same training on a plain client."""

from __future__ import annotations

import random
from typing import Any

import msgspec
from cancellation.scene import QUICK
from durable.program import batch

from tinker_async import AdamParams
from tinker_async.testing import FakeService

STEPS = 60


class Outcome(msgspec.Struct):
    """All that two runs are compared by."""

    losses: list[float]
    weights: dict[int, bytes]
    optimizer: dict[str, Any]


def outcome(service: FakeService, model_id: str, losses: list[float]) -> Outcome:
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


async def undisturbed() -> Outcome:
    """The same training on a plain client."""
    service, rng = FakeService(hold_s=0.01), random.Random(3)
    async with service.session(retry=QUICK) as session:
        trainer = await session.create_lora_training_client("toy", rank=4, seed=7)
        losses = []
        for _ in range(STEPS):
            result = trainer.forward_backward(batch(rng), "cross_entropy")
            await trainer.optim_step(AdamParams(learning_rate=1e-3))
            losses.append((await result).metrics["loss:sum"])
        return outcome(service, trainer.model_id, losses)
