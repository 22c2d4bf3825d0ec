"""A training program of its own, to be killed: `program.py URL RUN_DIR STEPS BACKEND`.

Prints where it begins, then each step with its loss, exactly; last the run's id. Then it waits
until its input is closed.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import anyio
import anyio.to_thread

from tinker_async import AdamParams, CheckpointPolicy, Datum, ModelInput, RecoveryPolicy, Session

RECOVERY = RecoveryPolicy(
    enabled=True, max_attempts=5, backoff_s=0.001, max_backoff_s=0.002, poll_interval_s=0.05
)


def batch(rng: random.Random) -> list[Datum]:
    """Some data that depend on the generator alone."""
    tokens = [rng.randrange(256) for _ in range(9)]
    return [Datum(ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:]})]


def say(*what: Any) -> None:
    sys.stdout.write("> " + " ".join(map(str, what)) + "\n")  # the log has lines, too
    sys.stdout.flush()


async def main(url: str, run_dir: str, steps: int) -> None:
    policy = CheckpointPolicy(save_every=4)
    rng = random.Random(3)
    async with (
        Session(url, "tml-fake") as session,
        session.durable_training(
            run_dir, base_model="toy", rank=4, seed=7, checkpoints=policy, recovery=RECOVERY
        ) as trainer,
    ):
        trainer.track("data", rng)
        say("begins", trainer.step)
        for step in trainer.steps(steps):
            result = trainer.forward_backward(batch(rng), "cross_entropy")
            await trainer.optim_step(AdamParams(learning_rate=1e-3))
            say(step, (await result).metrics["loss:sum"].hex())
        await trainer.checkpoint()
        say("ends", trainer.model_id)
        await anyio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]), backend=sys.argv[4])
