"""This library as a measured client: one scenario in a process of its own.

`python -m benchmarks.client_ours '{"scenario": "samples", ...}'` prints one line of JSON.
`client_official.py` does the same with the official client; keep the two alike.
"""

from __future__ import annotations

import gc
import itertools
import json
import math
import random
import ssl
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel

import tinker_async as ta
from benchmarks import measure, workloads
from tinker_async.transport import TrafficClass

_BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


@asynccontextmanager
async def _session(task: dict[str, Any]) -> AsyncIterator[ta.Session]:
    context = None
    if task["url"].startswith("https"):
        context = ssl.create_default_context(cafile=task["authority"])
    http2 = task.get("http2")
    async with ta.Session(
        task["url"], task.get("key", workloads.KEY), ssl_context=context, http2=http2
    ) as session:
        yield session


async def _draw(
    sampler: ta.SamplingClient,
    task: dict[str, Any],
    number: int,
    in_flight: int,
    begin: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Draw samples with so many under way at any time; return latencies and latenesses.

    `begin` is called when the program's own tasks, one for each sample in flight, are there.
    """
    found: dict[str, list[float]] = {"latency": [], "late": [], "threads": [0.0]}
    params = ta.SamplingParams(max_tokens=task.get("tokens", 256))
    inputs = [ta.ModelInput.from_ints(p) for p in workloads.prompts(64, task.get("prompt", 512))]
    left = iter(range(number))
    every = task.get("count_threads_every", 0)

    go = anyio.Event()

    async def worker() -> None:
        await go.wait()
        for index in left:
            start = time.monotonic_ns()
            response = await sampler.sample(inputs[index % 64], params)
            now = time.monotonic_ns()
            sequence = response.sequences[0]
            if len(sequence.tokens) == 0 or sequence.logprobs is None:
                raise RuntimeError("an empty sample")
            found["latency"].append((now - start) / 1e9)
            if sequence.sequence_id is not None and " " in sequence.sequence_id:
                found["late"].append((now - int(sequence.sequence_id.split(" ")[0])) / 1e9)
            if every and index % every == 0:
                found["threads"].append(measure.thread_count())

    async with anyio.create_task_group() as tasks:
        for _ in range(in_flight):
            tasks.start_soon(worker)
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        begin()
        go.set()
    return found


async def samples(task: dict[str, Any]) -> dict[str, Any]:
    """CPU, rate, latency and lateness of samples."""
    model = workloads.base_model(task.get("tokens", 256), task.get("delay_ms", 0))
    if not task.get("collector", True):
        gc.disable()
    async with _session(task) as session:
        sampler = await session.create_sampling_client(base_model=task.get("model", model))
        if task.get("warm_up", 0):
            await _draw(sampler, task, task["warm_up"], min(task["warm_up"], task["in_flight"]))
        gc.collect()
        meter = measure.Meter()
        async with _watching(task) as stalls:
            # With other processes: all at once, by the clock that they share.
            await anyio.sleep(max(0.0, task.get("start_at", 0.0) - time.monotonic()))
            start = time.monotonic()
            found = await _draw(sampler, task, task["number"], task["in_flight"], meter.start)
            used = meter.stop()
    return {
        **used,
        "start_s": start,
        "end_s": start + used["wall_s"],
        **stalls.figures(),
        "cpu_ms_per_sample": 1e3 * used["cpu_s"] / task["number"],
        "samples_per_s": task["number"] / used["wall_s"],
        **measure.spread_ms("latency", found["latency"]),
        **measure.spread_ms("late", found["late"]),
        "threads": max(found["threads"]),
        "memory_mb": measure.memory_mb(),
    }


async def bare_tasks(task: dict[str, Any]) -> dict[str, Any]:
    """What the program's own tasks cost without this library: each waits twice for each sample."""
    number, waiting = task["number"], list[anyio.Event]()
    left, go = iter(range(number)), anyio.Event()

    async def worker() -> None:
        await go.wait()
        for _ in left:
            for _ in range(2):
                event = anyio.Event()
                waiting.append(event)
                await event.wait()

    async def wake() -> None:
        woken = 0
        while woken < 2 * number:
            await anyio.lowlevel.checkpoint()
            events, waiting[:] = waiting[:], ()
            woken += len(events)
            for event in events:
                event.set()

    gc.collect()
    meter = measure.Meter()
    async with anyio.create_task_group() as tasks:
        for _ in range(task["in_flight"]):
            tasks.start_soon(worker)
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        meter.start()
        go.set()
        tasks.start_soon(wake)
    return {"cpu_ms_per_sample": 1e3 * meter.stop()["cpu_s"] / number}


async def samples_held(task: dict[str, Any]) -> dict[str, Any]:
    """What a sample in flight costs: all are started at once, and none has its result before.

    Memory is what the client holds for each; prompts are shared, results are dropped.
    """
    number = task["number"]
    async with _session(task) as session:
        quick = await session.create_sampling_client(base_model=workloads.base_model(256, 0))
        await _draw(quick, task, task["warm_up"], min(task["warm_up"], 64))
        slow = await session.create_sampling_client(
            base_model=workloads.base_model(256, task["delay_ms"])
        )
        gc.collect()
        before_mb = measure.memory_mb()
        meter = measure.Meter()
        meter.start()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_draw, slow, task, number, number)
            with anyio.fail_after(task["delay_ms"] / 1e3):
                while _polls_held(session) < number:  # noqa: ASYNC110  # nobody tells of it
                    await anyio.sleep(0.05)
            held_mb = measure.memory_mb()
            connections = session.statistics().transport.connections
        used = meter.stop()
    return {
        "cpu_ms_per_sample": 1e3 * used["cpu_s"] / number,
        "memory_kb_per_sample": 1e3 * (held_mb - before_mb) / number,
        "connections": connections,
    }


