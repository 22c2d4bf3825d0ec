"""A time of day that the test moves, and checkpoints to look at."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from server.desk import Desk


class HandClock:
    """A time of day that the test moves."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 2, 3, 30, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


async def saved(desk: Desk, name: str = "x", seq_id: int = 1, **more: Any) -> str:
    """Make a model if it is the first save; return where the checkpoint is for requests."""
    if seq_id == 1:
        await desk.model(await desk.session())
    run_id = next(reversed(desk.service.store.runs))
    body = {"model_id": run_id, "path": name, "seq_id": seq_id, **more}
    await desk.result(await desk.ok("/save_weights", body))
    return f"/training_runs/{run_id}/checkpoints/weights/{name}"


async def listed(desk: Desk) -> list[str]:
    found = (await desk.get("/checkpoints")).json["checkpoints"]
    return [checkpoint["checkpoint_id"] for checkpoint in found]
