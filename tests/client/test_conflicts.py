"""Saves whose reply was lost are looked up; a name that is taken is the user's to know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from support.scripted import Call, ScriptedServer
from support.trained import Steps, broken, failure, trainer_of

from tinker_async import (
    AdamParams,
    ConflictError,
    ModelPoisonedError,
    ProtocolError,
    RequestFailedError,
    RetryPolicy,
    Session,
    TrainingClient,
)

QUICK = RetryPolicy(max_attempts=3, base_s=0.001)
LISTING = "training_runs/s1:train:0/checkpoints"

SAVES: dict[str, tuple[str, str, Callable[[TrainingClient], Any]]] = {
    "save_state": ("save_weights", "weights/a", lambda trainer: trainer.save_state("a")),
    "save_weights_for_sampler": (
        "save_weights_for_sampler",
        "sampler_weights/a",
        lambda trainer: trainer.save_weights_for_sampler("a"),
    ),
}
EVERY_SAVE = pytest.mark.parametrize("save", SAVES.values(), ids=SAVES)
Save = tuple[str, str, Callable[[TrainingClient], Any]]


def listed(*checkpoint_ids: str) -> Any:
    return {
        "checkpoints": [
            {
                "checkpoint_id": checkpoint_id,
                "checkpoint_type": "training",
                "time": "2026-11-22T00:00:00Z",
                "tinker_path": f"tinker://s1:train:0/{checkpoint_id}",
            }
            for checkpoint_id in checkpoint_ids
        ]
    }


def in_turn(*answers: Callable[[Call], Any]) -> Callable[[Call], Any]:
    left = list(answers)

    def answer(call: Call) -> Any:
        return left.pop(0)(call)

    return answer


@EVERY_SAVE
async def test_a_save_whose_reply_was_lost_gives_its_path(
    server: ScriptedServer, save: Save
) -> None:
    """The connection broke after the commit, then 409: one checkpoint, its path, no poison."""
    endpoint, checkpoint_id, start = save
    steps = Steps(server)
    server.on(endpoint, in_turn(broken, lambda _: failure(409, "exists")))
    server.on(LISTING, lambda _: listed("weights/other", checkpoint_id))
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", retry=QUICK) as session:
            trainer = await trainer_of(session)
            saved = await start(trainer)
            await trainer.optim_step(AdamParams())

    assert saved.path == f"tinker://s1:train:0/{checkpoint_id}"
    assert len(server.seen(endpoint)) == 2
    assert steps.seq_ids == [2]


@EVERY_SAVE
async def test_a_save_that_is_listed_a_little_later_is_waited_for(
    server: ScriptedServer, save: Save
) -> None:
    """The server has it, and is still busy with what came before."""
    endpoint, checkpoint_id, start = save
    Steps(server)
    server.on(endpoint, in_turn(broken, lambda _: failure(409, "exists")))
    server.on(LISTING, in_turn(lambda _: listed(), broken, lambda _: listed(checkpoint_id)))
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", retry=QUICK) as session:
            saved = await start(await trainer_of(session))

    assert saved.path == f"tinker://s1:train:0/{checkpoint_id}"


@EVERY_SAVE
async def test_a_lost_save_that_is_not_there_is_in_doubt(
    server: ScriptedServer, save: Save
) -> None:
    """Nothing is guessed: the model is poisoned by the save, which is named."""
    endpoint, _, start = save
    Steps(server)
    server.on(endpoint, in_turn(broken, lambda _: failure(409, "exists")))
    server.on(LISTING, lambda _: listed("weights/other"))
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", retry=QUICK) as session:
            trainer = await trainer_of(session)
            with pytest.raises(ConflictError) as caught:
                await start(trainer)
            with pytest.raises(ModelPoisonedError) as poisoned:
                trainer.optim_step(AdamParams())

    assert caught.value.delivery_in_doubt
    assert caught.value.operation == poisoned.value.lost_operation
    assert len(server.seen(LISTING)) == 3


@EVERY_SAVE
async def test_a_save_that_could_not_be_delivered_is_looked_up_once(
    server: ScriptedServer, save: Save
) -> None:
    """All attempts broke: if it is there all the same, the call has its path."""
    endpoint, checkpoint_id, start = save
    steps = Steps(server)
    server.on(endpoint, broken)
    server.on(LISTING, lambda _: listed(checkpoint_id))
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", retry=QUICK) as session:
            trainer = await trainer_of(session)
            saved = await start(trainer)
            await trainer.optim_step(AdamParams())

    assert saved.path == f"tinker://s1:train:0/{checkpoint_id}"
    assert (3, 1) == (len(server.seen(endpoint)), len(server.seen(LISTING)))
    assert steps.seq_ids == [2]


@EVERY_SAVE
async def test_a_save_that_is_nowhere_after_its_last_attempt_is_in_doubt(
    server: ScriptedServer, save: Save
) -> None:
    """One look at a server that answered nothing; then nothing is guessed."""
    endpoint, _, start = save
    Steps(server)
    server.on(endpoint, broken)
    server.on(LISTING, lambda _: listed())
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", retry=QUICK) as session:
            trainer = await trainer_of(session)
            with pytest.raises(ProtocolError):
                await start(trainer)
            with pytest.raises(ModelPoisonedError):
                trainer.optim_step(AdamParams())

    assert (3, 1) == (len(server.seen(endpoint)), len(server.seen(LISTING)))


@EVERY_SAVE
async def test_a_conflict_of_the_first_attempt_is_the_users(
    server: ScriptedServer, session: Session, save: Save
) -> None:
    """With a hint; it is not repeated, not looked up, and its number goes to the next one."""
    endpoint, _, start = save
    steps = Steps(server)
    server.on(endpoint, lambda _: failure(409, "a exists"))
    with anyio.fail_after(5):
        async with session:
            trainer = await trainer_of(session)
            with pytest.raises(ConflictError, match="another name") as caught:
                await start(trainer)
            await trainer.optim_step(AdamParams())

    assert not caught.value.delivery_in_doubt
    assert len(server.seen(endpoint)) == 1
    assert server.seen(LISTING) == []
    assert steps.seq_ids == [1]


@pytest.mark.parametrize(
    "result",
    [{"error": "Checkpoint a already exists", "category": "user"}, failure(409, "a is there")],
    ids=["error", "409"],
)
@EVERY_SAVE
async def test_a_result_that_says_it_exists_after_a_lost_reply_is_looked_up(
    server: ScriptedServer, save: Save, result: Any
) -> None:
    """The server ran the attempt that was lost, and then the one that it accepted."""
    endpoint, checkpoint_id, start = save
    steps = Steps(server)
    steps.results["r2"] = lambda _: result
    server.on(endpoint, in_turn(broken, lambda _: server.promise()))
    server.on(LISTING, lambda _: listed(checkpoint_id))
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", retry=QUICK) as session:
            trainer = await trainer_of(session)
            saved = await start(trainer)
            await trainer.optim_step(AdamParams())

    assert saved.path == f"tinker://s1:train:0/{checkpoint_id}"
    assert steps.seq_ids == [2]


@EVERY_SAVE
async def test_a_result_that_says_it_exists_is_the_users_otherwise(
    server: ScriptedServer, session: Session, save: Save
) -> None:
    """Nothing was lost on the way: RequestFailedError with a hint, and no look-up."""
    endpoint, _, start = save
    steps = Steps(server)
    steps.results["r2"] = lambda _: {"error": "a already exists", "category": "user"}
    server.on(endpoint, lambda _: server.promise())
    with anyio.fail_after(5):
        async with session:
            trainer = await trainer_of(session)
            with pytest.raises(RequestFailedError, match="another name"):
                await start(trainer)
            await trainer.optim_step(AdamParams())

    assert server.seen(LISTING) == []


async def test_a_name_that_this_model_had_used_is_no_proof(server: ScriptedServer) -> None:
    """The checkpoint that is listed may be the older one: its weights are not passed off as new."""
    steps = Steps(server)
    steps.results["r2"] = lambda _: {"path": "tinker://s1:train:0/weights/a"}
    server.on(
        "save_weights",
        in_turn(lambda _: server.promise(), broken, lambda _: failure(409, "exists")),
    )
    server.on(LISTING, lambda _: listed("weights/a"))
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", retry=QUICK) as session:
            trainer = await trainer_of(session)
            await trainer.save_state("a")
            with pytest.raises(ConflictError):
                await trainer.save_state("a")
            with pytest.raises(ModelPoisonedError):
                trainer.optim_step(AdamParams())

    assert server.seen(LISTING) == []
