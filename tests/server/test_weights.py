"""Checkpoints and snapshots: named, ephemeral, overwritten, restored, expired."""

from __future__ import annotations

from pathlib import Path

import pytest
from server.desk import (
    open_desk,
    sample_body,
    sampler,
    step_body,
    until,
)
from server.engine_double import QuickEngine

from tinker_async.errors import ConfigError
from tinker_async.local.engine import jobs
from tinker_async.local.server.limits import Limits


async def test_a_named_checkpoint_is_listed_loaded_and_deleted(tmp_path: Path) -> None:
    """For training and for sampling; the paths are the official ones."""
    engine = QuickEngine()
    async with open_desk(tmp_path, engine) as desk:
        session_id = await desk.session()
        model_id = await desk.model(session_id)
        save = {"model_id": model_id, "path": "a.b", "seq_id": 1, "ttl_seconds": 3600}
        training = await desk.result(await desk.ok("/save_weights", save))
        save = {"model_id": model_id, "path": "a.b", "seq_id": 2, "kind": "snapshot"}
        sampling = await desk.result(await desk.ok("/save_weights_for_sampler", save))
        assert f"tinker://{model_id}/weights/a.b" == training["path"]
        assert f"tinker://{model_id}/sampler_weights/a.b" == sampling["path"]

        listed = (await desk.get(f"/training_runs/{model_id}/checkpoints")).json["checkpoints"]
        assert [c["checkpoint_id"] for c in listed] == ["sampler_weights/a.b", "weights/a.b"]
        assert [c["size_bytes"] for c in listed] == [5, 5]
        assert listed[1]["expires_at"] is not None
        run = (await desk.get(f"/training_runs/{model_id}")).json
        assert run["last_checkpoint"]["checkpoint_id"] == "weights/a.b"

        load = {"session_id": session_id, "model_seq_id": 1, "path": training["path"]}
        loaded = await desk.result(await desk.ok("/load_weights", {**load, "optimizer": False}))
        assert f"{session_id}:train:1" == loaded["model_id"]
        sampler_id = await sampler(desk, session_id, model_path=sampling["path"])
        await desk.result(await desk.ok("/asample", sample_body(sampler_id, 0)))
        loads = [job for job in engine.submitted if isinstance(job, jobs.LoadModel)]
        assert [job.optimizer for job in loads] == [False]
        assert (loads[0].folder / "weights.bin").read_bytes() == b"12345"
        assert engine.kinds()[-2:] == ["LoadSnapshot", "Sample"]

        one = f"/training_runs/{model_id}/checkpoints/weights/a.b"
        assert (await desk.send("DELETE", one)).status == 204
        assert (await desk.send("DELETE", one)).status == 404
        assert not loads[0].folder.exists()
        left = (await desk.get("/checkpoints")).json
        assert (
            [c["checkpoint_id"] for c in left["checkpoints"]],
            left["cursor"]["total_count"],
        ) == (["sampler_weights/a.b"], 1)


