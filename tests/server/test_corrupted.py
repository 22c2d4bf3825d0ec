"""Runs that cannot go on: when the server calls one corrupted, what it then answers, and who sees it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import anyio
import pytest
from server.desk import Desk, open_desk, step_body
from server.engine_double import HandEngine, QuickEngine
from server.hosted import Hosted, hosted, leave_gap
from server.saved import saved
from structlog.testing import capture_logs

import tinker_async as ta
from tinker_async.durable.ledger import Ledger
from tinker_async.errors import InvalidInputError
from tinker_async.local.engine import jobs
from tinker_async.local.engine.failures import EngineStoppedError, ModelLostError
from tinker_async.local.engine.jobs import Job
from tinker_async.local.server.limits import Limits

HALF_WAY = ModelLostError("an optimizer step failed half-way: why")
DATA = [ta.Datum(ta.ModelInput.from_ints([1, 2, 3]), {"target_tokens": [2, 3, 4]})]


async def corrupted(desk: Desk) -> set[str]:
    """The runs that the listing calls corrupted; each run by itself says the same."""
    runs = (await desk.get("/training_runs")).json["training_runs"]
    found = {run["training_run_id"] for run in runs if run["corrupted"]}
    for run in runs:
        run_id = run["training_run_id"]
        alone = (await desk.get(f"/training_runs/{run_id}")).json
        assert alone["corrupted"] == (run_id in found)
    return found


async def test_a_request_that_never_comes_corrupts_the_run(tmp_path: Path) -> None:
    """What waited for it fails, later requests as well, and nothing of them reaches the engine."""
    engine, limits = QuickEngine(), Limits(gap_s=0.05, housekeeping_s=0.01)
    async with open_desk(tmp_path, engine, limits) as desk:
        session_id = await desk.session()
        broken, fine = [await desk.model(session_id, number) for number in range(2)]
        await desk.result(await desk.step(broken, 1))
        held = await desk.step(broken, 3)
        assert await corrupted(desk) == set()
        told = await desk.result(held)
        assert told["category"] == "server"
        assert "is corrupted: request 2 of it never arrived; go on from a" in told["error"]
        assert await corrupted(desk) == {broken}

        for late in (2, 4):
            assert told == await desk.result(await desk.step(broken, late))
        save = {"model_id": broken, "path": "x", "seq_id": 5}
        assert told == await desk.result(await desk.ok("/save_weights", save))
        assert (await desk.ok("/get_info", {"model_id": broken}))["model_id"] == broken
        assert {"metrics": {"lr": 0.5}} == await desk.result(await desk.step(fine, 1))
        assert engine.kinds() == ["CreateModel", "CreateModel", "OptimStep", "OptimStep"]


async def test_a_step_that_fails_half_way_corrupts_its_run_alone(tmp_path: Path) -> None:
    """Its checkpoints load into a new model; the lost one can be unloaded, and its mark stays."""
    engine = QuickEngine()
    async with open_desk(tmp_path, engine, Limits(housekeeping_s=1000.0)) as desk:
        await saved(desk)
        [path] = desk.service.store.checkpoints
        broken = next(reversed(desk.service.store.runs))
        engine.answers[jobs.OptimStep] = HALF_WAY
        first = await desk.result(await desk.step(broken, 2))
        del engine.answers[jobs.OptimStep]
        assert {"error": f"ModelLostError: {HALF_WAY}", "category": "server"} == first
        assert "half-way: why" in (await desk.result(await desk.step(broken, 3)))["error"]
        assert await corrupted(desk) == {broken}

        load = {"session_id": await desk.session(), "model_seq_id": 0, "path": path}
        again = await desk.result(await desk.ok("/load_weights", {**load, "optimizer": True}))
        assert {"metrics": {"lr": 0.5}} == await desk.result(await desk.step(again["model_id"], 1))
        await desk.result(await desk.ok("/unload_model", {"model_id": broken}))
        with anyio.fail_after(5):
            assert jobs.DropModel(broken) == await engine.until(jobs.DropModel)
        assert (await desk.post("/optim_step", step_body(broken, 4))).status == 410
        assert await corrupted(desk) == {broken}
    async with open_desk(tmp_path, QuickEngine()) as desk:
        assert await corrupted(desk) == {broken}


@pytest.mark.parametrize("error", [InvalidInputError("bad", field="x"), RuntimeError("a fault")])
async def test_what_leaves_the_model_as_it_was_corrupts_nothing(
    tmp_path: Path, error: Exception
) -> None:
    """The user's mistake, and a fault of the machine."""
    engine = QuickEngine()
    async with open_desk(tmp_path, engine) as desk:
        model_id = await desk.model(await desk.session())
        engine.answers[jobs.OptimStep] = error
        assert "error" in await desk.result(await desk.step(model_id, 1))
        assert await corrupted(desk) == set()


