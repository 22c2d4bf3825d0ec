"""Records of sessions, copies and usage: what they tell, what they refuse, and after a restart."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from server.desk import KEY, Desk, forward_backward_body, open_desk, sample_body, sampler
from server.engine_double import QuickEngine
from server.saved import HandClock, listed, saved

from tinker_async.local.server.limits import Limits
from tinker_async.local.server.store import Store


async def named(desk: Desk, name: str, **more: Any) -> str:
    body = {"tags": [], "user_metadata": {}, "sdk_version": "0", "display_name": name, **more}
    return str((await desk.ok("/create_session", body))["session_id"])


async def found(desk: Desk, **query: Any) -> list[str]:
    page = await desk.ok("/sessions/search", query)
    return [session["display_name"] for session in page["sessions"]]


async def test_sessions_are_found_by_each_property(tmp_path: Path) -> None:
    """Newest first; an id or a name, and all the rest."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        first = await named(desk, "Night run", user_metadata={"a": 1, "b": "x"})
        second = await named(desk, "day RUN", project_id="p")
        await desk.ok(f"/sessions/{first}/finish", {"reason": {"type": "interrupted"}})
        assert await found(desk) == ["day RUN", "Night run"]
        assert await found(desk, display_name="run  night") == ["Night run"]
        assert await found(desk, display_name="night", session_id=second) == [
            "day RUN",
            "Night run",
        ]
        assert await found(desk, user_metadata={"a": "1", "b": "x"}) == ["Night run"]
        assert await found(desk, user_metadata={"a": "1", "b": "y"}) == []
        assert await found(desk, project_ids=["p", "q"]) == ["day RUN"]
        assert await found(desk, project_ids=["default"]) == ["Night run"]
        assert await found(desk, statuses=[{"type": "active"}]) == ["day RUN"]
        ended = [{"type": "failed"}, {"type": "client_finished", "reasons": ["interrupted"]}]
        assert await found(desk, statuses=ended) == ["Night run"]
        assert await found(desk, owner={"type": "accessible"}, limit=1) == ["day RUN"]
        assert await found(desk, owner={"type": "user", "owner_urns": ["tml:user:local"]})
        assert await found(desk, owner={"type": "user", "owner_urns": ["tml:user:x"]}) == []


async def test_a_search_is_paged_by_its_cursor(tmp_path: Path) -> None:
    """Every session once, also with times that are equal."""
    async with open_desk(tmp_path, QuickEngine(), clock=HandClock()) as desk:
        made = {await named(desk, str(number)) for number in range(7)}
        seen: list[str] = []
        query: dict[str, Any] = {"limit": 3}
        while True:
            page = await desk.ok("/sessions/search", query)
            seen += [session["session_id"] for session in page["sessions"]]
            if page.get("next_cursor") is None:
                break
            query["cursor"] = page["next_cursor"]
        assert len(seen) == 7
        assert made == set(seen)


BAD_SEARCHES: list[Any] = [
    {"limit": 0},
    {"limit": 201},
    {"display_name": ""},
    {"statuses": []},
    {"statuses": [{"type": "no"}]},
    {"statuses": [{"type": "client_finished", "reasons": ["no"]}]},
    {"owner": {"type": "user", "owner_urns": []}},
    {"cursor": {"last_created_at": "no", "last_session_id": "s"}},
    {"user_metadata": {"a": 1}},
]


async def test_a_search_that_cannot_be_right_is_refused(tmp_path: Path) -> None:
    async with open_desk(tmp_path, QuickEngine()) as desk:
        for query in BAD_SEARCHES:
            reply = await desk.post("/sessions/search", query)
            assert reply.status == 422, query
            assert str(len(reply.body)) == reply.headers["content-length"]
            assert reply.json["detail"]


