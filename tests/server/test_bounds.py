"""What is bounded: what waits, what is held, what a session may leave behind."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio.testing
from server.desk import open_desk, sample_body, sampler, step_body, until
from server.engine_double import HandEngine, QuickEngine

from tinker_async.local.engine import jobs
from tinker_async.local.server.limits import Limits


async def test_bytes_that_wait_are_counted_over_all_queues(tmp_path: Path) -> None:
    """Training and samples share a budget; 429 says when to come again, and it drains."""
    engine = HandEngine()
    async with open_desk(tmp_path, engine, Limits(waiting_bytes=2000)) as desk:
        session_id = await desk.session()
        sampler_id = await sampler(desk, session_id, 0)
        long = sample_body(sampler_id, 0, sampling_params={"stop": ["x" * 1500]})
        first = await desk.ok("/asample", long)
        again = await desk.ok("/asample", long)
        assert first == again
        body = {"session_id": session_id, "model_seq_id": 0, "base_model": "tiny"}
        await desk.ok("/create_model", body)
        save = {"model_id": f"{session_id}:train:0", "path": "y" * 200, "seq_id": 1}
        for path, more in (
            ("/asample", {**long, "seq_id": 1}),
            ("/save_weights", {**save, "user_metadata": {"x": "y" * 500}}),
        ):
            refused = await desk.post(path, more)
            assert (429, "1") == (refused.status, refused.headers["retry-after"])

        engine.finish(RuntimeError("over"))  # the sample
        await desk.result(first)
        await desk.ok("/save_weights", save)
        await desk.ok(f"/sessions/{session_id}/finish", {"reason": {"type": "success"}})
        while engine.waiting:
            engine.finish()
        await until(lambda: desk.service.statistics()["waiting_bytes"] == 0)


async def test_held_polls_are_bounded(tmp_path: Path) -> None:
    """One too many is 429; results that are there are given all the same."""
    engine = HandEngine()
    async with open_desk(tmp_path, engine, Limits(held_polls=2)) as desk:
        session_id = await desk.session()
        body = {"session_id": session_id, "model_seq_id": 0, "base_model": "tiny"}
        promise = await desk.ok("/create_model", body)
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(desk.result, promise)
                tasks.start_soon(desk.result, promise)
                await anyio.wait_all_tasks_blocked()
                refused = await desk.post("/retrieve_future", {"request_id": promise["request_id"]})
                assert (429, "1") == (refused.status, refused.headers["retry-after"])
                engine.finish()
        assert (await desk.result(promise))["type"] == "create_model"
        assert desk.service.statistics()["held_polls"] == 0


async def leave_much_behind(data_dir: Path, clock: trio.testing.MockClock) -> None:
    """A client makes everything there is and is never heard of again."""
    engine = QuickEngine()
    async with open_desk(data_dir, engine) as desk:
        session_id = await desk.session()
        model_id = await desk.model(session_id)
        save = {"model_id": model_id, "sampling_session_seq_id": 0, "seq_id": 1}
        await desk.result(await desk.ok("/save_weights_for_sampler", save))
        save = {"model_id": model_id, "path": "kept", "seq_id": 2}
        path = (await desk.result(await desk.ok("/save_weights", save)))["path"]
        await sampler(desk, session_id, 1, model_path=path)
        for number in (0, 1):
            body = sample_body(f"{session_id}:sample:{number}", 0)
            await desk.result(await desk.ok("/asample", body))
        await desk.ok("/asample", sample_body(f"{session_id}:sample:1", 1))  # never fetched
        late = await desk.step(model_id, 9)  # its predecessors never come

        clock.jump(299.0)
        beat = {"session_id": session_id}
        await desk.ok("/session_heartbeat", beat)
        clock.jump(299.0)
        await anyio.wait_all_tasks_blocked()
        assert desk.service.statistics()["sessions"] == 1
        for _ in range(100_000):  # the disk is slow, and the clock is ours
            if desk.service.store.sessions[session_id].ended is not None:
                break
            clock.jump(1.0)
            await anyio.lowlevel.checkpoint()
        assert [] == list((data_dir / "snapshots").iterdir())
        assert (await desk.post("/session_heartbeat", beat)).status == 410
        assert "no heartbeat" in (await desk.result(late))["error"]
        left = desk.service.statistics()
        assert left.pop("promises") == 1  # why the last one failed
        assert left.pop("delivered_bytes") < 5000
        assert set(left.values()) == {0}, left
        assert jobs.DropModel(model_id) in engine.submitted
        drops = [job for job in engine.submitted if isinstance(job, jobs.DropSnapshot)]
        assert len(drops) == 2
        assert path in desk.service.store.checkpoints


def test_a_client_that_is_silent_for_300_s_leaves_nothing_in_memory(tmp_path: Path) -> None:
    """Neither models nor samplers, snapshots, results nor memories of requests."""
    clock = trio.testing.MockClock()
    options = {"clock": clock}
    anyio.run(leave_much_behind, tmp_path, clock, backend="trio", backend_options=options)


async def test_a_snapshot_that_is_taken_while_its_session_ends_is_freed(tmp_path: Path) -> None:
    """Nobody else would."""
    engine = HandEngine()
    async with open_desk(tmp_path, engine) as desk:
        session_id = await desk.session()
        body = {"session_id": session_id, "model_seq_id": 0, "base_model": "tiny"}
        await desk.ok("/create_model", body)
        await engine.until(jobs.CreateModel)
        engine.finish()
        save: dict[str, Any] = {"model_id": f"{session_id}:train:0", "seq_id": 1}
        await desk.ok("/save_weights_for_sampler", {**save, "sampling_session_seq_id": 0})
        with anyio.fail_after(5):
            await engine.until(jobs.SaveSampler)
            await desk.ok(f"/sessions/{session_id}/finish", {"reason": {"type": "success"}})
            engine.finish()
            await engine.until(jobs.TakeSnapshot)
            engine.finish()
            await engine.until(jobs.DropSnapshot)
        await until(lambda: not list((tmp_path / "snapshots").iterdir()))
        assert (0, 0) == (
            desk.service.statistics()["samplers"],
            desk.service.statistics()["snapshots"],
        )


@pytest.mark.parametrize("kept", ["another", "none"])
async def test_a_named_snapshot_is_freed_with_its_last_sampler(tmp_path: Path, kept: str) -> None:
    """Other sessions' samplers on the same checkpoint go on."""
    engine = QuickEngine()
    async with open_desk(tmp_path, engine) as desk:
        session_id = await desk.session()
        save = {"model_id": await desk.model(session_id), "path": "x", "seq_id": 1}
        path = (await desk.result(await desk.ok("/save_weights", save)))["path"]
        other = await desk.session()
        if kept == "another":
            await sampler(desk, other, 0, model_path=path)
        mine = await sampler(desk, session_id, 0, model_path=path)
        await desk.result(await desk.ok("/asample", sample_body(mine, 0)))
        await desk.ok(f"/sessions/{session_id}/finish", {"reason": {"type": "success"}})
        assert ("DropSnapshot" in engine.kinds()) == (kept == "none")
        assert desk.service.statistics()["samplers"] == (kept == "another")


async def test_numbers_and_steps_beyond_64_bits_are_refused(tmp_path: Path) -> None:
    """They would become file names and pages that nothing can hold."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        session_id = await desk.session()
        body = {"session_id": session_id, "model_seq_id": 10**300, "base_model": "tiny"}
        assert (await desk.post("/create_model", body)).status == 422
        body = {"session_id": session_id, "sampling_session_seq_id": 2**63, "base_model": "tiny"}
        assert (await desk.post("/create_sampling_session", body)).status == 422
        assert (await desk.get("/checkpoints?limit=" + "9" * 5000)).status == 422
        assert (await desk.post("/optim_step", step_body("no", 1))).status == 404


def test_the_limits_in_the_reference_are_the_servers() -> None:
    """Each number of the table."""
    text = (Path(__file__).parents[2] / "docs" / "reference" / "engine.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\d+)(?: ([MG])iB)? ", text, re.MULTILINE)
    units = {"": 1, "M": 1024**2, "G": 1024**3}
    limits = Limits()
    said = {name: int(number) * units[unit] for name, number, unit in rows}
    assert said == {name: getattr(limits, name) for name in said}
    assert len(said) == 6
