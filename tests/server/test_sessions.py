"""Sessions: their life, their end, and what a silent client leaves."""

from __future__ import annotations

from pathlib import Path

import anyio
from server.desk import (
    open_desk,
    sample_body,
    step_body,
    until,
)
from server.engine_double import HandEngine, QuickEngine

from tinker_async.local.engine import jobs
from tinker_async.local.server.limits import Limits


async def test_a_session_lives_until_it_is_finished(tmp_path: Path) -> None:
    """Then heartbeats are 410, and so is all that belonged to it."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        session_id = await desk.session()
        model_id = await desk.model(session_id)
        beat = {"session_id": session_id}
        assert (await desk.ok("/session_heartbeat", beat))["type"] == "session_heartbeat"

        reason = {"reason": {"type": "errored"}, "detail": None}
        await desk.ok(f"/sessions/{session_id}/finish", reason)
        await desk.ok(f"/sessions/{session_id}/finish", {"reason": {"type": "success"}})

        assert (await desk.post("/session_heartbeat", beat)).status == 410
        assert (await desk.post("/session_heartbeat", {"session_id": "s-no"})).status == 410
        assert (await desk.post("/optim_step", step_body(model_id, 1))).status == 410
        assert desk.service.store.sessions[session_id].ended == "errored"


async def test_a_silent_session_is_ended_and_its_models_are_freed(tmp_path: Path) -> None:
    """Without a heartbeat for the limit; its pending promises fail."""
    engine = HandEngine()
    limits = Limits(silence_s=0.0, housekeeping_s=0.01)
    async with open_desk(tmp_path, engine, limits) as desk:
        session_id = await desk.session()
        await until(lambda: desk.service.store.sessions[session_id].ended is not None)
        assert desk.service.store.sessions[session_id].ended == "no heartbeat"
        assert (await desk.post("/session_heartbeat", {"session_id": session_id})).status == 410


async def test_the_end_of_a_session_fails_what_is_pending(tmp_path: Path) -> None:
    """Nobody polls for ever; the models are dropped in the engine, samples are cancelled."""
    engine = HandEngine()
    async with open_desk(tmp_path, engine) as desk:
        session_id = await desk.session()
        body = {"session_id": session_id, "model_seq_id": 0, "base_model": "tiny"}
        promise = await desk.ok("/create_model", body)
        await desk.ok(
            "/create_sampling_session",
            {"session_id": session_id, "sampling_session_seq_id": 0, "base_model": "tiny"},
        )
        sample = await desk.ok("/asample", sample_body(f"{session_id}:sample:0", 0))
        await anyio.wait_all_tasks_blocked()
        await desk.ok(f"/sessions/{session_id}/finish", {"reason": {"type": "success"}})

        assert (await desk.result(promise))["category"] == "unknown"
        assert "is over" in (await desk.result(sample))["error"]
        assert sample["request_id"] in engine.cancelled
        while engine.waiting:
            engine.finish()
        with anyio.fail_after(5):
            assert jobs.DropModel(f"{session_id}:train:0") == await engine.until(jobs.DropModel)