UNANSWERED: list[tuple[str, str, Any, int]] = [
    ("PUT", "/sessions/S/project", None, 400),
    ("PUT", "/sessions/S/project", {}, 400),
    ("PUT", "/sessions/S/project", {"project_id": " "}, 400),
    ("PUT", "/sessions/s-no/project", {"project_id": "p"}, 404),
    ("GET", "/sessions/s-no", None, 404),
    ("GET", "/sessions/s-no/trace_export", None, 404),
    ("POST", "/sessions/S/finish", {"reason": {"type": "bored"}}, 422),
    ("POST", "/sessions/s-no/finish", None, 404),
    ("GET", "/sessions?access_scope=all", None, 422),
    ("GET", "/sessions?limit=-1", None, 422),
    ("GET", "/training_runs?access_scope=all", None, 422),
    ("GET", "/training_runs/no", None, 404),
    ("GET", "/training_runs/no/checkpoints", None, 404),
    ("GET", "/training_runs/no/checkpoints/weights/x/archive", None, 404),
    ("GET", "/training_runs/no/checkpoints/no/x/external_weights_urls", None, 404),
    ("GET", "/samplers/no", None, 404),
    ("POST", "/copy_weights", {"source_path": "x", "destination_project_id": "p"}, 400),
    ("POST", "/copy_weights", {"source_path": "tinker://a/weights/b"}, 422),
    (
        "POST",
        "/copy_weights",
        {"source_path": "tinker://a/weights/b", "destination_project_id": "p"},
        404,
    ),
    ("POST", "/copy_weights", {"source_path": "tinker://a/weights/b", "session_id": "S"}, 422),
    ("GET", "/audit?event_type=no", None, 422),
    ("GET", "/audit?day=yesterday", None, 422),
    ("GET", "/billing/usage/events", None, 422),
    ("GET", "/billing/usage/events?starting_on=2026-01-01T00:00:00Z", None, 422),
    *(
        ("GET", f"/billing/usage/events?starting_on={start}Z&ending_before={end}Z", None, 400)
        for start, end in (
            ("2026-01-01T00:30:00", "2026-01-01T01:00:00"),
            ("2026-01-01T01:00:00", "2026-01-01T01:00:00"),
            ("2026-01-01T00:00:00", "2026-01-15T01:00:00"),
            ("2199-01-01T00:00:00", "2199-01-01T01:00:00"),
        )
    ),
]


async def test_what_cannot_be_answered_is_refused(tmp_path: Path) -> None:
    """With the reason, and a length."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        session_id = await desk.session()
        for method, path, body, status in UNANSWERED:
            raw = None if body is None else json.dumps(body).replace('"S"', f'"{session_id}"')
            sent = None if raw is None else raw.encode()
            reply = await desk.send(method, path.replace("/S/", f"/{session_id}/"), sent)
            assert status == reply.status, (path, body)
            assert reply.json["detail"]
            assert str(len(reply.body)) == reply.headers["content-length"]


async def test_the_first_end_of_a_session_counts(tmp_path: Path) -> None:
    """Also of many that come at once."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        session_id = await named(desk, "x")
        reasons = ["errored", "success", "interrupted"]

        async def finish(reason: str) -> None:
            body = {"reason": {"type": reason}, "detail": reason}
            await desk.ok(f"/sessions/{session_id}/finish", body)

        await finish(reasons[0])
        async with anyio.create_task_group() as tasks:
            for reason in reasons:
                tasks.start_soon(finish, reason)
        [session] = (await desk.ok("/sessions/search", {}))["sessions"]
        assert session["status"] == {
            "type": "client_finished",
            "reason": {"type": "errored"},
            "detail": "errored",
        }


async def copy(desk: Desk, source: str, key: str | None = None, **more: Any) -> Any:
    headers = {} if key is None else {"x_idempotency_key": key}
    body = {"source_path": source, **more}
    return await desk.post("/copy_weights", body, x_tinker_weights_access_token="t", **headers)


async def test_a_copy_outlives_its_original(tmp_path: Path) -> None:
    """In a run that nobody can train on, in a session of the project."""
    engine = QuickEngine()
    async with open_desk(tmp_path, engine) as desk:
        one = await saved(desk)
        [source] = desk.service.store.checkpoints
        reply = await copy(desk, source, destination_project_id="p", ttl_seconds=3600)
        path = reply.json["tinker_path"]
        assert (await desk.send("DELETE", one)).status == 204
        run_id = path.split("/")[2]
        row = desk.service.store.checkpoints[path]
        assert (tmp_path / row.folder / "weights.bin").read_bytes() == b"12345"
        assert row.expires_at is not None
        assert (await desk.get("/training_runs?project_id=p")).json["training_runs"][0][
            "training_run_id"
        ] == run_id
        body = {"model_id": run_id, "path": "y", "seq_id": 1}
        assert (await desk.post("/save_weights", body)).status == 410
        load = {"session_id": await desk.session(), "model_seq_id": 0, "path": path}
        loaded = await desk.result(await desk.ok("/load_weights", {**load, "optimizer": True}))
        assert path == loaded["path"]


