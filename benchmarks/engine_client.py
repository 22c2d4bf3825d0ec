"""Measures a served engine from outside: one scenario against a server process of its own.

`python -m benchmarks.engine_client '{"scenario": ...}'` starts `tinker-async serve`, asks it
through this library's client, and prints one line of JSON. CPU figures are of the server process.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import anyio

import tinker_async as ta
from benchmarks import measure, workloads
from tinker_async.local.process import EngineAddress, local_engine

_ADAM = ta.AdamParams(learning_rate=1e-4)


async def _adapter(session: ta.Session, model: str, seed: int) -> ta.SamplingClient:
    """Return a sampler of an adapter that has taken a step, so that it is not zero."""
    trainer = await session.create_lora_training_client(
        model, rank=32, seed=seed, train_unembed=False
    )
    trainer.forward_backward(_data(1, 16), "cross_entropy")
    trainer.optim_step(_ADAM)
    return await trainer.save_weights_and_get_sampling_client()


def _data(rows: int, tokens: int, vocabulary: int = 49_152) -> list[ta.Datum]:
    return [
        ta.Datum(
            ta.ModelInput.from_ints(row["tokens"] % vocabulary),
            {"target_tokens": row["target_tokens"] % vocabulary, "weights": row["weights"]},
        )
        for row in workloads.training_rows(rows, tokens)
    ]


async def _sample_all(
    samplers: list[ta.SamplingClient], task: dict[str, Any], number: int, at_once: int
) -> int:
    """Draw samples, so many at once, from the samplers in turn; return the tokens drawn."""
    params = ta.SamplingParams(max_tokens=task["new_tokens"], temperature=1.0)
    inputs = [
        ta.ModelInput.from_ints(prompt % task.get("vocabulary", 49_152))
        for prompt in workloads.prompts(64, task["prompt"])
    ]
    left = iter(range(number))
    drawn = 0

    async def worker() -> None:
        nonlocal drawn
        for index in left:
            sampler = samplers[index % len(samplers)]
            response = await sampler.sample(inputs[index % 64], params)
            drawn += len(response.sequences[0].tokens)

    async with anyio.create_task_group() as tasks:
        for _ in range(at_once):
            tasks.start_soon(worker)
    return drawn


async def sampling(
    task: dict[str, Any], server: EngineAddress, session: ta.Session
) -> dict[str, float]:
    """Tokens per second of sampling."""
    samplers = [
        await _adapter(session, server.models[0], seed) for seed in range(task.get("adapters", 1))
    ]
    await _sample_all(samplers, {**task, "new_tokens": 4}, len(samplers), len(samplers))
    cpu, start = measure.process_cpu_s(server.process.pid), time.monotonic()
    tokens = await _sample_all(samplers, task, task["number"], task["at_once"])
    wall = time.monotonic() - start
    return {
        "tokens_per_s": tokens / wall,
        "samples_per_s": task["number"] / wall,
        "cpu_ms_per_token": 1e3 * (measure.process_cpu_s(server.process.pid) - cpu) / tokens,
        "memory_mb": measure.resident_mb(server.process.pid),
    }


async def training(
    task: dict[str, Any], server: EngineAddress, session: ta.Session
) -> dict[str, float]:
    """Tokens per CPU second and wall second of forward_backward, and peak memory."""
    trainer = await session.create_lora_training_client(
        server.models[0], rank=32, seed=0, train_unembed=False
    )
    await trainer.forward_backward(_data(1, 16), "cross_entropy")
    data = _data(task["rows"], task["tokens"])
    cpu, start = measure.process_cpu_s(server.process.pid), time.monotonic()
    for _ in range(task["number"]):
        await trainer.forward_backward(data, "cross_entropy")
    wall = time.monotonic() - start
    tokens = task["number"] * task["rows"] * task["tokens"]
    return {
        "tokens_per_cpu_s": tokens / (measure.process_cpu_s(server.process.pid) - cpu),
        "tokens_per_s": tokens / wall,
        "peak_mb": measure.peak_memory_mb(server.process.pid),
    }


async def first_token(
    task: dict[str, Any], server: EngineAddress, session: ta.Session
) -> dict[str, float]:
    """Time to a sample of one token: on an idle engine, and while it trains."""
    sampler = await _adapter(session, server.models[0], 0)
    trainer = await session.create_lora_training_client(server.models[0], rank=32, seed=1)
    asked = {**task, "new_tokens": 1}

    async def times() -> list[float]:
        found = []
        for _ in range(task["number"]):
            start = time.monotonic()
            await _sample_all([sampler], asked, 1, 1)
            found.append(time.monotonic() - start)
        return found

    await times()
    idle = await times()
    data = _data(task["rows"], task["tokens"])
    steps = [trainer.forward_backward(data, "cross_entropy") for _ in range(2)]
    await anyio.sleep(0.3)
    while_training = []
    while not steps[-1].done:
        while_training += (await times())[:1]
    for step in steps:
        await step
    return {
        "idle_ms": 1e3 * measure.percentile(idle, 50),
        "training_ms": 1e3 * measure.percentile(while_training, 50),
        "training_worst_ms": 1e3 * max(while_training),
    }


async def promises(
    task: dict[str, Any], server: EngineAddress, session: ta.Session
) -> dict[str, float]:
    """The server's own CPU for submitting and retrieving an operation.

    With one thread of torch the engine is the thread that used most besides the main one.
    """
    trainer = await session.create_lora_training_client(server.models[0], rank=8, seed=0)
    await trainer.forward_backward(_data(1, 16, 256), "cross_entropy")

    async def run(number: int) -> None:
        under_way: list[Any] = []
        for _ in range(number):
            under_way.append(trainer.optim_step(_ADAM))
            if len(under_way) >= task["window"]:
                await under_way.pop(0)
        for future in under_way:
            await future

    await run(50)
    pid = server.process.pid
    before, engine_before = measure.process_cpu_s(pid), measure.thread_cpu_s(pid)
    await run(task["number"])
    after, engine_after = measure.process_cpu_s(pid), measure.thread_cpu_s(pid)
    used = {
        thread: cpu - engine_before.get(thread, 0.0)
        for thread, cpu in engine_after.items()
        if thread != pid
    }
    engine = max(used.values())
    return {
        "server_ms": 1e3 * (after - before - engine) / task["number"],
        "engine_ms": 1e3 * engine / task["number"],
    }


async def memory(
    task: dict[str, Any], server: EngineAddress, session: ta.Session
) -> dict[str, float]:
    """The server's memory after each quarter of many steps and many samples."""
    trainer = await session.create_lora_training_client(server.models[0], rank=8, seed=0)
    data = _data(2, 16, 256)
    found: dict[str, float] = {}
    sampler = await trainer.save_weights_and_get_sampling_client()
    await _quarters(found, "steps", server, lambda: _steps(trainer, data, task["steps"] // 4))
    asked = {"prompt": 16, "new_tokens": 4, "vocabulary": 256}
    await _quarters(
        found, "samples", server, lambda: _sample_all([sampler], asked, task["samples"] // 4, 64)
    )
    return found


async def _quarters(
    found: dict[str, float], name: str, server: EngineAddress, work: Callable[[], Any]
) -> None:
    for quarter in range(1, 5):
        await work()
        found[f"{name}_{quarter}_mb"] = measure.resident_mb(server.process.pid)
    found[f"{name}_growth"] = found[f"{name}_4_mb"] / found[f"{name}_2_mb"]


async def _steps(trainer: ta.TrainingClient, data: list[ta.Datum], number: int) -> None:
    under_way: list[Any] = []
    for _ in range(number):
        under_way += [trainer.forward_backward(data, "cross_entropy"), trainer.optim_step(_ADAM)]
        if len(under_way) >= 16:
            await under_way.pop(0)
            await under_way.pop(0)
    for future in under_way:
        await future


_SCENARIOS = {
    "sampling": sampling,
    "training": training,
    "first_token": first_token,
    "promises": promises,
    "memory": memory,
}


async def _run(task: dict[str, Any]) -> dict[str, float]:
    async with (
        local_engine(model=task["model"], threads=task.get("threads")) as server,
        ta.Session(server.url, server.api_key, http2=True) as session,
    ):
        return await _SCENARIOS[task["scenario"]](task, server, session)


def main() -> None:
    print(json.dumps(anyio.run(_run, json.loads(sys.argv[1]))))


if __name__ == "__main__":
    main()
