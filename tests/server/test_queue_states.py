"""Queue states: what a poll that has been held is told, and only what is really so."""

from __future__ import annotations

import json
import os
import queue
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from server.desk import KEY, open_desk, sample_body, sampler
from server.engine_double import HandEngine, QuickEngine
from server.hosted import hosted

import tinker_async as ta
from tinker_async.local.engine.thread import EngineThread
from tinker_async.local.server.limits import Limits
from tinker_async.local.tiny import build_tiny

OBSERVER = Path(__file__).with_name("observed_queue.py")
HELD = Limits(hold_s=0.02)
FULL = "2 samples are being drawn, as many as have room at once"
START_S = 60
"""Of the engine, and of a process of the official client from beginning to end."""


async def test_a_request_that_has_no_room_yet_is_paused_for_capacity(tmp_path: Path) -> None:
    """A sample and what a model does; with the engine's reason, and active once it has room."""
    engine = HandEngine()
    async with open_desk(tmp_path, engine, HELD) as desk:
        session_id = await desk.session()
        sampler_id = await sampler(desk, session_id)
        sample = await desk.ok("/asample", sample_body(sampler_id, 0))
        body = {"session_id": session_id, "model_seq_id": 0, "base_model": "tiny"}
        creation = await desk.ok("/create_model", body)
        step = await desk.step(f"{session_id}:train:0", 1)
        for promise in (sample, creation, step):
            told = {"type": "try_again", "request_id": promise["request_id"]}
            engine.crowded = "there is a crowd"
            paused = {"queue_state": "paused_capacity", "queue_state_reason": "there is a crowd"}
            assert told | paused == await desk.result(promise)
            engine.crowded = None
            active = {"queue_state": "active", "queue_state_reason": None}
            assert told | active == await desk.result(promise)


async def test_a_request_that_waits_for_another_one_is_not_paused(tmp_path: Path) -> None:
    """However crowded the engine is: its own client holds it up."""
    engine = QuickEngine()
    async with open_desk(tmp_path, engine, HELD) as desk:
        model_id = await desk.model(await desk.session())
        engine.crowded = "there is a crowd"
        told = await desk.result(await desk.step(model_id, 2))
        assert told["queue_state"] == "active"
        assert told["queue_state_reason"] == "request 1 of this model has not arrived yet"


# With the real engine, which draws two samples at a time


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineThread]:
    folder = tmp_path_factory.mktemp("tiny")
    build_tiny("tiny-llama", folder)
    thread = EngineThread(folder, name="tiny", threads=1, max_rows=2)
    ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
    thread.start(ready.put)
    assert not isinstance(ready.get(timeout=START_S), BaseException)
    yield thread
    thread.stop()
    assert thread.join(START_S)


DATUM = ta.Datum(ta.ModelInput.from_ints(list(range(100))), {"target_tokens": list(range(1, 101))})
PROMPT = ta.ModelInput.from_ints([10, 20, 30])
LONG = ta.SamplingParams(max_tokens=2000, stop=[])
SHORT = ta.SamplingParams(max_tokens=1)


class Watch:
    """The queue states that a session is told, and the moment of the first pause."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, str | None]] = []
        self.paused = anyio.Event()

    def __call__(self, event: ta.Event) -> None:
        if isinstance(event, ta.QueueStateChanged):
            self.told.append((event.operation, event.state, event.reason))
            if event.state == "paused_capacity":
                self.paused.set()


async def test_a_sample_that_finds_the_batch_full_is_paused_until_it_is_drawn(
    real: EngineThread, tmp_path: Path
) -> None:
    """Two others are being drawn; when they are given up it has its turn."""
    watch = Watch()
    async with (
        hosted(tmp_path, real, HELD) as server,
        ta.Session(server.url, KEY, on_event=watch) as session,
    ):
        drawer = await session.create_sampling_client(base_model="tiny")
        async with anyio.create_task_group() as tasks, anyio.create_task_group() as long:
            long.start_soon(drawer.sample, PROMPT, LONG, 2)
            while real.statistics().rows_active < 2:  # noqa: ASYNC110  # it is another thread's
                await anyio.sleep(0.005)
            tasks.start_soon(drawer.sample, PROMPT, SHORT)
            await watch.paused.wait()
            long.cancel_scope.cancel()
    assert ("sample", "paused_capacity", FULL) in watch.told
    assert ("sample", "active", None) == watch.told[-1]


async def test_training_that_waits_for_another_models_is_paused_until_its_turn(
    real: EngineThread, tmp_path: Path
) -> None:
    """The engine trains one model at a time; what it is at is active."""
    watch, many = Watch(), [DATUM] * 200
    async with (
        hosted(tmp_path, real, HELD) as server,
        ta.Session(server.url, KEY, on_event=watch) as session,
    ):
        first = await session.create_lora_training_client("tiny", rank=4)
        second = await session.create_lora_training_client("tiny", rank=4)
        busy = first.forward_backward(many, "cross_entropy")
        while not real.statistics().jobs_queued:  # noqa: ASYNC110  # it is another thread's
            await anyio.sleep(0.005)
        behind = second.forward(many[:1], "cross_entropy")
        await watch.paused.wait()
        await busy
        await behind
    reason = "training jobs are done one at a time, and another one is under way"
    assert ("forward", "paused_capacity", reason) in watch.told
    assert ("forward", "active", None) == watch.told[-1]
    assert "paused_capacity" not in {state for name, state, _ in watch.told if name != "forward"}


def test_the_official_clients_observer_is_told(real: EngineThread, tmp_path: Path) -> None:
    """Paused while the batch is full, active in the end; a large result comes after its size."""
    pytest.importorskip("tinker", reason="the official client is in the extra `judge`")

    async def observed() -> Any:
        limits = Limits(hold_s=HELD.hold_s, inline_bytes=1000)
        async with hosted(tmp_path, real, limits, bound_s=START_S) as server:
            process = await anyio.run_process(
                [sys.executable, str(OBSERVER), server.url, KEY],
                env={**os.environ, "TINKER_TELEMETRY": "0", "OMP_NUM_THREADS": "1"},
                check=False,
            )
        assert process.returncode == 0, process.stderr.decode()
        return json.loads(process.stdout)

    found = anyio.run(observed)
    assert ["paused_capacity", FULL] in found["states"]
    assert ["active", None] == found["states"][-1]
    assert [500, 500] == found["drawn"]
    assert [size > 4 * 1000 for size in found["sizes"]] == [True]
    assert found["said"] == [f"Sampling is paused for sampler {found['sampler']}. Reason: {FULL}"]
