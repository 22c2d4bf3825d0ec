"""Each public call, cancelled at each of its waits: nothing leaks, and all goes on."""

from __future__ import annotations

import inspect
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import anyio
import pytest
from cancellation.calls import ROWS, Row
from cancellation.cut import Cut, When
from cancellation.durable_calls import check_folder
from cancellation.rest_calls import OTHER_HOSTS
from cancellation.scene import Scene, durable_scene, scene, tasks_of_the_client, until
from support.listed import all_listed

import tinker_async
from tinker_async.testing import Ledger

MOST_WAITS = 300
LEFT = object()


class Before:
    """What the ledger had before a call, and the tasks that were there."""

    def __init__(self, scene: Scene) -> None:
        ledger = scene.service.ledger
        self.samples, self.entries = len(ledger.samples), len(ledger.entries)
        self.tasks = tasks_of_the_client()

    def check_cancels(self, ledger: Ledger, *, finished: bool) -> None:
        """Each sample that was given up was cancelled, and no other; twice only after a break."""
        since = ledger.entries[self.entries :]
        most = 2 if any(entry.outcome == "lost" for entry in since) else 1
        cancels = Counter(one.request_id for one in since if one.endpoint == "cancel_future")
        ours = {line.request_id: line for line in ledger.samples[self.samples :]}
        assert {*cancels} <= {*ours}
        for request_id, line in ours.items():
            assert cancels[request_id] <= most, line
            if finished:
                assert not cancels[request_id], line
            elif not line.answered and request_id not in lost_by(ledger):
                assert cancels[request_id] >= 1, line

    def check_tasks(self, *, finished: bool, keeps: tuple[str, ...]) -> None:
        """No task is left but those that the session keeps for others, and a new model's lane."""
        more = tasks_of_the_client() - self.tasks
        kept = {"_Collectors._run", "Lane.run"} if finished else {"_Collectors._run"}
        assert [] == [name for name in more if not name.endswith((*kept, *keeps))]


def lost_by(ledger: Ledger) -> set[str | None]:
    """Promises of which the server itself said that it does not know them."""
    return {entry.request_id for entry in ledger.of("retrieve_future") if entry.status == 410}


async def cut_call(scene: Scene, row: Row, cut: Cut) -> Any:
    """Make a call; return its value, or `LEFT` if it was cancelled."""
    scene.cut = cut
    with row.arrange(scene), cut.scope:
        return await cut.drive(row.make(scene))  # what is no cancellation leaves the scope
    return LEFT


@pytest.mark.parametrize(
    ("row", "way"), [pytest.param(row, way, id=f"{row}-{way}") for row in ROWS for way in row.ways]
)
async def test_a_call_can_be_cancelled_at_each_of_its_waits(
    row: Row, way: str, tmp_path: Path
) -> None:
    """What it held is free, the server knows of it once, and the next call is as if nothing was."""
    listed = all_listed() if row.polls_together else nullcontext()
    opening = (
        durable_scene(way, tmp_path)
        if row.durable
        else scene(way, polls_together=row.polls_together)
    )
    with listed, anyio.fail_after(60):
        async with opening as now:
            ledger = now.service.ledger
            now.folder = tmp_path / "first"
            right = await cut_call(now, row, Cut(0))
            await cut_call(now, row, Cut(0))
            await until(now.at_rest, now.session.statistics)
            whens: tuple[When, ...] = ("early", "late")
            left = 0
            for when in whens:
                for at in range(1, MOST_WAITS):
                    before = Before(now)
                    now.folder = tmp_path / f"{when}-{at}"
                    cut = Cut(at, when)
                    value = await cut_call(now, row, cut)
                    places = now.session.statistics().sampling.samples
                    assert "submit" in str(row) or (0, 0) == (places.in_use, places.waiting)
                    await until(now.at_rest, now.session.statistics)
                    await until(now.sockets_agree, lambda: ledger)
                    before.check_cancels(ledger, finished=value is not LEFT)
                    before.check_tasks(finished=value is not LEFT, keeps=row.keeps)
                    assert value is LEFT or value == right
                    assert right == await cut_call(now, row, Cut(0))
                    check_folder(now.folder)
                    left += value is LEFT
                    if not cut.happened:
                        break
                else:
                    pytest.fail("the call never ended")
    assert left >= 1
    for model_id in {one.model_id for one in ledger.executed}:
        assert ledger.gaps(model_id) == []
    numbers = Counter((one.model_id, one.seq_id or one.name) for one in ledger.executed)
    assert {*numbers.values()} == {1}


def calls_of(owner: type) -> set[str]:
    """Names of what is called with `await`, `async for` or `async with`, dunders included."""
    found = set()
    for name, member in inspect.getmembers(owner, callable):
        if name.startswith("_") and name not in {"__await__", "__anext__"}:
            continue
        returns = str(getattr(member, "__annotations__", {}).get("return", ""))
        if (
            inspect.iscoroutinefunction(member)
            or name.startswith("__")
            or returns.startswith(
                ("APIFuture", "Async", "AbstractAsync", "AbstractContextManager", "Awaitable")
            )
        ):
            found.add(f"{owner.__name__}.{name}")
    return found


def test_every_public_call_has_a_row() -> None:
    """A new coroutine, queued operation or iterator needs one."""
    public = {getattr(tinker_async, name) for name in tinker_async.__all__ if name[0].isupper()}
    there = set().union(*(calls_of(one) for one in public if inspect.isclass(one)))

    assert there - OTHER_HOSTS == {name for row in ROWS for name in row.names}