def _polls_held(session: ta.Session) -> int:
    return session.statistics().transport.in_flight[TrafficClass.POLLING]


async def held_polls(task: dict[str, Any]) -> dict[str, Any]:
    """How long short requests take while long polls are held."""
    single, whole = [], []
    async with _session(task) as session:
        slow = await session.create_sampling_client(base_model=workloads.base_model(16, 4000))
        quick = await session.create_sampling_client(base_model=workloads.base_model(16, 0))
        await _draw(quick, {"tokens": 16}, 64, 8)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_draw, slow, {"tokens": 16}, task["held"], task["held"])
            await anyio.sleep(0.7)
            for _ in range(15):
                start = time.monotonic()
                await session.get_server_capabilities()
                middle = time.monotonic()
                await _draw(quick, {"tokens": 16, "prompt": 16}, 1, 1)
                single.append(middle - start)
                whole.append(time.monotonic() - middle)
                await anyio.sleep(0.02)
    return {
        "request_ms": 1e3 * measure.percentile(single, 50),
        "sample_ms": 1e3 * measure.percentile(whole, 50),
    }


def _data(rows: int, tokens: int) -> list[ta.Datum]:
    return [
        ta.Datum(
            ta.ModelInput.from_ints(row["tokens"]),
            {"target_tokens": row["target_tokens"], "weights": row["weights"]},
        )
        for row in workloads.training_rows(rows, tokens)
    ]


async def forward_backward(task: dict[str, Any]) -> dict[str, Any]:
    """CPU, wall time and memory of large training calls, one after the other."""
    async with _session(task) as session:
        trainer = await session.create_lora_training_client("stub")
        data = _data(task["rows"], task["tokens"])
        gc.collect()
        measure.forget_peak()
        before = measure.memory_mb()
        await trainer.forward_backward(data, "cross_entropy")
        gc.collect()
        meter = measure.Meter()
        async with _watching(task) as stalls:
            meter.start()
            for _ in range(task["number"]):
                output = await trainer.forward_backward(data, "cross_entropy")
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
    """CPU of small training steps, with so many under way."""
    async with _session(task) as session:
        trainer = await session.create_lora_training_client(task.get("model", "stub"), rank=8)
        data = _data(2, 16) if task.get("model") is None else _small_data()
        used = await _train(trainer, task, itertools.repeat(data))
    return {
        "cpu_ms_per_step": 1e3 * used["cpu_s"] / task["number"],
        "steps_per_s": task["number"] / used["wall_s"],
    }


async def _train(
    trainer: ta.TrainingClient | ta.DurableTrainingClient,
    task: dict[str, Any],
    batches: Iterator[list[ta.Datum]],
) -> dict[str, float]:
    """Make pipelined steps; return what those after the warm-up took."""
    adam = ta.AdamParams(learning_rate=1e-4)

    async def run(number: int) -> None:
        under_way: list[Any] = []
        for step in range(number):
            under_way.append(trainer.forward_backward(next(batches), "cross_entropy"))
            if isinstance(trainer, ta.DurableTrainingClient):
                trainer.position = {"batch": step}
            under_way.append(trainer.optim_step(adam))
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
    return meter.stop()


async def durable_steps(task: dict[str, Any]) -> dict[str, Any]:
    """CPU of the same steps on a plain client and in durable trainings, in turns.

    Both in one process, since the difference is smaller than that between two of them. Each durable
    turn has a block of its own: what its journal holds is gone when a plain one begins.
    """
    chance = random.Random(0)
    batches = itertools.cycle([_data(task["rows"], task["tokens"]) for _ in range(8)])
    cost: dict[str, list[float]] = {"plain": [], "durable": []}
    with tempfile.TemporaryDirectory() as folder:
        async with _session(task) as session:
            plain = await session.create_lora_training_client("stub", rank=8)
            for number in range(task["rounds"]):
                for who in chance.sample(sorted(cost), 2):
                    if who == "plain":
                        used = await _train(plain, task, batches)
                    else:
                        async with _durable(session, f"{folder}/{number}", task) as trainer:
                            trainer.track("data", random.Random(0))
                            used = await _train(trainer, task, batches)
                    cost[who].append(1e3 * used["cpu_s"] / task["number"])
    ratios = [one / other for one, other in zip(cost["durable"], cost["plain"], strict=True)]
    return {
        "ratio": measure.percentile(ratios, 50),
        "plain_ms": measure.percentile(cost["plain"], 50),
        "durable_ms": measure.percentile(cost["durable"], 50),
    }