async def test_an_engine_that_stops_corrupts_every_run_in_it(tmp_path: Path) -> None:
    """Those that do nothing as well; not the ones that had ended before."""
    engine = QuickEngine()
    async with open_desk(tmp_path, engine) as desk:
        session_id = await desk.session()
        busy, idle, gone = [await desk.model(session_id, number) for number in range(3)]
        await desk.result(await desk.ok("/unload_model", {"model_id": gone}))
        engine.answers[jobs.OptimStep] = EngineStoppedError("the engine was stopped")
        assert "EngineStoppedError" in (await desk.result(await desk.step(busy, 1)))["error"]
        assert await corrupted(desk) == {busy, idle}
        assert "the engine stopped" in (await desk.result(await desk.step(idle, 1)))["error"]


async def test_an_engine_that_stops_after_the_server_corrupts_nothing(tmp_path: Path) -> None:
    """It ends with a job under way, whose answer comes when nothing runs any more."""
    engine = HandEngine()
    with capture_logs() as logs:
        async with open_desk(tmp_path, engine) as desk:
            body = {"session_id": await desk.session(), "model_seq_id": 0, "base_model": "tiny"}
            promise = await desk.ok("/create_model", {**body, "lora_config": {"rank": 4}})
            with anyio.fail_after(5):
                await engine.until(jobs.CreateModel)
            engine.finish()
            await desk.step((await desk.result(promise))["model_id"], 1)
            with anyio.fail_after(5):
                await engine.until(jobs.OptimStep)
        while engine.waiting:
            engine.finish(EngineStoppedError("the engine was stopped"))
        await anyio.wait_all_tasks_blocked()
    assert [] == [entry for entry in logs if entry["event"] == "run_corrupted"]
    async with open_desk(tmp_path, QuickEngine()) as desk:
        assert await corrupted(desk) == set()


async def test_a_killed_server_leaves_corrupted_what_was_in_it(tmp_path: Path) -> None:
    """Not what had ended, was unloaded or is a copy; and an orderly stop corrupts nothing."""
    alive, image = tmp_path / "alive", tmp_path / "image"
    async with open_desk(alive, QuickEngine(), Limits(housekeeping_s=1000.0)) as desk:
        await saved(desk)
        [path] = desk.service.store.checkpoints
        killed = next(reversed(desk.service.store.runs))
        await desk.ok("/copy_weights", {"source_path": path, "destination_project_id": "p"})
        unloaded = await desk.model(await desk.session())
        await desk.result(await desk.ok("/unload_model", {"model_id": unloaded}))
        over = await desk.session()
        await desk.model(over)
        await desk.ok(f"/sessions/{over}/finish", {"reason": {"type": "errored"}})
        lost = await desk.session()
        broken = await desk.model(lost)
        desk.service.lose_model(broken, "the test says so")
        await desk.ok(f"/sessions/{lost}/finish", {"reason": {"type": "errored"}})
        shutil.copytree(alive, image)  # as a power cut leaves it
    both = {broken, killed}
    for data_dir, expected in ((image, both), (alive, {broken}), (image, both)):
        async with open_desk(data_dir, QuickEngine()) as desk:
            assert len((await desk.get("/training_runs")).json["training_runs"]) == 5
            assert await corrupted(desk) == expected


