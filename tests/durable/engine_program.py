"""Trains the tiny model in an engine of its own: `engine_program.py FOLDER LOSS BACKEND STEP:HOW...`.

Each HOW happens once in the run's life: `poison`, `session` and `server` lose what they name, `me`
kills this program. Writes each step's loss to FOLDER/losses, exactly.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import anyio

from tinker_async import (
    AdamParams,
    APIFuture,
    CheckpointPolicy,
    Datum,
    DurableTrainingClient,
    ModelInput,
    RecoveryPolicy,
    ResponseError,
    Session,
)
from tinker_async.api import endpoints
from tinker_async.wire import json as wire_json
from tinker_async.wire.messages import FinishReason, FinishSessionRequest

STEPS = 60
RECOVERY = RecoveryPolicy(enabled=True, backoff_s=0.01, max_backoff_s=0.02, poll_interval_s=0.5)


def batch(rng: random.Random) -> list[Datum]:
    """Some data that depend on the generator alone."""
    tokens = [rng.randrange(3, 200) for _ in range(17)]
    return [Datum(ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:]})]


def own_loss(data: Any, logprobs: list[Any]) -> tuple[Any, dict[str, float]]:
    """A loss of the user's own."""
    loss = sum((-one).square().sum() for one in logprobs)
    return loss, {"own:sum": float(loss), "data:sum": float(len(data))}


async def befall(how: str, session: Session, trainer: DurableTrainingClient) -> None:
    parts, renewal = session._parts, session._renewal
    assert parts is not None
    assert renewal is not None
    if how == "me":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "server":
        renewal._engine.process.kill()  # type: ignore[union-attr]  # it is the session's own
    elif how == "session":
        body = FinishSessionRequest(reason=FinishReason(type="success"))
        await parts.caller.once(endpoints.finish(session.session_id), (wire_json.encode(body),))
    else:
        lane = list(parts.trainers.lanes.values())[-1]
        lane.lose(ResponseError("lost by the test", endpoint="x"), APIFuture("forward"))
        trainer.forward(batch(random.Random(1)), "cross_entropy")


async def main(folder: Path, loss: str, due: dict[int, str]) -> None:
    rng = random.Random(3)
    async with (
        Session.local("tiny-llama", data_dir=folder / "data", threads=1) as session,
        session.durable_training(
            folder / "run",
            base_model="tiny-llama",
            rank=8,
            seed=7,
            checkpoints=CheckpointPolicy(save_every=10),
            recovery=RECOVERY,
        ) as trainer,
    ):
        trainer.track("data", rng)
        for step in trainer.steps(STEPS):
            done = folder / f"done-{step}"
            if step in due and not done.exists():
                done.touch()
                await befall(due[step], session, trainer)
            if loss == "own":
                result = trainer.forward_backward_custom(batch(rng), own_loss)
            else:
                result = trainer.forward_backward(batch(rng), "cross_entropy")
            await trainer.optim_step(AdamParams(learning_rate=1e-3))
            metrics = (await result).metrics
            name = "own:sum" if loss == "own" else "loss:sum"
            with (folder / "losses").open("a", encoding="ascii") as file:
                file.write(f"{step} {metrics[name].hex()}\n")
        await trainer.save_state("final")


if __name__ == "__main__":
    mischief = dict(one.split(":") for one in sys.argv[4:])
    anyio.run(
        main,
        Path(sys.argv[1]),
        sys.argv[2],
        {int(step): how for step, how in mischief.items()},
        backend=sys.argv[3],
    )
