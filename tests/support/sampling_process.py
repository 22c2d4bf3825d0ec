"""A process that samples through handles: one line in, "ready" out, one line in, answers out.

`python sampling_process.py` reads a `Task` as a line of JSON, opens its handles, says
"ready", and waits for another line. Then it draws every seed from every handle at once and
prints a list of `Drawn`.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import anyio
import msgspec

from tinker_async import ModelInput, SamplerHandle, SamplingClient, SamplingParams, Session


class Task(msgspec.Struct, frozen=True):
    """What to draw, on which event loop."""

    api_key: str
    handles: list[SamplerHandle]
    prompt: list[int]
    seeds: list[int]
    tokens: int
    backend: str
    backend_options: dict[str, Any]


class Drawn(msgspec.Struct, frozen=True):
    """One sample."""

    handle: int
    seed: int
    tokens: list[int]
    sequence_id: str


async def draw(sampler: SamplingClient, task: Task, handle: int, seed: int) -> Drawn:
    """Draw one sample."""
    params = SamplingParams(max_tokens=task.tokens, seed=seed, stop=[])
    response = await sampler.sample(ModelInput.from_ints(task.prompt), params)
    (sequence,) = response.sequences
    return Drawn(handle, seed, sequence.tokens.tolist(), sequence.sequence_id or "")


async def work(task: Task) -> list[Drawn]:
    """Open the handles, wait for the word, draw everything at once."""
    found: list[Drawn] = []
    async with Session(task.handles[0].base_url, task.api_key, http2=True) as session:
        samplers = [
            await session.create_sampling_client_from_handle(handle) for handle in task.handles
        ]
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await anyio.to_thread.run_sync(sys.stdin.readline)

        async def one(handle: int, seed: int) -> None:
            found.append(await draw(samplers[handle], task, handle, seed))

        async with anyio.create_task_group() as tasks:
            for handle in range(len(samplers)):
                for seed in task.seeds:
                    tasks.start_soon(one, handle, seed)
    return found


def main() -> None:
    task = msgspec.json.decode(sys.stdin.readline(), type=Task)
    random.seed(0)  # as a worker of a reproducible experiment does
    found = anyio.run(work, task, backend=task.backend, backend_options=task.backend_options)
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")


if __name__ == "__main__":
    main()
