"""One held request for all samples of a sampler, clones that join it, and results told by size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from server.desk import PROTOBUF, Desk, forward_backward_body, open_desk, sample_body, sampler
from server.engine_double import HandEngine, QuickEngine

from tinker_async.errors import ConfigError, InvalidInputError
from tinker_async.local.server.flags import read_flags
from tinker_async.local.server.limits import Limits

CLONE = 1_000_000_000


def asked(sampler_id: str, cursor: int = 0, clone: int = 0, **more: Any) -> dict[str, Any]:
    target = {"type": "sampling_session", "sampling_session_id": sampler_id}
    target |= {"cloned_sampler_id": clone}  # type: ignore[dict-item]  # a number among texts
    return {"target": target, "prev_cursor": cursor, "retrieved_request_ids": [], **more}


async def draw(desk: Desk, sampler_id: str, *numbers: int) -> list[str]:
    """Ask for samples; return their request ids."""
    promises = [await desk.ok("/asample", sample_body(sampler_id, number)) for number in numbers]
    return [promise["request_id"] for promise in promises]


async def test_it_tells_what_is_done_after_the_cursor(tmp_path: Path) -> None:
    """What the cursor has passed is forgotten; a repetition of a lost answer is the same."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        sampler_id = await sampler(desk, await desk.session())
        first, second = await draw(desk, sampler_id, 0, 1)
        answer = await desk.ok("/retrieve_futures", asked(sampler_id))
        assert [("finished", first), ("finished", second)] == [
            (one["state"], one["request_id"]) for one in answer["completions"]
        ]
        assert answer == await desk.ok("/retrieve_futures", asked(sampler_id))
        (third,) = await draw(desk, sampler_id, 2)
        later = await desk.ok("/retrieve_futures", asked(sampler_id, answer["cursor"]))
        assert [third] == [one["request_id"] for one in later["completions"]]
        assert later["cursor"] > answer["cursor"]
        earlier = await desk.ok("/retrieve_futures", asked(sampler_id, 0, timeout=0))
        assert [third] == [one["request_id"] for one in earlier["completions"]]


async def test_it_is_held_until_a_sample_is_done(tmp_path: Path) -> None:
    engine = HandEngine()
    async with open_desk(tmp_path, engine) as desk:
        sampler_id = await sampler(desk, await desk.session())
        (request_id,) = await draw(desk, sampler_id, 0)
        answers: list[Any] = []

        async def poll() -> None:
            answers.append(await desk.ok("/retrieve_futures", asked(sampler_id)))

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(poll)
                tasks.start_soon(poll)
                await anyio.wait_all_tasks_blocked()
                assert [] == answers
                assert 2 == desk.service.statistics()["held_polls"]
                engine.finish(InvalidInputError("no", field="prompt"))
        failed = {"state": "failed", "request_id": request_id}
        assert [[failed]] * 2 == [answer["completions"] for answer in answers]
        assert 0 == desk.service.statistics()["held_polls"]
        told = await desk.result({"request_id": request_id})
        assert "user" == told["category"]


async def test_without_a_timeout_it_answers_at_once(tmp_path: Path) -> None:
    """With the cursor it was given, so that the next poll misses nothing."""
    async with open_desk(tmp_path, HandEngine()) as desk:
        sampler_id = await sampler(desk, await desk.session())
        with anyio.fail_after(5):
            answer = await desk.ok("/retrieve_futures", asked(sampler_id, timeout=0.0))
    assert {"completions": [], "cursor": 0} == answer


async def test_a_held_one_ends_when_the_server_stops(tmp_path: Path) -> None:
    async with open_desk(tmp_path, HandEngine()) as desk:
        sampler_id = await sampler(desk, await desk.session())
        statuses: list[int] = []

        async def poll() -> None:
            statuses.append((await desk.post("/retrieve_futures", asked(sampler_id))).status)

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(poll)
                await anyio.wait_all_tasks_blocked()
                desk.service.promises.stop()
    assert [503] == statuses


