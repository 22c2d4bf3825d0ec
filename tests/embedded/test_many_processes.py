"""Several real processes that sample from one sampler on the embedded engine at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import msgspec
import pytest
from anyio.streams.text import TextReceiveStream
from support.embedded_engine import Engine
from support.sampling_process import Drawn, Task, draw

from tinker_async import (
    AdamParams,
    Datum,
    GoneError,
    ModelInput,
    SamplerHandle,
    SamplingParams,
    TrainingClient,
)

ROOT = Path(__file__).parents[2]
PROMPT = [40]
TOKENS = 6
SEEDS = (range(12), range(6, 18))
"""Of two processes; some are drawn by both."""


async def train(trainer: TrainingClient) -> None:
    """Make the weights differ from the base model's."""
    datum = Datum(ModelInput.from_ints([40, 41, 42]), {"target_tokens": [41, 42, 43]})
    for _ in range(5):
        await trainer.train_step([datum], "cross_entropy", AdamParams(learning_rate=2e-2))


class Child:
    """A process that opened its handles and waits for the word."""

    def __init__(self, process: anyio.abc.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._stdin = process.stdin
        self._stdout = TextReceiveStream(process.stdout)

    @classmethod
    async def started(cls, task: Task) -> Child:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        child = cls(
            await anyio.open_process(
                [sys.executable, str(ROOT / "tests" / "support" / "sampling_process.py")],
                env={**os.environ, "PYTHONPATH": path},
                stderr=None,
            )
        )
        await child._stdin.send(msgspec.json.encode(task) + b"\n")
        assert "ready\n" == await child._stdout.receive()
        return child

    async def drawn(self) -> list[Drawn]:
        await self._stdin.send(b"go\n")
        text = "".join([part async for part in self._stdout])
        assert 0 == await self._process.wait()
        return msgspec.json.decode(text, type=list[Drawn])


async def test_two_processes_and_their_maker_sample_at_once_and_nothing_is_mixed_up(
    engine: Engine, anyio_backend: Any
) -> None:
    """From a snapshot, a checkpoint and the base model: the tokens of each seed, under ids of its own."""
    backend, options = anyio_backend
    with anyio.fail_after(120):
        async with engine.session() as session:
            trainer = await session.create_lora_training_client(engine.model, rank=8, seed=1)
            await train(trainer)
            snapshot = await trainer.save_weights_and_get_sampling_client()
            path = (await trainer.save_weights_for_sampler("many-" + backend)).path
            samplers = [
                snapshot,
                await session.create_sampling_client(model_path=path),
                await session.create_sampling_client(base_model=engine.model),
            ]
            handles = [SamplerHandle.from_json(sampler.handle().to_json()) for sampler in samplers]
            tasks = [
                Task(engine.api_key, handles, PROMPT, list(seeds), TOKENS, backend, options)
                for seeds in SEEDS
            ]
            results: list[list[Drawn]] = [[], [], []]
            async with anyio.create_task_group() as group:
                children = [await Child.started(task) for task in tasks]

                async def of_child(number: int) -> None:
                    results[number] = await children[number].drawn()

                async def of_maker(handle: int, seed: int) -> None:
                    results[2].append(await draw(samplers[handle], tasks[0], handle, seed))

                for number in range(len(children)):
                    group.start_soon(of_child, number)
                for handle in range(len(samplers)):
                    for seed in range(18):
                        group.start_soon(of_maker, handle, seed)

    right = {(one.handle, one.seed): one.tokens for one in results[2]}
    assert 3 * 18 == len(right)
    assert any(right[0, seed] != right[2, seed] for seed in range(18))
    for found, seeds in zip(results[:2], SEEDS, strict=True):
        wanted = {(handle, seed) for handle in range(3) for seed in seeds}
        assert wanted == {(one.handle, one.seed) for one in found}
        assert len(wanted) == len(found)
        assert {key: right[key] for key in wanted} == {
            (one.handle, one.seed): one.tokens for one in found
        }
    ids = [one.sequence_id for found in results for one in found]
    assert 3 * (12 + 12 + 18) == len(set(ids))
    of_snapshot = [one.sequence_id for found in results for one in found if one.handle == 0]
    assert all(one.startswith(snapshot.sampling_session_id + ":") for one in of_snapshot)


async def test_a_snapshot_ends_with_its_maker_and_a_checkpoint_does_not(engine: Engine) -> None:
    """What a handle promises about time."""
    params = SamplingParams(max_tokens=2, stop=[])
    prompt = ModelInput.from_ints(PROMPT)
    with anyio.fail_after(60):
        async with engine.session() as other:
            async with engine.session() as maker:
                trainer = await maker.create_lora_training_client(engine.model, rank=4)
                snapshot = await trainer.save_weights_and_get_sampling_client()
                path = (await trainer.save_weights_for_sampler("lasting")).path
                checkpoint = await maker.create_sampling_client(model_path=path)
                shared = await other.create_sampling_client_from_handle(snapshot.handle())
                own = await other.create_sampling_client_from_handle(checkpoint.handle())
                handle = snapshot.handle()
                await shared.sample(prompt, params)

            with pytest.raises(GoneError, match="is over"):
                await shared.sample(prompt, params)
            late = await other.create_sampling_client_from_handle(handle)
            with pytest.raises(GoneError, match="is over"):
                await late.sample(prompt, params)
            assert 2 == len((await own.sample(prompt, params)).sequences[0].tokens)
