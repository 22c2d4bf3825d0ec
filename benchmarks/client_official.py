"""The official client as a measured client: one scenario in a process of its own.

Runs in the official client's environment, where this library is not installed: it may import
only `measure` and `workloads` from here. `client_ours.py` does the same; keep the two alike.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import sys
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import tinker
from tinker import types

from benchmarks import measure, workloads

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)


def _service(task: dict[str, Any]) -> Any:
    return tinker.ServiceClient(base_url=task["url"], api_key=task.get("key", workloads.KEY))


async def _draw(
    sampler: Any, task: dict[str, Any], number: int, in_flight: int
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"latency": [], "late": [], "threads": [0.0]}
    params = types.SamplingParams(max_tokens=task.get("tokens", 256))
    inputs = [
        types.ModelInput.from_ints(p.tolist())
        for p in workloads.prompts(64, task.get("prompt", 512))
    ]
    left = iter(range(number))
    every = task.get("count_threads_every", 0)

    async def worker() -> None:
        for index in left:
            start = time.monotonic_ns()
            response = await sampler.sample_async(
                prompt=inputs[index % 64], num_samples=1, sampling_params=params
            )
            now = time.monotonic_ns()
            sequence = response.sequences[0]
            if len(sequence.tokens) == 0 or sequence.logprobs is None:
                raise RuntimeError("an empty sample")
            found["latency"].append((now - start) / 1e9)
            if sequence.sequence_id is not None and " " in sequence.sequence_id:
                found["late"].append((now - int(sequence.sequence_id.split(" ")[0])) / 1e9)
            if every and index % every == 0:
                found["threads"].append(measure.thread_count())

    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return found


async def samples(task: dict[str, Any]) -> dict[str, Any]:
    model = workloads.base_model(task.get("tokens", 256), task.get("delay_ms", 0))
    service = _service(task)
    sampler = await service.create_sampling_client_async(base_model=task.get("model", model))
    if task.get("warm_up", 0):
        await _draw(sampler, task, task["warm_up"], min(task["warm_up"], task["in_flight"]))
    gc.collect()
    meter = measure.Meter()
    async with _watching(task, service) as stalls:
        meter.start()
        found = await _draw(sampler, task, task["number"], task["in_flight"])
        used = meter.stop()
    return {
        **used,
        **stalls.figures(),
        "cpu_ms_per_sample": 1e3 * used["cpu_s"] / task["number"],
        "samples_per_s": task["number"] / used["wall_s"],
        **measure.spread_ms("latency", found["latency"]),
        **measure.spread_ms("late", found["late"]),
        "threads": max(found["threads"]),
        "memory_mb": measure.memory_mb(),
    }


async def held_polls(task: dict[str, Any]) -> dict[str, Any]:
    single, whole = [], []
    service = _service(task)
    slow = await service.create_sampling_client_async(base_model=workloads.base_model(16, 4000))
    quick = await service.create_sampling_client_async(base_model=workloads.base_model(16, 0))
    await _draw(quick, {"tokens": 16}, 64, 8)
    await service.get_server_capabilities_async()
    holding = asyncio.create_task(_draw(slow, {"tokens": 16}, task["held"], task["held"]))
    await asyncio.sleep(0.7)
    for _ in range(15):
        start = time.monotonic()
        await service.get_server_capabilities_async()
        middle = time.monotonic()
        await _draw(quick, {"tokens": 16, "prompt": 16}, 1, 1)
        single.append(middle - start)
        whole.append(time.monotonic() - middle)
        await asyncio.sleep(0.02)
    await holding
    return {
        "request_ms": 1e3 * measure.percentile(single, 50),
        "sample_ms": 1e3 * measure.percentile(whole, 50),
    }


def _data(rows: int, tokens: int) -> list[Any]:
    return [_datum(row) for row in workloads.training_rows(rows, tokens)]


def _datum(row: dict[str, Any]) -> Any:
    return types.Datum(
        model_input=types.ModelInput.from_ints(row["tokens"].tolist()),
        loss_fn_inputs={
            "target_tokens": types.TensorData.from_numpy(row["target_tokens"]),
            "weights": types.TensorData.from_numpy(row["weights"]),
        },
    )


async def forward_backward(task: dict[str, Any]) -> dict[str, Any]:
    service = _service(task)
    trainer = await service.create_lora_training_client_async(base_model="stub")
    data = _data(task["rows"], task["tokens"])
    gc.collect()
    measure.forget_peak()
    before = measure.memory_mb()
    await (await trainer.forward_backward_async(data, "cross_entropy"))
    gc.collect()
    meter = measure.Meter()
    async with _watching(task, service) as stalls:
        meter.start()
        for _ in range(task["number"]):
            output = await (await trainer.forward_backward_async(data, "cross_entropy"))
            if len(output.loss_fn_outputs[-1]["logprobs"].to_numpy()) != task["tokens"]:
                raise RuntimeError("log-probs are missing")
        used = meter.stop()
    return {
        "cpu_ms": 1e3 * used["cpu_s"] / task["number"],
        "wall_ms": 1e3 * used["wall_s"] / task["number"],
        **stalls.figures(),
        "memory_above_start_mb": measure.peak_memory_mb() - before,
    }


async def steps(task: dict[str, Any]) -> dict[str, Any]:
    service = _service(task)
    trainer = await service.create_lora_training_client_async(
        base_model=task.get("model", "stub"), rank=8
    )
    data = _data(2, 16) if task.get("model") is None else _small_data()
    adam = types.AdamParams(learning_rate=1e-4)

    async def run(number: int) -> None:
        under_way: list[Any] = []
        for _ in range(number):
            under_way.append(await trainer.forward_backward_async(data, "cross_entropy"))
            under_way.append(await trainer.optim_step_async(adam))
            if len(under_way) >= 2 * task["window"]:
                await under_way.pop(0)
                await under_way.pop(0)
        for future in under_way:
            await future

    await run(task["warm_up"])
    gc.collect()
    meter = measure.Meter()
    meter.start()
    await run(task["number"])
    used = meter.stop()
    return {
        "cpu_ms_per_step": 1e3 * used["cpu_s"] / task["number"],
        "steps_per_s": task["number"] / used["wall_s"],
    }


def _small_data() -> list[Any]:
    """For a model of 259 tokens."""
    return [
        _datum({**row, "tokens": row["tokens"] % 256, "target_tokens": row["target_tokens"] % 256})
        for row in workloads.training_rows(2, 16)
    ]


async def idle(task: dict[str, Any]) -> dict[str, Any]:
    service = _service(task)
    await service.create_sampling_client_async(base_model=workloads.base_model(16, 0))
    await asyncio.sleep(1.0)
    return {"threads": measure.thread_count(), "memory_mb": measure.memory_mb()}


async def encoding(task: dict[str, Any]) -> dict[str, Any]:
    from tinker.proto.request_conv import forward_backward_request_to_proto

    data = _data(task["rows"], task["tokens"])
    request = types.ForwardBackwardRequest(
        forward_backward_input=types.ForwardBackwardInput(data=data, loss_fn="cross_entropy"),
        model_id="s-1:train:0",
        seq_id=1,
    )

    def encode() -> bytes:
        body: bytes = forward_backward_request_to_proto(request).SerializeToString()
        return body

    fastest = _fastest_ms(encode)
    return {"encode_ms": fastest, "joined_ms": fastest}


def _fastest_ms(work: Any, number: int = 15) -> float:
    best = math.inf
    for _ in range(number):
        start = time.process_time()
        kept = work()
        best = min(best, time.process_time() - start)
        del kept
    return 1e3 * best


@asynccontextmanager
async def _watching(task: dict[str, Any], service: Any) -> AsyncIterator[measure.Stalls]:
    """Watch the loop in which the client does its work, which is not the caller's."""
    stalls = measure.Stalls()

    async def tick() -> None:
        while True:
            stalls.tick()
            await asyncio.sleep(measure.Stalls.TICK_S)

    ticking = None
    if task.get("watch_stalls"):
        ticking = asyncio.run_coroutine_threadsafe(tick(), service.holder.get_loop())
        await asyncio.sleep(0.05)
    yield stalls
    if ticking is not None:
        ticking.cancel()


_SCENARIOS = {
    "samples": samples,
    "held_polls": held_polls,
    "forward_backward": forward_backward,
    "steps": steps,
    "idle": idle,
    "encoding": encoding,
}


def main() -> None:
    task = json.loads(sys.argv[1])
    found = asyncio.run(_SCENARIOS[task["scenario"]](task))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