async def test_the_service_can_be_told_that_a_model_is_lost(tmp_path: Path) -> None:
    """As a test tells it; one that is not there is refused."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        model_id = await desk.model(await desk.session())
        desk.service.lose_model(model_id, "the test says so")
        assert await corrupted(desk) == {model_id}
        assert "the test says so" in (await desk.result(await desk.step(model_id, 1)))["error"]
        with pytest.raises(Exception, match="no model 'never'"):
            desk.service.lose_model("never", "x")


# What real clients see of it


class Losing(QuickEngine):
    """Loses the models whose optimizer steps have these numbers, counted over all."""

    def __init__(self, *numbers: int) -> None:
        super().__init__()
        self._numbers = numbers
        self.steps = 0

    def submit(self, job: Job, done: Any) -> None:
        if isinstance(job, jobs.OptimStep):
            self.steps += 1
            self.answers.pop(jobs.OptimStep, None)
            if self.steps in self._numbers:
                self.answers[jobs.OptimStep] = HALF_WAY
        super().submit(job, done)


async def test_the_client_is_told_and_finds_the_run_among_the_corrupted(tmp_path: Path) -> None:
    """The failed operation is the server's fault, and so is each one after it."""
    async with hosted(tmp_path, Losing(2)) as server, server.session() as session:
        trainer = await session.create_lora_training_client("tiny", rank=4)
        await trainer.optim_step(ta.AdamParams())
        assert not (await session.rest.get_training_run(trainer.model_id)).corrupted
        for says in ("half-way", "is corrupted"):
            with pytest.raises(ta.RequestFailedError, match=says) as caught:
                await trainer.optim_step(ta.AdamParams())
            assert caught.value.category == "server"
        runs = [run async for run in session.rest.list_training_runs() if run.corrupted]
        assert [trainer.model_id] == [run.training_run_id for run in runs]


async def durable(server: Hosted, folder: Path, steps: int) -> None:
    """Train through what happens."""
    async with (
        server.session() as session,
        session.durable_training(
            folder,
            base_model="tiny",
            rank=4,
            checkpoints=ta.CheckpointPolicy(save_every=2),
            recovery=ta.RecoveryPolicy(enabled=True, backoff_s=0.01),
        ) as trainer,
    ):
        for _ in trainer.steps(steps):
            await trainer.forward_backward(DATA, "cross_entropy")
            await trainer.optim_step(ta.AdamParams())


async def test_durable_training_goes_on_where_the_server_has_lost_the_model(tmp_path: Path) -> None:
    """Twice; its ledger names the cause, and the listing still has the runs that were lost."""
    async with hosted(tmp_path / "data", Losing(3, 7)) as server:
        await durable(server, tmp_path / "run", 6)
        async with server.session() as session:
            found = [run async for run in session.rest.list_training_runs()]
    recoveries = Ledger.read(tmp_path / "run").recoveries
    assert ["corrupted: RequestFailedError"] * 2 == [one.cause for one in recoveries]
    marks = {run.training_run_id: run.corrupted for run in found}
    assert [True, True] == [marks[one.from_run] for one in recoveries]
    assert marks[str(recoveries[-1].to_run)] is False


async def test_the_poll_of_durable_training_finds_a_run_that_is_lost_at_rest(
    tmp_path: Path,
) -> None:
    """No operation of it fails: only the mark tells."""
    limits = Limits(gap_s=0.05, housekeeping_s=0.01)
    async with (
        hosted(tmp_path / "data", QuickEngine(), limits) as server,
        server.session() as session,
        session.durable_training(
            tmp_path / "run",
            base_model="tiny",
            rank=4,
            recovery=ta.RecoveryPolicy(enabled=True, backoff_s=0.01, poll_interval_s=0.05),
        ) as trainer,
    ):
        await trainer.train_step(DATA, "cross_entropy", ta.AdamParams())
        lost = trainer.model_id
        await leave_gap(session, lost)
        with anyio.fail_after(10):
            while trainer.model_id == lost:  # noqa: ASYNC110  # nobody tells when it is replaced
                await anyio.sleep(0.01)
        await trainer.train_step(DATA, "cross_entropy", ta.AdamParams())
    [recovery] = Ledger.read(tmp_path / "run").recoveries
    assert recovery.cause == "corrupted: the server has marked the run as corrupted"
