"""Trains the tiny model in an engine of its own: `engine_program.py FOLDER BACKEND STEP:HOW...`.

Two durable trainings side by side, one with a loss of the user's own. Each HOW happens once in a
training's life: `poison` to each of the two; `session` and `server` lose what they name, and `me`
kills this program, all at steps of the first one. At the end the same is trained on plain clients.
Writes each step's loss to FOLDER/NAME/durable and FOLDER/NAME/plain, exactly.
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
    TrainingClient,
)
from tinker_async.api import endpoints
from tinker_async.wire import json as wire_json
from tinker_async.wire.messages import FinishReason, FinishSessionRequest

STEPS = 60
NAMES = ("cross_entropy", "own")
RECOVERY = RecoveryPolicy(
    enabled=True, backoff_s=0.01, max_backoff_s=0.02, poll_interval_s=0.2, concurrency=2
)


def batch(rng: random.Random) -> list[Datum]:
    """Some data that depend on the generator alone."""
    tokens = [rng.randrange(3, 200) for _ in range(9)]
    return [Datum(ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:]})]


def own_loss(data: Any, logprobs: list[Any]) -> tuple[Any, dict[str, float]]:
    """A loss of the user's own."""
    loss = sum((-one).square().sum() for one in logprobs)
    return loss, {"own:sum": float(loss), "data:sum": float(len(data))}


async def step_of(trainer: Any, name: str, rng: random.Random) -> float:
    """Train one step, and return its loss."""
    if name == "own":
        result = trainer.forward_backward_custom(batch(rng), own_loss)
    else:
        result = trainer.forward_backward(batch(rng), "cross_entropy")
    await trainer.optim_step(AdamParams(learning_rate=1e-3))
    loss: float = (await result).metrics["own:sum" if name == "own" else "loss:sum"]
    return loss


def write_down(file: Path, step: int, loss: float) -> None:
    """Say what a step came to."""
    with file.open("a", encoding="ascii") as lines:
        lines.write(f"{step} {loss.hex()}\n")


async def befall(how: str, session: Session, trainer: DurableTrainingClient) -> None:
    """Let one thing happen."""
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
    elif trainer.model_id in parts.trainers.lanes:
        lane = parts.trainers.lanes[trainer.model_id]
        lane.lose(ResponseError("lost by the test", endpoint="x"), APIFuture("forward"))
        trainer.forward(batch(random.Random(1)), "cross_entropy")


at_step = dict.fromkeys(NAMES, 0)


async def meet(step: int) -> None:
    """Wait for the other one, so that what befalls both finds both at work."""
    while at_step[NAMES[1]] < step:  # noqa: ASYNC110  # it may be there already
        await anyio.sleep(0.005)


async def durable(session: Session, folder: Path, name: str, due: dict[int, str]) -> None:
    """Train through all that is due."""
    rng = random.Random(3)
    async with session.durable_training(
        folder / "run",
        base_model="tiny-llama",
        rank=8,
        seed=7,
        checkpoints=CheckpointPolicy(save_every=10),
        recovery=RECOVERY,
    ) as trainer:
        trainer.track("data", rng)
        for step in trainer.steps(STEPS):
            how, done, at_step[name] = due.get(step, ""), folder / f"done-{step}", step
            if how and (how == "poison" or name == NAMES[0]) and not done.exists():
                done.touch()
                if how != "poison":
                    await meet(step)
                await befall(how, session, trainer)
            write_down(folder / "durable", step, await step_of(trainer, name, rng))
        at_step[name] = STEPS
        await trainer.save_state(f"durable-{name}")
    (folder / "report").write_text(str(trainer.report()), encoding="utf-8")


async def plain(session: Session, folder: Path, name: str) -> None:
    """The same on a client that survives nothing."""
    rng = random.Random(3)
    trainer: TrainingClient = await session.create_lora_training_client(
        "tiny-llama", rank=8, seed=7
    )
    for step in range(STEPS):
        write_down(folder / "plain", step, await step_of(trainer, name, rng))
    await trainer.save_state(f"plain-{name}")


async def main(folder: Path, due: dict[int, str]) -> None:
    """All four."""
    for name in NAMES:
        (folder / name).mkdir(exist_ok=True)
    async with Session.local("tiny-llama", data_dir=folder / "data", threads=1) as session:
        async with anyio.create_task_group() as tasks:
            for name in NAMES:
                tasks.start_soon(durable, session, folder / name, name, due)
        async with anyio.create_task_group() as tasks:
            for name in NAMES:
                tasks.start_soon(plain, session, folder / name, name)


if __name__ == "__main__":
    mischief = dict(one.split(":") for one in sys.argv[3:])
    anyio.run(
        main,
        Path(sys.argv[1]),
        {int(step): how for step, how in mischief.items()},
        backend=sys.argv[2],
    )