async def test_results_that_were_fetched_are_freed(tmp_path: Path) -> None:
    """By their ids; those of another session stay."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        sampler_id = await sampler(desk, await desk.session())
        other_id = await sampler(desk, await desk.session())
        (mine,), (other,) = await draw(desk, sampler_id, 0), await draw(desk, other_id, 0)
        body = asked(sampler_id, timeout=0) | {"retrieved_request_ids": [mine, other, "never"]}
        assert [] == (await desk.ok("/retrieve_futures", body))["completions"]
        gone = await desk.post("/retrieve_future", {"request_id": mine})
        assert 410 == gone.status
        assert "sequences" in await desk.result({"request_id": other})


async def test_what_was_fetched_one_by_one_does_not_pile_up(tmp_path: Path) -> None:
    """Clients that never ask for all leave nothing behind."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        sampler_id = await sampler(desk, await desk.session())
        for request_id in await draw(desk, sampler_id, *range(20)):
            await desk.result({"request_id": request_id})
        assert 0 == len(desk.service.sampler(sampler_id).completions_of(0))


async def test_clones_have_numbers_and_lists_of_their_own(tmp_path: Path) -> None:
    async with open_desk(tmp_path, QuickEngine()) as desk:
        sampler_id = await sampler(desk, await desk.session())
        join = {"sampling_session_id": sampler_id, "type": "join_sampling_session"}
        numbers = [
            (await desk.ok("/join_sampling_session", join))["client_counter"] for _ in range(3)
        ]
        assert [1, 2, 3] == numbers
        original, clone = await draw(desk, sampler_id, 0, 2 * CLONE)
        for number, request_id in ((0, original), (2, clone)):
            answer = await desk.ok("/retrieve_futures", asked(sampler_id, clone=number))
            assert [request_id] == [one["request_id"] for one in answer["completions"]]


@pytest.mark.parametrize(
    ("status", "change"),
    [
        (400, {"prev_cursor": 7}),
        (400, {"prev_cursor": -1}),
        (404, {"target": {"type": "sampling_session", "sampling_session_id": "never"}}),
        (400, {"target": {"type": "model", "sampling_session_id": "never"}}),
        (422, {"target": "all"}),
    ],
)
async def test_what_cannot_be_watched_is_refused(
    tmp_path: Path, status: int, change: dict[str, Any]
) -> None:
    async with open_desk(tmp_path, QuickEngine()) as desk:
        sampler_id = await sampler(desk, await desk.session())
        reply = await desk.post("/retrieve_futures", asked(sampler_id) | change)
        assert status == reply.status


async def test_a_large_result_is_told_by_its_size_first(tmp_path: Path) -> None:
    """To who asked for that; without `allow_metadata_only` it comes whole, to old clients, too."""
    async with open_desk(tmp_path, QuickEngine(), Limits(inline_bytes=30)) as desk:
        model_id = await desk.model(await desk.session())
        protobuf = {"content_type": PROTOBUF}
        body = forward_backward_body(model_id, 1)
        promise = await desk.ok("/forward_backward", body, **protobuf)
        wanted = {"request_id": promise["request_id"]}
        told = await desk.post(
            "/retrieve_future", wanted | {"allow_metadata_only": True}, accept=PROTOBUF
        )
        whole = await desk.post("/retrieve_future", wanted, accept=PROTOBUF)
        assert len(whole.body) > 30
        size = {"status": "complete_metadata", "response_payload_size": len(whole.body)}
        assert size == told.json
        assert PROTOBUF == whole.headers["content-type"]


def test_switches_have_the_names_of_the_protocol() -> None:
    """And values as text; unknown ones, and wrong values, are told at the start."""
    flags = read_flags(
        {"sample_use_retrieve_futures": "true", "refresh_interval_sec": "10", "fwd_via_fwdbwd": "1"}
    )
    assert flags.client.sample_use_retrieve_futures
    assert flags.client.parallel_fwdbwd_chunks
    assert (10, True) == (flags.dynamic.refresh_interval_sec, flags.dynamic.sample_cancel_enabled)
    with pytest.raises(ConfigError, match="no switch 'fast'"):
        read_flags({"fast": "true"})
    with pytest.raises(ConfigError, match="wrong value"):
        read_flags({"refresh_interval_sec": "often"})


async def test_clients_are_told_of_the_switches(tmp_path: Path) -> None:
    async with open_desk(tmp_path, QuickEngine()) as desk:
        desk.service.flags = read_flags({"sample_join_sampling_session": "true"})
        config = await desk.ok("/client/config", {"sdk_version": "0.38.0"})
        assert config["sample_join_sampling_session"]
        assert not config["sample_use_retrieve_futures"]
        dynamic = await desk.ok("/client/dynamic_config", {"sdk_version": "0.38.0"})
        assert dynamic["sample_cancel_enabled"]
