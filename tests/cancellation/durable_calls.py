"""Durable training as rows of the sweep: what its client is asked, and its block.

What it asks is sent by other clients, whose own rows meet every kind of connection; so several
operations share a row, and most blocks are made in process. A block's rows are cut at its own
waits, and one at those of the tasks in it, which save and recover.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from cancellation.calls import Make, call
from cancellation.scene import DATUM, PATIENT, Scene

from tinker_async import AdamParams, CheckpointPolicy, DurableTrainingClient, Ledger
from tinker_async.durable.recovering import Recovery
from tinker_async.durable.saving import Saver

HERE = ("in process",)
STILL = AdamParams(learning_rate=0.0)
"""So that a run gives the same however many steps it had."""
AT_THE_END = CheckpointPolicy(strategy="last", keep_last=1)


def durable(*names: str) -> Callable[[Make], Make]:
    """Add a row of the client's methods."""
    return call(*(f"DurableTrainingClient.{name}" for name in names), durable=True)


def check_folder(folder: Path) -> None:
    """Nobody has the record, and it can be read: its checkpoints are numbered without a gap."""
    if not folder.exists():
        return
    with Ledger(folder) as ledger:
        numbers = [entry.number for entry in ledger.account.entries]
    assert numbers == [*range(1, len(numbers) + 1)]


# The client


@durable("forward", "forward_backward", "optim_step", "train_step")
async def steps(scene: Scene) -> Any:
    trainer = scene.durable
    scored = await trainer.forward([DATUM], "cross_entropy")
    trained = await trainer.forward_backward([DATUM], "cross_entropy")
    await trainer.optim_step(STILL)
    stepped = await trainer.train_step([DATUM], "cross_entropy", STILL)
    return scored.metrics, trained.metrics["loss:sum"], stepped.metrics["loss:sum"]


@durable("forward_backward_custom")
async def forward_backward_custom(scene: Scene) -> Any:
    def loss(_: Any, logprobs: Any) -> Any:
        return -sum(one.sum() for one in logprobs), {"n": 1.0}

    return (await scene.durable.forward_backward_custom([DATUM], loss)).metrics["n"]


@durable("save_state", "save_weights_for_sampler", "save_weights_external")
async def saves(scene: Scene) -> Any:
    trainer, name = scene.durable, scene.new_name()
    saved = await trainer.save_state(name)
    sampled = await trainer.save_weights_for_sampler(name)
    external = await trainer.save_weights_external(name)
    return [one.path.endswith(f"/{name}") for one in (saved, sampled, external)]


@durable("load_state", "load_state_with_optimizer")
async def loads(scene: Scene) -> Any:
    first = await scene.durable.load_state(scene.path)
    return type(first), type(await scene.durable.load_state_with_optimizer(scene.path))


@durable("save_weights_and_get_sampling_client", "create_sampling_client")
async def samplers(scene: Scene) -> Any:
    snapshot = await scene.durable.save_weights_and_get_sampling_client()
    of_path = await scene.durable.create_sampling_client(scene.sampler_path)
    return type(snapshot), of_path.model_path


@durable("get_info", "get_tokenizer")
async def facts(scene: Scene) -> Any:
    scene.durable.client._info = None  # it is asked once; here each time
    info = await scene.durable.get_info()
    return info.model_data.model_name, (await scene.durable.get_tokenizer()).encode("ab").ids


@durable("checkpoint")
async def checkpoint(scene: Scene) -> Any:
    return (await scene.durable.checkpoint()).status


@durable("saved", "next_step")
async def waits(scene: Scene) -> Any:
    """For a step that ends an epoch, and for the save that then begins."""
    trainer = scene.durable

    async def end_an_epoch() -> None:
        await anyio.lowlevel.checkpoint()
        trainer.epoch += 1
        trainer.end_step()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(end_an_epoch)
        await trainer.next_step()
    await trainer.saved()
    return len(Ledger.read(scene.folder.parent / "scene").confirmed) > 0


# The block


@asynccontextmanager
async def block(scene: Scene, folder: Path) -> AsyncGenerator[DurableTrainingClient]:
    async with scene.session.durable_training(
        folder, base_model="toy", seed=7, rank=4, checkpoints=AT_THE_END, recovery=PATIENT
    ) as trainer:
        yield trainer


async def step_of(trainer: DurableTrainingClient) -> float:
    """Make a step, and return its loss, which is the same for every step."""
    result = trainer.forward_backward([DATUM], "cross_entropy")
    trainer.optim_step(STILL)
    return (await result).metrics["loss:sum"]


def in_block(*more: str, **options: Any) -> Callable[[Make], Make]:
    """Add a row of a block; the lane of its model stays with the session."""
    return call("Session.durable_training", *more, keeps=("Lane.run",), **options)


@in_block()
async def durable_training(scene: Scene) -> Any:
    """Made anew; and again in the same folder, whatever the cut has left there."""
    async with block(scene, scene.folder) as trainer:
        return await step_of(trainer)


@in_block(variant="gone on with", ways=HERE)
async def durable_training_again(scene: Scene) -> Any:
    """Each call but the first loads what the one before has saved, and deletes what that had."""
    async with block(scene, scene.folder.parent / "kept") as trainer:
        return await step_of(trainer)


@in_block("DurableTrainingClient.unload_model", variant="unloaded", ways=HERE)
async def unload_model(scene: Scene) -> Any:
    async with block(scene, scene.folder) as trainer:
        return (await trainer.unload_model()).model_id == trainer.model_id


@contextmanager
def tasks_are_cut(scene: Scene) -> Iterator[None]:
    """Let the waits of saves and of recoveries count, which are in tasks of the block's own."""

    def counted(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @functools.wraps(method)
        async def driven(*arguments: Any) -> Any:
            work = method(*arguments)
            return await (work if scene.cut is None else scene.cut.drive(work))

        return driven

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Saver, "_finish", counted(Saver._finish))
        patch.setattr(Recovery, "_recover", counted(Recovery._recover))
        yield


@in_block(variant="whose run is lost", arrange=tasks_are_cut, ways=HERE)
async def durable_training_lost(scene: Scene) -> Any:
    async with block(scene, scene.folder) as trainer:
        first = await step_of(trainer)
        scene.service.corrupt(trainer.model_id)
        return first, await step_of(trainer)
