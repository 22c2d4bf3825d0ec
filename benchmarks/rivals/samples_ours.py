"""Samples a second of a server, asked by this library; `samples_official.py` does the same.

`python -m benchmarks.rivals.samples_ours '{"url": ..., "at_once": 64, ...}'` prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import anyio

import tinker_async as ta
from benchmarks import workloads

_BYTES = 256
"""The compared model's tokens, but for the special ones."""


async def _adapter(session: ta.Session, model: str) -> ta.SamplingClient:
    """Return a sampler of an adapter that has taken a step."""
    trainer = await session.create_lora_training_client(model, rank=8)
    data = [
        ta.Datum(
            ta.ModelInput.from_ints(row["tokens"] % _BYTES),
            {"target_tokens": row["target_tokens"] % _BYTES, "weights": row["weights"]},
        )
        for row in workloads.training_rows(2, 16)
    ]
    trainer.forward_backward(data, "cross_entropy")
    trainer.optim_step(ta.AdamParams(learning_rate=1e-4))
    return await trainer.save_weights_and_get_sampling_client()


async def _run(task: dict[str, Any]) -> dict[str, float]:
    params = ta.SamplingParams(max_tokens=task["new_tokens"], temperature=1.0)
    inputs = [
        ta.ModelInput.from_ints(prompt % _BYTES) for prompt in workloads.prompts(64, task["prompt"])
    ]
    async with ta.Session(task["url"], task["key"]) as session:
        sampler = await _adapter(session, task["model"])

        async def draw(number: int) -> int:
            left, drawn = iter(range(number)), 0

            async def worker() -> None:
                nonlocal drawn
                for index in left:
                    response = await sampler.sample(inputs[index % 64], params)
                    drawn += len(response.sequences[0].tokens)

            async with anyio.create_task_group() as tasks:
                for _ in range(task["at_once"]):
                    tasks.start_soon(worker)
            return drawn

        await draw(task["warm_up"])
        start = time.monotonic()
        tokens = await draw(task["number"])
        wall = time.monotonic() - start
    return {"samples_per_s": task["number"] / wall, "tokens_per_sample": tokens / task["number"]}


if __name__ == "__main__":
    print(json.dumps(anyio.run(_run, json.loads(sys.argv[1]))))