def _durable(
    session: ta.Session, folder: str, task: dict[str, Any]
) -> AbstractAsyncContextManager[ta.DurableTrainingClient]:
    """A durable training that saves each so many steps, or not at all."""
    every = task["save_every"]
    policy = ta.CheckpointPolicy(
        strategy="steps" if every else "last", save_every=every or 1, keep_last=2, on_exit=False
    )
    return session.durable_training(folder, base_model="stub", rank=8, checkpoints=policy)


async def durable_memory(task: dict[str, Any]) -> dict[str, Any]:
    """Memory of a training whose every step has new data: its peak, and after each quarter.

    `save_every` is None for a plain client, and 0 for a durable training without checkpoints.
    """
    quarter = {**task, "number": task["number"] // 4, "warm_up": 0}
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        async with _session(task) as session, AsyncExitStack() as stack:
            trainer: ta.TrainingClient | ta.DurableTrainingClient
            if task["save_every"] is None:
                trainer = await session.create_lora_training_client("stub", rank=8)
            else:
                block = _durable(session, f"{folder}/run", task)
                trainer = await stack.enter_async_context(block)
            batches = (_data(task["rows"], task["tokens"]) for _ in itertools.count())
            await _train(trainer, {**quarter, "number": task["warm_up"]}, batches)
            measure.forget_peak()
            before = measure.memory_mb()
            for number in range(1, 5):
                await _train(trainer, quarter, batches)
                found[f"quarter_{number}_mb"] = measure.memory_mb()
                found[f"peak_{number}_mb"] = measure.peak_memory_mb() - before
    growth = found["quarter_4_mb"] / found["quarter_2_mb"]
    return {**found, "growth": growth}


def _small_data() -> list[ta.Datum]:
    """For a model of 259 tokens."""
    return [
        ta.Datum(
            ta.ModelInput.from_ints(row["tokens"] % 256),
            {"target_tokens": row["target_tokens"] % 256, "weights": row["weights"]},
        )
        for row in workloads.training_rows(2, 16)
    ]


async def idle(task: dict[str, Any]) -> dict[str, Any]:
    """Threads of a session that does nothing."""
    async with _session(task) as session:
        await session.create_sampling_client(base_model=workloads.base_model(16, 0))
        await anyio.sleep(1.0)
        return {"threads": measure.thread_count(), "memory_mb": measure.memory_mb()}


async def encoding(task: dict[str, Any]) -> dict[str, Any]:
    """CPU of making a request's body, without sending it; and of decoding an answer's."""
    from tinker_async.wire import training

    data = _data(task["rows"], task["tokens"])

    def encode() -> list[Any]:
        return training.encode_forward_backward(
            model_id="s-1:train:0",
            seq_id=1,
            data=data,
            loss_fn="cross_entropy",
            loss_fn_config=None,
            forward_only=False,
        )

    return {"encode_ms": _fastest_ms(encode), "joined_ms": _fastest_ms(lambda: b"".join(encode()))}


def _fastest_ms(work: Any, number: int = 15) -> float:
    best = math.inf
    for _ in range(number):
        start = time.process_time()
        kept = work()
        best = min(best, time.process_time() - start)
        del kept
    return 1e3 * best


async def calibrated_samples(task: dict[str, Any]) -> dict[str, Any]:
    """CPU of a sample in units of the calibration loop, for the guards in the tests."""
    before = measure.calibration_s()
    found = await samples(task)
    unit = (before + measure.calibration_s()) / 2
    return {**found, "units_per_sample": found["cpu_ms_per_sample"] / (1e3 * unit)}


@asynccontextmanager
async def _watching(task: dict[str, Any]) -> AsyncIterator[measure.Stalls]:
    """Watch the loop for stalls, when the task says so: the ticks cost CPU."""
    stalls = measure.Stalls()

    async def tick() -> None:
        while True:
            stalls.tick()
            await anyio.sleep(measure.Stalls.TICK_S)

    async with anyio.create_task_group() as tasks:
        if task.get("watch_stalls"):
            tasks.start_soon(tick)
            await anyio.sleep(0.05)
        yield stalls
        tasks.cancel_scope.cancel()


_SCENARIOS = {
    "samples": samples,
    "bare_tasks": bare_tasks,
    "samples_held": samples_held,
    "held_polls": held_polls,
    "forward_backward": forward_backward,
    "steps": steps,
    "durable_steps": durable_steps,
    "durable_memory": durable_memory,
    "idle": idle,
    "encoding": encoding,
    "calibrated_samples": calibrated_samples,
}


def main() -> None:
    task = json.loads(sys.argv[1])
    backend, options = _BACKENDS[task["backend"]]
    scenario = _SCENARIOS[task["scenario"]]
    profile = task.get("profile")
    if profile:
        import cProfile

        profiler = cProfile.Profile()
        profiler.enable()
        found = anyio.run(scenario, task, backend=backend, backend_options=options)
        profiler.dump_stats(profile)
    else:
        found = anyio.run(scenario, task, backend=backend, backend_options=options)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