async def test_a_repeated_copy_is_made_once(tmp_path: Path) -> None:
    """By its key, or by its place in a session; another one there is a conflict."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        await saved(desk)
        [source] = desk.service.store.checkpoints
        session_id = await desk.session()
        paths: set[str] = set()

        async def ask(key: str | None, **more: Any) -> None:
            paths.add((await copy(desk, source, key, **more)).json["tinker_path"])

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(lambda: ask("k", destination_project_id="p"))
                tasks.start_soon(lambda: ask(None, session_id=session_id, model_seq_id=3))
        assert len(paths) == 2
        assert f"tinker://{session_id}:train:3/weights/x" in paths
        assert len(await listed(desk)) == 3
        events = [entry["event"] for entry in (await desk.get("/audit")).json["entries"]]
        assert events.count("checkpoint_copied") == 2
        other = await copy(
            desk, source, None, session_id=session_id, model_seq_id=3, ttl_seconds=3600
        )
        assert other.status == 409
        reused = await copy(desk, source, "k", destination_project_id="q")
        assert reused.status == 422
        new = {"session_id": session_id, "model_seq_id": 3, "base_model": "tiny"}
        assert (await desk.post("/create_model", new)).status == 409


async def test_usage_falls_into_the_hours_in_which_it_was(tmp_path: Path) -> None:
    """Tokens by kind; what is stored counts by the second, to its end."""
    clock = HandClock()  # half past three
    engine = QuickEngine()
    async with open_desk(tmp_path, engine, Limits(housekeeping_s=1000.0), clock) as desk:
        one = await saved(desk)
        run_id = next(reversed(desk.service.store.runs))
        session_id = run_id.partition(":")[0]
        for seq_id in (2, 3):
            body = forward_backward_body(run_id, seq_id)
            promise = await desk.ok(
                "/forward_backward", body, content_type="application/x-protobuf"
            )
            await desk.result(promise)
            clock.advance(3600)
        sampler_id = await sampler(desk, session_id)
        sample = sample_body(sampler_id, 0, num_samples=3)
        await desk.result(await desk.ok("/asample", sample))
        clock.advance(60)
        await desk.send("DELETE", one)
        clock.advance(3600)
        window = "starting_on=2026-01-02T03:00:00Z&ending_before=2026-01-02T08:00:00Z"
        told = (await desk.get(f"/billing/usage/events?{window}")).json
        counts: dict[tuple[str, str], float] = {}
        for event in told["data"]:
            info = event["event_info"]
            number = info.get("token_count", info.get("count", info.get("gigabyte_hours")))
            counts[event["bucket_start"][11:13], info["type"]] = number
        storage = {hour: counts.pop((hour, "storage")) for hour in ("03", "04", "05")}
        assert counts == {
            ("03", "training"): 3,
            ("04", "training"): 3,
            ("05", "sampling_sample"): 6,
            ("05", "sampling_prefill"): 4,
            ("03", "checkpoint"): 1,
        }
        expected = {"03": 2.5e-9, "04": 5e-9, "05": 5e-9 * 1860 / 3600}
        assert storage == pytest.approx(expected)
        assert {session_id: {"user_metadata": {"a": "b"}}} == told["sessions"]


async def test_the_ledger_is_not_written_for_each_request(tmp_path: Path) -> None:
    """Many samples are one entry, and one transaction."""
    async with open_desk(tmp_path, QuickEngine(), Limits(housekeeping_s=1000.0)) as desk:
        sampler_id = await sampler(desk, await desk.session())
        changes: list[int] = []
        for number in range(50):
            await desk.result(await desk.ok("/asample", sample_body(sampler_id, number)))
            changes.append(desk.service.store._db.total_changes)
        assert len(set(changes)) == 1
        [prefill, sample] = sorted(await desk.service.ledger.usage(0, 10**9), key=lambda u: u.kind)
        assert (prefill.amount, sample.amount) == (200, 100)


async def test_records_survive_a_restart(tmp_path: Path) -> None:
    """Sessions with their end and project, samplers, usage and the audit log."""
    async with open_desk(tmp_path, QuickEngine(), Limits(housekeeping_s=1000.0)) as desk:
        await saved(desk)
        run_id = next(reversed(desk.service.store.runs))
        session_id = run_id.partition(":")[0]
        sampler_id = await sampler(desk, session_id)
        await desk.result(await desk.ok("/asample", sample_body(sampler_id, 0)))
        await desk.send("PUT", f"/sessions/{session_id}/project", {"project_id": "p"})
        finish = {"reason": {"type": "success"}, "detail": "d"}
        await desk.ok(f"/sessions/{session_id}/finish", finish)
        lost = await named(desk, "lost")

    async with open_desk(tmp_path, QuickEngine()) as desk:
        assert [sampler_id] == (await desk.get(f"/sessions/{session_id}")).json["sampler_ids"]
        assert (await desk.get(f"/samplers/{sampler_id}")).json["base_model"] == "tiny"
        events = [entry["event"] for entry in (await desk.get("/audit")).json["entries"]]
        assert events == ["checkpoint_saved", "project_session_assigned"]
        kinds = {used.kind for used in await desk.service.ledger.usage(0, 10**9)}
        assert kinds == {"checkpoint", "sample", "prefill"}
        page = (await desk.ok("/sessions/search", {}))["sessions"]
        assert [lost, session_id] == [session["session_id"] for session in page]
        assert page[0].get("status") is None
        assert (page[1]["project_id"], page[1]["status"]["detail"]) == ("p", "d")
        trace = (await desk.get(f"/sessions/{session_id}/trace_export")).json
        assert trace["status"] == "failed"
        await desk.ok(f"/sessions/{lost}/finish", {"reason": {"type": "errored"}})
        assert desk.service.store.sessions[lost].ended == "errored"


async def test_rows_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    """What it did not know has its default."""
    db = sqlite3.connect(tmp_path / "engine.sqlite3", isolation_level=None)
    db.execute("CREATE TABLE sessions (id TEXT PRIMARY KEY, body BLOB NOT NULL)")
    old = {"session_id": "s-1", "created_at": "2026-01-01T00:00:00Z", "tags": []}
    db.execute("INSERT INTO sessions VALUES ('s-1', ?)", (msgspec.json.encode(old),))
    db.close()
    store = Store(tmp_path)
    assert store.sessions["s-1"].project == "default"
    store.close()


async def test_a_token_is_as_good_as_the_key_for_an_hour(tmp_path: Path) -> None:
    """What is forged or over is refused with the mark that makes clients fetch another."""
    clock = HandClock()
    async with open_desk(tmp_path, QuickEngine(), clock=clock) as desk:
        token = (await desk.ok("/auth/token", {}))["jwt"]
        assert token.startswith("eyJ")
        assert (await desk.send("GET", "/sessions", key=token)).status == 200
        assert (await desk.send("POST", "/auth/token", {}, key=token)).status == 200
        head, payload, seal = token.split(".")
        unsigned = f"eyJhbGciOiJub25lIn0.{payload}."
        for forged in (
            unsigned,
            f"{head}.{payload}x.{seal}",
            f"{head}.{payload}.",
            "eyJ",
            "eyJ.x.y",
        ):
            reply = await desk.send("GET", "/sessions", key=forged)
            assert (401, 'Bearer error="invalid_token"') == (
                reply.status,
                reply.headers["www-authenticate"],
            )
        clock.advance(3601)
        assert (await desk.send("GET", "/sessions", key=token)).status == 401
        plain = await desk.send("GET", "/sessions", key="tml-wrong")
        assert (401, None) == (plain.status, plain.headers.get("www-authenticate"))
        fresh = (await desk.ok("/auth/token", {}))["jwt"]
        assert (await desk.send("DELETE", "/auth/apikey/me", key=fresh)).status == 401
        assert (await desk.send("GET", "/sessions", key=fresh)).status == 200
        assert (await desk.send("DELETE", "/auth/apikey/me")).status == 204
        assert (await desk.send("GET", "/sessions", key=fresh)).status == 401
        assert (await desk.send("GET", "/sessions", key=KEY)).status == 401
        assert (await desk.send("GET", "/healthz", key=None)).status == 200
