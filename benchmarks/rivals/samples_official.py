"""Samples a second of any server, asked by an official client of any age from 0.24.1 on.

Runs in that client's environment: it may import only `measure` and `workloads` from here.
`samples_ours.py` does the same with this library; keep the two alike.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
import warnings
from typing import Any

import tinker
from tinker import types

from benchmarks import workloads

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)

_BYTES = 256
"""The compared model's tokens, but for the special ones."""


async def _adapter(task: dict[str, Any]) -> Any:
    """Return a sampler of an adapter that has taken a step."""
    service = tinker.ServiceClient(base_url=task["url"], api_key=task["key"])
    trainer = await service.create_lora_training_client_async(base_model=task["model"], rank=8)
    data = [
        types.Datum(
            model_input=types.ModelInput.from_ints((row["tokens"] % _BYTES).tolist()),
            loss_fn_inputs={
                "target_tokens": types.TensorData.from_numpy(row["target_tokens"] % _BYTES),
                "weights": types.TensorData.from_numpy(row["weights"]),
            },
        )
        for row in workloads.training_rows(2, 16)
    ]
    forward = await trainer.forward_backward_async(data, "cross_entropy")
    step = await trainer.optim_step_async(types.AdamParams(learning_rate=1e-4))
    await forward
    await step
    return await trainer.save_weights_and_get_sampling_client_async()


async def _run(task: dict[str, Any]) -> dict[str, float]:
    sampler = await _adapter(task)
    params = types.SamplingParams(max_tokens=task["new_tokens"], temperature=1.0)
    inputs = [
        types.ModelInput.from_ints((prompt % _BYTES).tolist())
        for prompt in workloads.prompts(64, task["prompt"])
    ]

    async def draw(number: int) -> int:
        left, drawn = iter(range(number)), 0

        async def worker() -> None:
            nonlocal drawn
            for index in left:
                response = await sampler.sample_async(
                    prompt=inputs[index % 64], num_samples=1, sampling_params=params
                )
                drawn += len(response.sequences[0].tokens)

        await asyncio.gather(*(worker() for _ in range(task["at_once"])))
        return drawn

    await draw(task["warm_up"])
    start = time.monotonic()
    tokens = await draw(task["number"])
    wall = time.monotonic() - start
    return {"samples_per_s": task["number"] / wall, "tokens_per_sample": tokens / task["number"]}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_run(json.loads(sys.argv[1])))), flush=True)
