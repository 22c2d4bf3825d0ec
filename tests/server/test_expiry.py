"""Checkpoints that expire, are published, changed and deleted, also all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from server.desk import open_desk, until
from server.engine_double import QuickEngine
from server.saved import HandClock, listed, saved

from tinker_async.local.server.limits import Limits


async def test_a_checkpoint_is_gone_at_the_stated_time(tmp_path: Path) -> None:
    """Not a second earlier and not when the sweep comes; its files go with the sweep."""
    clock = HandClock()
    limits = Limits(housekeeping_s=0.01)
    async with open_desk(tmp_path, QuickEngine(), limits, clock) as desk:
        one = await saved(desk, ttl_seconds=3600)
        keeps = await saved(desk, "keeps", 2)
        run_id = next(reversed(desk.service.store.runs))
        [row] = [r for r in desk.service.store.checkpoints.values() if r.name == "x"]
        clock.advance(3599)
        assert await listed(desk) == ["weights/keeps", "weights/x"]
        clock.advance(1)
        assert await listed(desk) == ["weights/keeps"]
        info = {"tinker_path": row.path}
        assert (await desk.post("/weights_info", info)).status == 404
        assert (await desk.send("PUT", one + "/ttl", {"ttl_seconds": None})).status == 404
        assert (await desk.send("DELETE", one)).status == 404
        run = (await desk.get(f"/training_runs/{run_id}")).json
        assert run["last_checkpoint"]["checkpoint_id"] == "weights/keeps"
        await until(lambda: not (tmp_path / row.folder).exists())
        assert (await desk.send("DELETE", keeps)).status == 204
        day = (await desk.get(f"/audit?day={clock.time.date()}")).json["entries"]
        assert [entry["event"] for entry in day][-2:] == [
            "checkpoint_expired",
            "checkpoint_deleted",
        ]


async def test_the_time_of_an_expired_name_is_free_again(tmp_path: Path) -> None:
    """Saving under it does not need `overwrite`."""
    clock = HandClock()
    limits = Limits(housekeeping_s=1000.0)
    async with open_desk(tmp_path, QuickEngine(), limits, clock) as desk:
        await saved(desk, ttl_seconds=3600)
        clock.advance(4000)
        await saved(desk, "x", 2)
        assert await listed(desk) == ["weights/x"]


@pytest.mark.parametrize("seconds", [0, -1, 3599, 315_360_001, 10**30])
async def test_a_time_to_live_out_of_range_is_refused(tmp_path: Path, seconds: int) -> None:
    """When set and when saving, and the number of the save is not waited for."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        one = await saved(desk)
        reply = await desk.send("PUT", one + "/ttl", {"ttl_seconds": seconds})
        assert reply.status == 422
        assert str(len(reply.body)) == reply.headers["content-length"]
        run_id = next(reversed(desk.service.store.runs))
        body = {"model_id": run_id, "path": "y", "seq_id": 2, "ttl_seconds": seconds}
        assert (await desk.post("/save_weights", body)).status == 422
        await saved(desk, "z", 3)
        assert await listed(desk) == ["weights/z", "weights/x"]


async def test_a_refused_number_may_come_again(tmp_path: Path) -> None:
    """Until a later one has come."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        await saved(desk)
        run_id = next(reversed(desk.service.store.runs))
        wrong = {"model_id": run_id, "path": "../y", "seq_id": 2}
        assert (await desk.post("/save_weights", wrong)).status == 400
        external = {"model_id": run_id, "path": "y", "seq_id": 2}
        sealed = {**external, "age_encryption_recipients": ["age1x"]}
        assert (await desk.post("/save_weights_external", sealed)).status == 400
        saved_now = await desk.result(await desk.ok("/save_weights_external", external))
        assert saved_now == {
            "path": f"tinker://{run_id}/external_weights/y",
            "size_bytes": 5,
            "type": "save_weights_external",
        }
        await saved(desk, "z", 3)
        assert (await desk.post("/save_weights", wrong)).status == 400


async def test_publishing_what_is_public_is_a_conflict(tmp_path: Path) -> None:
    """Of many at once exactly one succeeds; the same when it is taken back."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        one = await saved(desk)
        for method in ("POST", "DELETE"):
            statuses: list[int] = []

            async def ask(method: str, statuses: list[int]) -> None:
                statuses.append((await desk.send(method, one + "/publish")).status)

            async with anyio.create_task_group() as tasks:
                for _ in range(8):
                    tasks.start_soon(ask, method, statuses)
            assert sorted(statuses) == [204] + [409] * 7
        assert "private already" in (await desk.send("DELETE", one + "/publish")).json["detail"]


async def test_changes_do_not_bring_a_deleted_checkpoint_back(tmp_path: Path) -> None:
    """Deletes, changes and overwriting at once: one deletion counts, nothing is half there."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        for round_ in range(5):
            one = await saved(desk, "x", round_ + 1)
            statuses: list[int] = []

            async def ask(method: str, path: str, body: Any, statuses: list[int]) -> None:
                statuses.append((await desk.send(method, path, body)).status)

            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(ask, "DELETE", one, None, statuses)
                    tasks.start_soon(ask, "PUT", one + "/ttl", {"ttl_seconds": 3600}, [])
                    tasks.start_soon(ask, "POST", one + "/publish", None, [])
            assert sorted(statuses) == [204, 404, 404]
            assert await listed(desk) == []
        assert list((tmp_path / "checkpoints").glob("*/*/*")) == []


async def test_an_unloaded_model_is_gone_and_its_checkpoints_stay(tmp_path: Path) -> None:
    """Its run is still described."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        await saved(desk)
        run_id = next(reversed(desk.service.store.runs))
        done = await desk.result(await desk.ok("/unload_model", {"model_id": run_id}))
        assert done == {"model_id": run_id, "type": "unload_model"}
        body = {"model_id": run_id, "path": "y", "seq_id": 2}
        assert (await desk.post("/save_weights", body)).status == 410
        assert (await desk.get(f"/training_runs/{run_id}")).status == 200
        assert await listed(desk) == ["weights/x"]