async def test_an_existing_name_is_overwritten_only_on_request(tmp_path: Path) -> None:
    """Otherwise the promise fails: a 409 would be repeated for minutes."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        model_id = await desk.model(await desk.session())
        save = {"model_id": model_id, "path": "ck"}
        promise = await desk.ok("/save_weights", {**save, "seq_id": 1})
        path = (await desk.result(promise))["path"]
        again = await desk.ok("/save_weights", {**save, "seq_id": 1})
        assert promise == again
        refused = await desk.result(await desk.ok("/save_weights", {**save, "seq_id": 2}))
        assert refused["category"] == "user"
        before = tmp_path / desk.service.store.checkpoints[path].folder
        over = {**save, "seq_id": 3, "overwrite": True, "user_metadata": {"step": "9"}}
        assert path == (await desk.result(await desk.ok("/save_weights", over)))["path"]
        row = desk.service.store.checkpoints[path]
        assert row.user_metadata == {"step": "9"}
        assert (tmp_path / row.folder / "weights.bin").exists()
        assert not before.exists()


async def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    """No row, no folder, not even aside."""
    engine = QuickEngine()
    engine.answers[jobs.SaveTraining] = OSError("disk full")
    async with open_desk(tmp_path, engine) as desk:
        model_id = await desk.model(await desk.session())
        body = {"model_id": model_id, "path": "ck", "seq_id": 1}
        failed = await desk.result(await desk.ok("/save_weights", body))
        assert failed == {"error": "OSError: disk full", "category": "server"}
        assert (await desk.get("/checkpoints")).json["checkpoints"] == []
    assert list((tmp_path / "aside").iterdir()) == []
    assert not (tmp_path / "checkpoints").exists()


async def test_an_ephemeral_sampler_keeps_the_weights_of_its_moment(tmp_path: Path) -> None:
    """It has an id and no path, counts with the other samplers, and takes its turn."""
    engine = QuickEngine()
    async with open_desk(tmp_path, engine) as desk:
        session_id = await desk.session()
        model_id = await desk.model(session_id)
        save = {"model_id": model_id, "sampling_session_seq_id": 0, "seq_id": 2}
        promise = await desk.ok("/save_weights_for_sampler", save)
        await desk.step(model_id, 1)
        result = await desk.result(promise)
        assert f"{session_id}:sample:0" == result["sampling_session_id"]
        assert result["path"] is None
        assert engine.kinds()[1:] == ["OptimStep", "SaveSampler", "TakeSnapshot"]
        await desk.result(await desk.ok("/asample", sample_body(result["sampling_session_id"], 0)))
        taken = {"session_id": session_id, "sampling_session_seq_id": 0, "base_model": "tiny"}
        assert (await desk.post("/create_sampling_session", taken)).status == 409


async def test_snapshots_leave_memory_and_come_back(tmp_path: Path) -> None:
    """The least recently used first, never one that samples run on."""
    engine = QuickEngine()
    limits = Limits(resident_snapshots=1, ephemeral_snapshots=2)
    async with open_desk(tmp_path, engine, limits) as desk:
        session_id = await desk.session()
        model_id = await desk.model(session_id)
        samplers: list[str] = []
        for number in range(3):
            save = {"model_id": model_id, "sampling_session_seq_id": number, "seq_id": number + 1}
            result = await desk.result(await desk.ok("/save_weights_for_sampler", save))
            samplers.append(result["sampling_session_id"])
        assert desk.service.snapshots.statistics() == {"snapshots": 2, "resident": 1}

        await desk.result(await desk.ok("/asample", sample_body(samplers[1], 0)))
        assert engine.kinds()[-3:] == ["LoadSnapshot", "DropSnapshot", "Sample"]
        gone = await desk.result(await desk.ok("/asample", sample_body(samplers[0], 0)))
        assert "too many newer samplers" in gone["error"]

        await desk.ok(f"/sessions/{session_id}/finish", {"reason": {"type": "success"}})
        assert list((tmp_path / "snapshots").iterdir()) == []


async def test_a_restart_keeps_checkpoints_and_forgets_models(tmp_path: Path) -> None:
    """Old models, samplers and promises are 410; checkpoints load as before."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        session_id = await desk.session()
        model_id = await desk.model(session_id)
        promise = await desk.ok("/save_weights", {"model_id": model_id, "path": "x", "seq_id": 1})
        path = (await desk.result(promise))["path"]

    async with open_desk(tmp_path, QuickEngine()) as desk:
        wanted = {"request_id": promise["request_id"]}
        assert (await desk.post("/retrieve_future", wanted)).status == 410
        assert (await desk.post("/optim_step", step_body(model_id, 2))).status == 410
        assert (await desk.post("/session_heartbeat", {"session_id": session_id})).status == 410
        sample = sample_body(f"{session_id}:sample:0", 0)
        assert (await desk.post("/asample", sample)).status == 410

        info = await desk.ok("/weights_info", {"tinker_path": path})
        assert (info["base_model"], info["lora_rank"], info["is_lora"]) == ("tiny", 4, True)
        new = await desk.session()
        load = {"session_id": new, "model_seq_id": 0, "path": path, "optimizer": True}
        assert path == (await desk.result(await desk.ok("/load_weights", load)))["path"]
        await sampler(desk, new, 0, model_path=path)
        assert (await desk.get("/training_runs")).json["cursor"]["total_count"] == 2


async def test_publishing_and_expiry_are_kept(tmp_path: Path) -> None:
    """An expired checkpoint goes by itself."""
    async with open_desk(tmp_path, QuickEngine(), Limits(housekeeping_s=0.01)) as desk:
        model_id = await desk.model(await desk.session())
        body = {"model_id": model_id, "path": "x", "seq_id": 1}
        path = (await desk.result(await desk.ok("/save_weights", body)))["path"]
        one = f"/training_runs/{model_id}/checkpoints/weights/x"
        assert (await desk.send("POST", one + "/publish")).status == 204
        assert desk.service.store.checkpoints[path].public
        assert (await desk.send("PUT", one + "/ttl", {"ttl_seconds": 3600})).status == 204
        row = desk.service.store.checkpoints[path]
        assert row.expires_at is not None
        assert (await desk.send("DELETE", one + "/publish")).status == 204
        assert (await desk.send("PUT", one + "/ttl", {"ttl_seconds": None})).status == 204
        assert desk.service.store.checkpoints[path].expires_at is None

        row.expires_at = row.created_at
        await desk.service.store.put_checkpoint(row)
        await until(lambda: not (tmp_path / row.folder).exists())
        assert desk.service.store.checkpoints == {}


async def test_a_data_directory_of_something_else_is_told(tmp_path: Path) -> None:
    """As a wrong setting, not as a traceback."""
    (tmp_path / "engine.sqlite3").write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match="cannot be used"):
        async with open_desk(tmp_path, QuickEngine()):
            pytest.fail("it must not open")
