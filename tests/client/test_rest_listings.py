"""Listings: all items once, whatever the server's pages are like, and whatever is in them."""

from __future__ import annotations

import gc
import urllib.parse
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from support.scripted import Call, ScriptedServer

from tinker_async import (
    BillingUsageEvent,
    ResponseError,
    RestClient,
    SessionFailed,
    SessionFailedRequestReason,
    UnknownVariant,
)

BOUND_S = 20


@pytest.fixture
async def rest(server: ScriptedServer) -> AsyncGenerator[RestClient]:
    """A client of the scripted server."""
    with anyio.fail_after(BOUND_S):
        async with RestClient.connect(server.url, "tml-test") as client:
            yield client


def checkpoint(number: int, **other: Any) -> dict[str, Any]:
    return {
        "checkpoint_id": f"weights/{number}",
        "checkpoint_type": "training",
        "time": "2026-01-01T00:00:00Z",
        "tinker_path": f"tinker://r/weights/{number}",
        **other,
    }


class Pages:
    """Checkpoints as a server with pages gives them: newest first.

    Args:
        count: How many there are.
        most: Of one page, whatever was asked for.
        cursor: Whether pages say their place.
    """

    def __init__(self, count: int, *, most: int = 1000, cursor: bool = True) -> None:
        self.numbers = list(range(count, 0, -1))
        self._most = most
        self._cursor = cursor

    def __call__(self, call: Call) -> Any:
        query = dict(urllib.parse.parse_qsl(call.path.partition("?")[2]))
        limit, offset = min(int(query["limit"]), self._most), int(query["offset"])
        page: dict[str, Any] = {
            "checkpoints": [checkpoint(n) for n in self.numbers[offset : offset + limit]]
        }
        if self._cursor:
            total = len(self.numbers)
            page["cursor"] = {"offset": offset, "limit": limit, "total_count": total}
        return page


@pytest.mark.parametrize("cursor", [True, False])
@pytest.mark.parametrize("most", [1000, 40])
async def test_a_listing_has_everything_however_short_the_pages_are(
    server: ScriptedServer, rest: RestClient, most: int, cursor: bool
) -> None:
    """A server may give less at once than it was asked for; the end is where nothing follows."""
    server.on("checkpoints", Pages(205, most=most, cursor=cursor))

    listed = [
        int(one.checkpoint_id.partition("/")[2]) async for one in rest.list_user_checkpoints()
    ]
    assert [*range(205, 0, -1)] == listed


async def test_deleting_what_is_listed_leaves_nothing_out(
    server: ScriptedServer, rest: RestClient
) -> None:
    """What follows moves up, and pages are by place: an iteration that ignored it would skip."""
    pages = Pages(250)
    server.on("checkpoints", pages)
    listed = []
    async for one in rest.list_user_checkpoints():
        number = int(one.checkpoint_id.partition("/")[2])
        listed.append(number)
        pages.numbers.remove(number)

    assert [*range(250, 0, -1)] == listed


async def test_what_is_made_meanwhile_makes_nothing_come_twice(
    server: ScriptedServer, rest: RestClient
) -> None:
    """What follows moves down."""
    pages = Pages(150)
    server.on("checkpoints", pages)
    listed = []
    async for one in rest.list_user_checkpoints():
        listed.append(one.checkpoint_id)
        if len(listed) == 50:
            pages.numbers[:0] = [180, 170, 160]

    assert 150 == len(listed) == len({*listed})


@pytest.mark.parametrize("total", [None, 10**9])
async def test_a_server_without_offsets_does_not_go_on_for_ever(
    server: ScriptedServer, rest: RestClient, total: int | None
) -> None:
    """It gives the same page each time."""
    page: dict[str, Any] = {"checkpoints": [checkpoint(n) for n in range(3)]}
    if total is not None:
        page["cursor"] = {"offset": 0, "limit": 3, "total_count": total}
    server.on("checkpoints", lambda _: page)

    assert 3 == len([one async for one in rest.list_user_checkpoints()])
    assert len(server.seen("checkpoints")) <= 3


async def test_a_search_ends_when_its_cursor_stands_still(
    server: ScriptedServer, rest: RestClient
) -> None:
    """And each page's cursor is given back as it was, to the last digit."""
    place = {"last_created_at": "2026-01-01T00:00:00.123456789+02:00", "last_session_id": "s"}
    server.on("sessions/search", lambda _: {"sessions": [], "next_cursor": place})

    assert [] == [one async for one in rest.search_sessions()]
    bodies = [call.json for call in server.seen("sessions/search")]
    assert [None, place] == [body.get("cursor") for body in bodies]


