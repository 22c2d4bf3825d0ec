"""Guards against growing heavy: ratios to something measured in the same run, in CPU time.

They hold on a loaded machine, and break when something becomes slower by more than half. What
the library really costs is in `benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import gc
import json
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pytest

import tinker_async as ta
from tinker_async.testing import FakeService
from tinker_async.transport import TrafficClass
from tinker_async.wire.training import encode_forward_backward

if TYPE_CHECKING:
    from .conftest import RunClient, Stub

MOST_UNITS_PER_SAMPLE = 0.25
"""Of the calibration loop (20,000 rounds of pure Python)."""
MOST_COPIES = 3.0
"""Of a request's tensors, that encoding it may cost."""
MOST_MODULES = 295
MOST_OBJECTS = 8
"""That the cycle collector walks for each waiting sample, above those of a task that waits for an event."""
HELD = 50
COUNTED = 200
BOUND_S = 30


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_sample_costs_few_units_of_the_calibration_loop(
    run_client: RunClient, backend: str
) -> None:
    """64 in flight over TLS and HTTP/2, all threads of the process counted."""
    found = run_client("calibrated_samples", backend, number=500, warm_up=128, in_flight=64)
    assert found["units_per_sample"] <= MOST_UNITS_PER_SAMPLE


def test_no_thread_is_started_idle_or_under_load(run_client: RunClient) -> None:
    assert run_client("idle")["threads"] == 1
    loaded = run_client("samples", number=500, in_flight=500, count_threads_every=25)
    assert loaded["threads"] == 1


async def test_a_short_request_passes_fifty_held_polls(stub: Stub) -> None:
    """All share a connection; the held results would take a minute, and none is there before."""
    context = ssl.create_default_context(cafile=stub.authority)
    url = f"https://127.0.0.1:{stub.tls}"
    prompt, params = ta.ModelInput.from_ints([1, 2, 3]), ta.SamplingParams(max_tokens=4)
    with anyio.fail_after(BOUND_S):
        async with ta.Session(url, "tml-key", ssl_context=context) as session:
            slow = await session.create_sampling_client(base_model="stub-4-tokens-60000-ms")
            quick = await session.create_sampling_client(base_model="stub-4-tokens-0-ms")
            results: list[ta.SampleResponse] = []

            async def hold() -> None:
                results.append(await slow.sample(prompt, params))

            async with anyio.create_task_group() as tasks:
                for _ in range(HELD):
                    tasks.start_soon(hold)
                while session.statistics().transport.in_flight[TrafficClass.POLLING] < HELD:
                    await session.get_server_capabilities()
                response = await quick.sample(prompt, params)
                tasks.cancel_scope.cancel()
            assert len(response.sequences[0].tokens) == 4
            assert results == []
            assert session.statistics().transport.connections == 1


async def test_a_waiting_sample_holds_few_objects_for_the_cycle_collector(stub: Stub) -> None:
    """What a sample costs when very many wait is what the collector has to walk, again and again."""
    context = ssl.create_default_context(cafile=stub.authority)
    url = f"https://127.0.0.1:{stub.tls}"
    prompt, params = ta.ModelInput.from_ints([1, 2, 3]), ta.SamplingParams(max_tokens=4)
    with anyio.fail_after(BOUND_S):
        async with ta.Session(url, "tml-key", ssl_context=context) as session:
            slow = await session.create_sampling_client(base_model="stub-4-tokens-60000-ms")

            async def sample() -> None:
                await slow.sample(prompt, params)

            async def event() -> None:
                await anyio.Event().wait()

            async def held(number: int) -> None:
                while session.statistics().transport.in_flight[TrafficClass.POLLING] < number:
                    await session.get_server_capabilities()

            async with anyio.create_task_group() as tasks:

                async def objects_of_each(
                    work: Callable[[], Coroutine[Any, Any, None]], there: int
                ) -> float:
                    gc.collect()
                    before = len(gc.get_objects())
                    for _ in range(COUNTED):
                        tasks.start_soon(work)
                    await held(there)
                    await anyio.wait_all_tasks_blocked()
                    gc.collect()
                    return (len(gc.get_objects()) - before) / COUNTED

                for _ in range(HELD):
                    tasks.start_soon(sample)
                await held(HELD)
                of_sample = await objects_of_each(sample, HELD + COUNTED)
                of_event = await objects_of_each(event, HELD + COUNTED)
                tasks.cancel_scope.cancel()
    assert of_sample - of_event <= MOST_OBJECTS


async def test_a_step_leaves_nothing_to_the_cycle_collector(tmp_path: Path) -> None:
    """A result is freed when its caller has let it go: it can be large, and the next one reuses its memory."""
    data = [ta.Datum(ta.ModelInput.from_ints([1, 2, 3]), {"target_tokens": [2, 3, 4]})]
    never = ta.CheckpointPolicy(strategy="last", on_exit=False)

    async def train(trainer: ta.TrainingClient | ta.DurableTrainingClient) -> None:
        for _ in range(10):
            future = trainer.forward_backward(data, "cross_entropy")
            await trainer.optim_step(ta.AdamParams())
            await future

    async with (
        FakeService().session() as session,
        session.durable_training(tmp_path, base_model="toy", rank=4, checkpoints=never) as durable,
    ):
        for trainer in (await session.create_lora_training_client("toy", rank=4), durable):
            await train(trainer)
            gc.collect()
            gc.disable()
            try:
                await train(trainer)
                left = gc.collect()
            finally:
                gc.enable()
            assert left <= 10, trainer


def test_encoding_costs_little_more_than_a_copy_of_the_tensors() -> None:
    """Large rows, so that it is the bytes that count; converting numbers would cost 5 to 200 copies."""
    tokens = np.arange(65_536, dtype=np.int32)
    targets, weights = tokens.astype(np.int64), np.ones(65_536, dtype=np.float32)
    inputs: dict[str, Any] = {"target_tokens": targets, "weights": weights}
    data = [ta.Datum(ta.ModelInput.from_ints(tokens), inputs) for _ in range(8)]
    views = [tokens.data.cast("B"), targets.data.cast("B"), weights.data.cast("B")] * len(data)

    def encode() -> bytes:
        return b"".join(
            encode_forward_backward(
                model_id="s:train:0",
                seq_id=1,
                data=data,
                loss_fn="cross_entropy",
                loss_fn_config=None,
                forward_only=False,
            )
        )

    copies = [fastest_s(encode) / fastest_s(lambda: b"".join(views)) for _ in range(3)]
    assert min(copies) <= MOST_COPIES


def fastest_s(work: Callable[[], Any], rounds: int = 10) -> float:
    """The CPU time of the fastest round: whatever disturbs only adds."""
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def test_the_names_of_a_program_import_a_bounded_number_of_modules() -> None:
    """Of these most are numpy's; HTTP, TLS and the log come when they are used."""
    statement = (
        "import sys; before = len(sys.modules);"
        "import tinker_async as ta;"
        "ta.Session, ta.SamplingClient, ta.TrainingClient, ta.Datum;"
        "import json; print(json.dumps([len(sys.modules) - before, sorted(sys.modules)]))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", statement], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    number, names = json.loads(printed)
    assert number <= MOST_MODULES
    assert {"torch", "transformers", "tokenizers", "starlette", "click"}.isdisjoint(names)
    assert {"asyncio", "trio", "ssl", "h2", "structlog", "rich", "hashlib"}.isdisjoint(names)
