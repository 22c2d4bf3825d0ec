"""Many kill -9 of the real server while it trains and saves: what was acknowledged is kept."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
from crash.lives import Life, Zygote

from tinker_async import AdamParams, Datum, ModelInput, Session, TinkerError, TrainingClient

LIVES = int(os.environ.get("CRASH_LIVES", "12"))
"""How many; `make soak` has fifty."""
SEED = 20261122
ROUNDS = 3
"""How many rounds of work the kills are spread over."""
KEPT = 3
"""How many checkpoints are looked at again in the next life."""
TOKENS = [40, 41, 42, 43, 44, 45]
DATUM = Datum(ModelInput.from_ints(TOKENS[:-1]), {"target_tokens": TOKENS[1:]})
ADAM = AdamParams(learning_rate=1e-2)


class Mark(msgspec.Struct, frozen=True):
    """What tells weights and optimizer apart: log-probs now, and after one more step."""

    now: bytes
    next: bytes | None


class Diary:
    """What the client knows: what was acknowledged, and what was begun and may have happened."""

    def __init__(self) -> None:
        self.saved: dict[str, Mark] = {}
        """By path; the last acknowledged save of it."""
        self.begun: dict[str, list[Mark]] = {}
        """Saves on that path that were not acknowledged, and come after the last that was."""
        self.deleting: set[str] = set()
        """Deletions that were begun."""
        self.requests: list[str] = []
        """Promises of lives that are over."""
        self.acknowledged = 0

    def begin(self, path: str, mark: Mark) -> None:
        self.begun.setdefault(path, []).append(mark)

    def done(self, path: str) -> None:
        self.saved[path] = self.begun.pop(path)[-1]
        self.acknowledged += 1

    def may_be(self, path: str) -> list[Mark]:
        """Return what a path that is listed may hold."""
        known = [self.saved[path]] if path in self.saved else []
        return known + self.begun.get(path, [])


async def logprobs(trainer: TrainingClient) -> bytes:
    output = await trainer.forward([DATUM], "cross_entropy")
    return bytes(output.loss_fn_outputs[0]["logprobs"].to_numpy().tobytes())


async def step(trainer: TrainingClient) -> None:
    await trainer.forward_backward([DATUM], "cross_entropy")
    await trainer.optim_step(ADAM)


async def work(session: Session, life: Life, diary: Diary) -> None:
    """Train and save until the server dies, or `ROUNDS` rounds."""
    trainer = await session.create_lora_training_client(life.models[0], rank=4, seed=1)
    prefix = f"tinker://{trainer.model_id}/weights/"
    await step(trainer)
    for number in range(ROUNDS):
        mark = Mark(await logprobs(trainer), None)
        for name, again in ((f"step-{number}", False), ("newest", True)):
            diary.begin(prefix + name, mark)
            saved = await trainer.save_state(name, overwrite=again)
            assert prefix + name == saved.path
            diary.done(saved.path)
        await step(trainer)
        after = Mark(mark.now, await logprobs(trainer))
        diary.saved |= {prefix + name: after for name in (f"step-{number}", "newest")}
        await trainer.save_weights_and_get_sampling_client()
        if number:
            old = f"{prefix}step-{number - 1}"
            diary.deleting.add(old)
            await session.rest.delete_checkpoint_from_tinker_path(old)
            diary.saved.pop(old)


async def look(life: Life, diary: Diary, data_dir: Path) -> None:
    """Compare what a new life has with what the client knows."""
    newest_first = await listing(life)
    listed = set(newest_first)
    # Before anything else is saved: no folder but those of the listed ones, nothing aside.
    folders = list((data_dir / "checkpoints").glob("*/*/*"))
    assert len(listed) == len(folders)
    assert [] == list((data_dir / "aside").iterdir()) + list((data_dir / "snapshots").iterdir())
    assert {*diary.saved} - diary.deleting <= listed <= {*diary.saved, *diary.begun}
    diary.saved = {path: mark for path, mark in diary.saved.items() if path in listed}
    async with life.session() as session:
        for number, path in enumerate(newest_first):
            trainer = await session.create_training_client_from_state_with_optimizer(path)
            found = await logprobs(trainer)
            marks = [mark for mark in diary.may_be(path) if mark.now == found]
            assert marks, f"{path} holds weights that were never saved there"
            if marks[0].next is not None:
                await step(trainer)
                assert marks[0].next == await logprobs(trainer)
            # What turned out to be there is known from now on; the rest is tidied away.
            diary.saved[path] = marks[0]
            if number >= KEPT:
                await session.rest.delete_checkpoint_from_tinker_path(path)
                del diary.saved[path]
    diary.begun.clear()
    diary.deleting.clear()
    for request_id in diary.requests[-3:]:
        body = {"request_id": request_id}
        status, _, _ = await in_thread(life, "POST", "/retrieve_future", body)
        assert status == 410


async def listing(life: Life) -> list[str]:
    status, _, body = await in_thread(life, "GET", "/checkpoints?limit=1000")
    assert status == 200
    return [row["tinker_path"] for row in msgspec.json.decode(body)["checkpoints"]]


async def in_thread(life: Life, *request: Any) -> Any:
    return await anyio.to_thread.run_sync(partial(life.send, *request))


async def promise(life: Life) -> str:
    """Leave a promise behind that the server will not keep: its predecessor never comes."""
    model_id = await anyio.to_thread.run_sync(life.model)
    body = {"model_id": model_id, "seq_id": 2, "adam_params": {"learning_rate": 0.1}}
    _, _, answer = await in_thread(life, "POST", "/optim_step", body)
    return str(msgspec.json.decode(answer)["request_id"])


async def be_killed(life: Life, diary: Diary) -> None:
    """Work until the server is dead; kill it between two requests if it has outlived the work."""
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            await anyio.to_thread.run_sync(life.ended)
            tasks.cancel_scope.cancel()  # the client would go on looking for its server

        tasks.start_soon(watch)
        with contextlib.suppress(TinkerError):
            async with life.session() as session:
                await work(session, life, diary)
            life.kill()
        await anyio.sleep_forever()


async def calibrate(forks: Zygote, data_dir: Path, among: str) -> int:
    """Return how many calls a whole run of `work` takes."""
    with forks.life(data_dir, kill_among=among) as life:
        life.arm()
        async with life.session() as session:
            await work(session, life, Diary())
        return life.counted()


async def many_kills(forks: Zygote, tmp_path: Path) -> None:
    dice = random.Random(SEED)
    calls = {
        among: await calibrate(forks, tmp_path / among, among) for among in ("calls", "storage")
    }
    diary, data_dir = Diary(), tmp_path / "data"
    for number in range(LIVES + 1):
        among = ("calls", "storage")[number % 2]
        at = dice.randint(1, calls[among])
        with anyio.fail_after(60), forks.life(data_dir, kill_among=among, kill_at=at) as life:
            await look(life, diary, data_dir)
            diary.requests.append(await promise(life))
            life.arm()
            await be_killed(life, diary)
            assert life.ended() == -signal.SIGKILL
    assert diary.acknowledged > LIVES


def test_kills_lose_nothing_that_was_acknowledged(forks: Zygote, tmp_path: Path) -> None:
    """Every listed checkpoint loads with the bits that were saved, optimizer included."""
    anyio.run(many_kills, forks, tmp_path)