async def test_a_listing_may_be_left_at_any_item(server: ScriptedServer, rest: RestClient) -> None:
    """No warning, also not on trio, and no page that nobody asked for."""
    server.on("checkpoints", Pages(300))
    async for one in rest.list_user_checkpoints():
        assert one.checkpoint_id
        break
    gc.collect()

    assert 1 == len(server.seen("checkpoints"))


async def test_bad_times_and_unknown_kinds_break_no_listing(
    server: ScriptedServer, rest: RestClient
) -> None:
    """They are None, or as the server wrote them; good ones are aware."""
    odd = [
        checkpoint(1, time="2026-01-01T00:00:00", checkpoint_type="quantum", public=None),
        checkpoint(2, time="yesterday", expires_at=1767225600),
        checkpoint(3, time=None, expires_at="2026-01-01T01:00:00+01:00", later="unknown"),
        checkpoint(4, time={"no": "time"}, expires_at=1e300),
    ]
    server.on("checkpoints", lambda _: {"checkpoints": odd})
    new_year = datetime(2026, 1, 1, tzinfo=UTC)
    listed = [one async for one in rest.list_user_checkpoints()]

    assert [new_year, None, None, None] == [one.time for one in listed]
    assert [None, new_year, new_year, None] == [one.expires_at for one in listed]
    assert ("quantum", False) == (listed[0].checkpoint_type, listed[0].public)


@pytest.mark.parametrize(("said", "means"), [({}, False), ({"corrupted": None}, False)])
async def test_corrupted_is_always_a_bool(
    server: ScriptedServer, rest: RestClient, said: dict[str, Any], means: bool
) -> None:
    """Old servers leave it out, or send null."""
    run = {
        "training_run_id": "r",
        "base_model": "b",
        "model_owner": "o",
        "is_lora": True,
        "last_request_time": "bad",
    }
    server.on("training_runs/r", lambda _: {**run, **said})
    assert means is (await rest.get_training_run("r")).corrupted

    server.on("training_runs/r", lambda _: {**run, "corrupted": True})
    assert (await rest.get_training_run("r")).corrupted is True

    server.on("training_runs/r", lambda _: {**run, "corrupted": "perhaps"})
    with pytest.raises(ResponseError, match="corrupted"):
        await rest.get_training_run("r")


async def test_unknown_members_of_unions_are_kept_as_they_are(
    server: ScriptedServer, rest: RestClient
) -> None:
    """Of a status, of a reason in a status, and of what was used."""
    summary = {
        "created_at": "2026-01-01T00:00:00Z",
        "owner": "o",
        "project_id": "p",
        "checkpoints_count": 0,
    }
    failed = {"type": "failed", "category": "user", "message": "m"}
    request = {"type": "request", "request_id": "r", "request_type": "Sample"}
    statuses: list[Any] = [
        {"type": "paused", "since": 3},
        {**failed, "reason": request},
        {**failed, "reason": {"type": "meteor"}},
        {"type": "client_finished", "reason": 7},
        "active",
        None,
    ]
    found = [
        {**summary, "session_id": str(number), "status": status}
        for number, status in enumerate(statuses)
    ]
    server.on("sessions/search", lambda _: {"sessions": found})
    reason = SessionFailedRequestReason(request_id="r", request_type="Sample")

    assert [
        UnknownVariant("paused", {"since": 3}),
        SessionFailed(category="user", message="m", reason=reason),
        SessionFailed(category="user", message="m", reason=UnknownVariant("meteor")),
        UnknownVariant("client_finished", {"reason": 7}),
        None,
        None,
    ] == [one.status async for one in rest.search_sessions()]

    bucket = {"bucket_start": "2026-01-01T00:00:00Z", "bucket_end": "2026-01-01T01:00:00Z"}
    used = {**bucket, "event_info": {"type": "gpu", "hours": 2}}
    server.on("billing/usage/events", lambda _: {"data": [used]})
    usage = await rest.get_billing_usage("2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z")
    [event] = usage.data
    assert isinstance(event, BillingUsageEvent)
    assert UnknownVariant("gpu", {"hours": 2}) == event.event_info
