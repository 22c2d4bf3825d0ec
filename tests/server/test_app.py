"""Every endpoint's answers, without a socket and with an engine that answers at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest
import zstandard
from server.desk import Desk, open_desk, sample_body, step_body, until
from server.engine_double import HandEngine, QuickEngine, sampled

from tinker_async.data.datum import Datum
from tinker_async.data.model_input import ModelInput
from tinker_async.errors import ConfigError, InvalidInputError
from tinker_async.local.engine import jobs
from tinker_async.local.server.service import Limits
from tinker_async.wire.sampling import decode_sample_response
from tinker_async.wire.training import decode_forward_backward_output, encode_forward_backward

PROTOBUF = "application/x-protobuf"
DATUM = Datum(ModelInput.from_ints([1, 2, 3]), {"target_tokens": [2, 3, 4], "weights": [1, 1, 1]})


def forward_backward_body(model_id: str, seq_id: int, loss_fn: str = "cross_entropy") -> bytes:
    parts = encode_forward_backward(
        model_id=model_id,
        seq_id=seq_id,
        data=[DATUM],
        loss_fn=loss_fn,
        loss_fn_config=None,
        forward_only=False,
    )
    return b"".join(parts)


# Sessions


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

        assert (await desk.result(promise))["category"] == "user"
        assert "is over" in (await desk.result(sample))["error"]
        assert sample["request_id"] in engine.cancelled
        while engine.waiting:
            engine.finish()
        with anyio.fail_after(5):
            assert jobs.DropModel(f"{session_id}:train:0") == await engine.until(jobs.DropModel)


# Models and training


async def test_a_repeated_create_model_gives_the_same_promise(tmp_path: Path) -> None:
    """By session and number; another body under the number is a 409."""
    engine = QuickEngine()
    async with open_desk(tmp_path, engine) as desk:
        session_id = await desk.session()
        body = {"session_id": session_id, "model_seq_id": 0, "base_model": "tiny"}
        first, second = await desk.ok("/create_model", body), await desk.ok("/create_model", body)
        assert first == second
        assert f"{session_id}:train:0" == first["model_id"]
        await desk.result(first)
        assert engine.kinds().count("CreateModel") == 1
        other = {**body, "lora_config": {"rank": 2}}
        assert (await desk.post("/create_model", other)).status == 409


async def test_a_model_that_cannot_be_made_is_gone(tmp_path: Path) -> None:
    """The promise says why, and whose fault it was."""
    engine = QuickEngine()
    engine.answers[jobs.CreateModel] = InvalidInputError("rank: too large", field="rank")
    async with open_desk(tmp_path, engine) as desk:
        session_id = await desk.session()
        body = {"session_id": session_id, "model_seq_id": 0, "base_model": "tiny"}
        failed = await desk.result(await desk.ok("/create_model", body))
        assert failed == {"error": "rank: too large", "category": "user"}
        reply = await desk.post("/optim_step", step_body(f"{session_id}:train:0", 1))
        assert reply.status == 404


async def test_get_info_describes_the_model(tmp_path: Path) -> None:
    """What the official client reads after creation."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        model_id = await desk.model(await desk.session())
        info = await desk.ok("/get_info", {"model_id": model_id, "type": "get_info"})
        assert (model_id, "tiny", 4, True) == (
            info["model_id"],
            info["model_data"]["model_name"],
            info["lora_rank"],
            info["is_lora"],
        )


async def test_forward_backward_comes_as_protobuf_zstd_or_json(tmp_path: Path) -> None:
    """By content type and encoding; all three are the same job to the engine."""
    engine = QuickEngine()
    async with open_desk(tmp_path, engine) as desk:
        model_id = await desk.model(await desk.session())
        plain = forward_backward_body(model_id, 1)
        await desk.ok("/forward_backward", plain, content_type=PROTOBUF)
        packed = zstandard.compress(forward_backward_body(model_id, 2))
        await desk.ok("/forward_backward", packed, content_type=PROTOBUF, content_encoding="zstd")
        tensor = {"dtype": "int64", "data": [2, 3, 4], "shape": [3]}
        weights = {"dtype": "float32", "data": [1, 1, 1], "shape": [3]}
        datum = {
            "model_input": {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
            "loss_fn_inputs": {"target_tokens": tensor, "weights": weights},
        }
        given = {"data": [datum], "loss_fn": "cross_entropy"}
        await desk.ok(
            "/forward_backward",
            {"model_id": model_id, "seq_id": 3, "forward_backward_input": given},
        )
        promise = await desk.ok(
            "/forward", {"model_id": model_id, "seq_id": 4, "forward_input": given}
        )
        await desk.result(promise)

        sent = [job for job in engine.submitted if isinstance(job, jobs.ForwardBackward)]
        assert [job.forward_only for job in sent] == [False, False, False, True]
        assert [job.data for job in sent] == [[DATUM]] * 4


async def test_results_are_protobuf_only_for_who_asks(tmp_path: Path) -> None:
    """`Accept` decides, and a result can be fetched again in the other form."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        model_id = await desk.model(await desk.session())
        body = forward_backward_body(model_id, 1)
        promise = await desk.ok("/forward_backward", body, content_type=PROTOBUF)
        wanted = {"request_id": promise["request_id"]}

        binary = await desk.post("/retrieve_future", wanted, accept=PROTOBUF)
        assert binary.headers["content-type"] == PROTOBUF
        assert decode_forward_backward_output(binary.body).metrics == {"loss:sum": 1.0}

        text = await desk.post("/retrieve_future", wanted, accept="application/json")
        assert text.headers["content-type"] == "application/json"
        assert text.json["metrics"] == {"loss:sum": 1.0}
        assert {"loss_fn_output_type", "loss_fn_outputs", "metrics"} == set(text.json)

        step = await desk.step(model_id, 2)
        reply = await desk.post(
            "/retrieve_future", {"request_id": step["request_id"]}, accept=PROTOBUF
        )
        assert reply.json == {"metrics": {"lr": 0.5}}


async def test_faults_are_told_from_bad_input(tmp_path: Path) -> None:
    """The engine's own errors are `server`, errors of the input `user`; the model goes on."""
    engine = QuickEngine()
    async with open_desk(tmp_path, engine) as desk:
        model_id = await desk.model(await desk.session())
        engine.answers[jobs.OptimStep] = RuntimeError("out of memory")
        fault = await desk.result(await desk.step(model_id, 1))
        engine.answers[jobs.OptimStep] = InvalidInputError("bad", field="x")
        user = await desk.result(await desk.step(model_id, 2))
        del engine.answers[jobs.OptimStep]
        good = await desk.result(await desk.step(model_id, 3))

    assert fault == {"error": "RuntimeError: out of memory", "category": "server"}
    assert user == {"error": "bad", "category": "user"}
    assert good == {"metrics": {"lr": 0.5}}


async def test_unloading_frees_the_model_after_its_work(tmp_path: Path) -> None:
    """Afterwards it is 410, and the engine has dropped it."""
    engine = QuickEngine()
    async with open_desk(tmp_path, engine) as desk:
        model_id = await desk.model(await desk.session())
        await desk.step(model_id, 1)
        result = await desk.result(await desk.ok("/unload_model", {"model_id": model_id}))
        with anyio.fail_after(5):
            await engine.until(jobs.DropModel)
        assert {"model_id": model_id, "type": "unload_model"} == result
        assert engine.kinds() == ["CreateModel", "OptimStep", "DropModel"]
        assert (await desk.post("/optim_step", step_body(model_id, 2))).status == 410


# Polling


async def test_a_poll_is_held_then_told_to_try_again(tmp_path: Path) -> None:
    """The answer says what the request waits for."""
    async with open_desk(tmp_path, QuickEngine(), Limits(hold_s=0.05)) as desk:
        model_id = await desk.model(await desk.session())
        promise = await desk.step(model_id, 2)
        reply = await desk.result(promise)
        assert {
            "type": "try_again",
            "request_id": promise["request_id"],
            "queue_state": "active",
            "queue_state_reason": "request 1 of this model has not arrived yet",
        } == reply


async def test_held_polls_are_answered_when_the_result_comes(tmp_path: Path) -> None:
    """All of them, at once."""
    engine = HandEngine()
    async with open_desk(tmp_path, engine) as desk:
        session_id = await desk.session()
        body = {"session_id": session_id, "model_seq_id": 0, "base_model": "tiny"}
        promise = await desk.ok("/create_model", body)
        results: list[Any] = []

        async def poll() -> None:
            results.append(await desk.result(promise))

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(poll)
                tasks.start_soon(poll)
                await anyio.wait_all_tasks_blocked()
                assert results == []
                engine.finish()

    assert [{"model_id": f"{session_id}:train:0", "type": "create_model"}] * 2 == results


async def test_held_polls_end_when_the_server_stops(tmp_path: Path) -> None:
    """With a 503: the result may come after a restart, or never."""
    async with open_desk(tmp_path, HandEngine()) as desk:
        session_id = await desk.session()
        body = {"session_id": session_id, "model_seq_id": 0, "base_model": "tiny"}
        promise = await desk.ok("/create_model", body)
        statuses: list[int] = []

        async def poll() -> None:
            reply = await desk.post("/retrieve_future", {"request_id": promise["request_id"]})
            statuses.append(reply.status)

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(poll)
                await anyio.wait_all_tasks_blocked()
                desk.service.promises.stop()

    assert statuses == [503]


async def test_a_delivered_result_can_be_fetched_again_until_memory_is_short(
    tmp_path: Path,
) -> None:
    """Then it is 410; a result that nobody has fetched stays."""
    async with open_desk(tmp_path, QuickEngine(), Limits(delivered_bytes=80)) as desk:
        model_id = await desk.model(await desk.session())
        steps = [await desk.step(model_id, number) for number in (1, 2, 3, 4)]
        first = await desk.result(steps[0])
        assert first == await desk.result(steps[0])
        for step in steps[1:]:
            await desk.result(step)

        gone = await desk.post("/retrieve_future", {"request_id": steps[0]["request_id"]})
        assert gone.status == 410
        unknown = await desk.post("/retrieve_future", {"request_id": "never"})
        assert unknown.status == 404


# Sampling


async def sampler(desk: Desk, session_id: str, number: int = 0, **more: Any) -> str:
    more = more or {"base_model": "tiny"}
    body = {"session_id": session_id, "sampling_session_seq_id": number, **more}
    created = await desk.ok("/create_sampling_session", body)
    return str(created["sampling_session_id"])


async def test_a_sample_promises_its_sequence_ids(tmp_path: Path) -> None:
    """Unique in the session, one per sample; the result is protobuf or JSON."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        sampler_id = await sampler(desk, await desk.session())
        first = await desk.ok("/asample", sample_body(sampler_id, 0, num_samples=2))
        second = await desk.ok("/asample", sample_body(sampler_id, 10**17, num_samples=2))
        ids = first["sample_sequence_ids"] + second["sample_sequence_ids"]
        assert len(set(ids)) == 4

        wanted = {"request_id": first["request_id"]}
        binary = await desk.post("/retrieve_future", wanted, accept=PROTOBUF)
        response = decode_sample_response(binary.body, first["sample_sequence_ids"])
        assert [s.tokens.tolist() for s in response.sequences] == [[7, 8], [7, 8]]
        text = await desk.result(first)
        assert text["sequences"][0]["tokens"] == [7, 8]


async def test_a_repeated_sample_is_drawn_once(tmp_path: Path) -> None:
    """Same promise, same ids; another body under the number is a 409."""
    engine = QuickEngine()
    async with open_desk(tmp_path, engine) as desk:
        sampler_id = await sampler(desk, await desk.session())
        body = sample_body(sampler_id, 5)
        assert await desk.ok("/asample", body) == await desk.ok("/asample", body)
        assert engine.kinds() == ["Sample"]
        reply = await desk.post("/asample", sample_body(sampler_id, 5, num_samples=3))
        assert reply.status == 409


async def test_too_many_waiting_samples_are_429(tmp_path: Path) -> None:
    """With a Retry-After; there is room again when one is done."""
    engine = HandEngine()
    async with open_desk(tmp_path, engine, Limits(samples_waiting=1)) as desk:
        sampler_id = await sampler(desk, await desk.session())
        await desk.ok("/asample", sample_body(sampler_id, 0))
        full = await desk.post("/asample", sample_body(sampler_id, 1))
        assert (full.status, full.headers["retry-after"]) == (429, "1")
        job = engine.waiting[0][0]
        assert isinstance(job, jobs.Sample)
        engine.finish(sampled(job))
        await anyio.wait_all_tasks_blocked()
        await desk.ok("/asample", sample_body(sampler_id, 1))


async def test_a_cancelled_sample_fails_at_once(tmp_path: Path) -> None:
    """The engine is told; training is not cancelled, since later requests build on it."""
    engine = HandEngine()
    async with open_desk(tmp_path, engine) as desk:
        session_id = await desk.session()
        sampler_id = await sampler(desk, session_id)
        promise = await desk.ok("/asample", sample_body(sampler_id, 0))
        await desk.ok("/cancel_future", {"request_id": promise["request_id"]})
        assert (await desk.result(promise))["error"] == "the sample was cancelled"
        assert [promise["request_id"]] == engine.cancelled


async def test_prompt_logprobs_can_be_limited_to_the_last(tmp_path: Path) -> None:
    """Earlier positions are empty, as clients check."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        sampler_id = await sampler(desk, await desk.session())
        body = sample_body(sampler_id, 0, prompt_logprobs=True, prompt_logprobs_last_n=2)
        result = await desk.result(await desk.ok("/asample", body))
        assert result["prompt_logprobs"] == [None, None, -2.0, -3.0]


# Weights


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
        assert [c["checkpoint_id"] for c in listed] == ["weights/a.b", "sampler_weights/a.b"]
        assert [c["size_bytes"] for c in listed] == [5, 5]
        assert listed[0]["expires_at"] is not None
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


# Refusals

NO_BODY: list[tuple[str, Any, int, str]] = [
    ("/create_session", b"{", 400, ""),
    ("/create_session", {"tags": []}, 422, "user_metadata"),
    ("/create_session", {"tags": 1, "user_metadata": {}, "sdk_version": ""}, 422, "tags"),
    (
        "/create_model",
        {"session_id": "s-no", "model_seq_id": 0, "base_model": "tiny"},
        404,
        "session_id",
    ),
    (
        "/create_model",
        {"session_id": "S", "model_seq_id": 9, "base_model": "big"},
        400,
        "base_model",
    ),
    (
        "/create_model",
        {"session_id": "S", "model_seq_id": -1, "base_model": "tiny"},
        422,
        "model_seq_id",
    ),
    (
        "/create_model",
        {"session_id": "S", "model_seq_id": 9, "base_model": "tiny", "lora_config": {"rank": 0}},
        422,
        "lora_config",
    ),
    (
        "/create_model",
        {
            "session_id": "S",
            "model_seq_id": 9,
            "base_model": "tiny",
            "optimizer_config": {"type": "dimuon"},
        },
        400,
        "optimizer_config",
    ),
    ("/get_info", {"model_id": "no"}, 404, "model_id"),
    ("/optim_step", step_body("no", 1), 404, "model_id"),
    ("/optim_step", step_body("M", 0), 422, "seq_id"),
    ("/optim_step", step_body("M", 1, -1.0), 422, "adam_params"),
    ("/optim_step", {"model_id": "M", "seq_id": 1}, 422, "adam_params"),
    ("/forward", {"model_id": "M", "seq_id": 1}, 422, "forward_input"),
    ("/save_weights", {"model_id": "M", "path": "../x", "seq_id": 1}, 400, "path"),
    ("/save_weights", {"model_id": "M", "path": ".x", "seq_id": 1}, 400, "path"),
    ("/save_weights", {"model_id": "M", "path": "", "seq_id": 1}, 400, "path"),
    (
        "/save_weights",
        {"model_id": "M", "path": "x", "seq_id": 1, "ttl_seconds": 5},
        422,
        "ttl_seconds",
    ),
    (
        "/save_weights_for_sampler",
        {"model_id": "M", "path": "x", "sampling_session_seq_id": 1, "seq_id": 1},
        400,
        "path",
    ),
    ("/load_weights", {"path": "/etc/x", "session_id": "S", "model_seq_id": 9}, 400, "path"),
    ("/load_weights", {"path": "tinker://a/sampler_weights/b", "optimizer": True}, 400, "path"),
    ("/load_weights", {"path": "tinker://a/weights/b", "optimizer": True}, 404, "path"),
    ("/weights_info", {"tinker_path": "tinker://a"}, 400, "tinker_path"),
    (
        "/create_sampling_session",
        {"session_id": "S", "sampling_session_seq_id": 0},
        400,
        "base_model",
    ),
    (
        "/create_sampling_session",
        {"session_id": "S", "sampling_session_seq_id": 0, "base_model": "big"},
        400,
        "base_model",
    ),
    (
        "/create_sampling_session",
        {"session_id": "S", "sampling_session_seq_id": 0, "model_path": "tinker://a/weights/b"},
        404,
        "model_path",
    ),
    ("/asample", sample_body("no", 0), 404, "sampling_session_id"),
    ("/asample", {**sample_body("X", 0), "sampling_session_id": None}, 422, "sampling_session_id"),
    ("/asample", sample_body("X", 0, num_samples=0), 400, "num_samples"),
    ("/asample", sample_body("X", 0, prompt_alt_tokens_k=1), 400, "prompt_alt_tokens_k"),
    ("/asample", sample_body("X", 0, prompt_logprobs_last_n=1), 400, "prompt_logprobs_last_n"),
    ("/asample", sample_body("X", 0, sampling_params={"top_p": 2}), 422, "sampling_params"),
    ("/retrieve_future", {"request_id": 5}, 422, "request_id"),
]


@pytest.mark.parametrize(("path", "body", "status", "field"), NO_BODY)
async def test_what_cannot_be_right_is_refused_with_the_field_at_fault(
    tmp_path: Path, path: str, body: Any, status: int, field: str
) -> None:
    """At once, with a length (clients take a 400 without one for a proxy's)."""
    engine = QuickEngine()
    async with open_desk(tmp_path, engine) as desk:
        session_id = await desk.session()
        model_id = await desk.model(session_id)
        sampler_id = await sampler(desk, session_id, 7)
        if isinstance(body, dict):
            text = json.dumps(body)
            for name, value in (("S", session_id), ("M", model_id), ("X", sampler_id)):
                text = text.replace(f'"{name}"', f'"{value}"')
            body = text.encode()
        reply = await desk.post(path, body)

    assert (status, field) == (reply.status, reply.json.get("field", "").partition(".")[0])
    assert str(len(reply.body)) == reply.headers["content-length"]
    assert ["CreateModel", "DropModel"][:1] == engine.kinds()[:1]


async def test_only_the_right_key_is_let_in(tmp_path: Path) -> None:
    """Everywhere but at the health check, and before anything is looked up."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        for key in (None, "", "tml-tes", "tml-test2"):
            reply = await desk.send("POST", "/create_session", b"x" * 10, key=key)
            assert (reply.status, list(reply.json)) == (401, ["detail"])
        assert (await desk.send("GET", "/nowhere", key="tml-no")).status == 401
        assert (await desk.send("GET", "/healthz", key=None)).json == {"status": "ok"}


async def test_unknown_paths_and_methods_are_json_errors(tmp_path: Path) -> None:
    """Not the framework's plain text."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        assert (
            (await desk.get("/nowhere")).status,
            (await desk.get("/nowhere")).json,
        ) == (404, {"detail": "Not Found"})
        assert (await desk.get("/create_session")).status == 405
        assert (await desk.post("/nowhere", b"x" * 100)).status == 404


async def test_bodies_are_bounded_before_and_after_decompression(tmp_path: Path) -> None:
    """A small zstd frame that claims to be large must not fill the memory."""
    async with open_desk(tmp_path, QuickEngine(), Limits(body_bytes=1000)) as desk:
        assert (await desk.post("/telemetry", b"x" * 1001)).status == 413
        bomb = zstandard.compress(b"\0" * 10_000_000)
        assert len(bomb) < 1000
        assert (await desk.post("/telemetry", bomb, content_encoding="zstd")).status == 413
        assert (await desk.post("/telemetry", b"no", content_encoding="zstd")).status == 400
        assert (await desk.post("/telemetry", b"no", content_encoding="br")).status == 415
        assert await desk.ok("/telemetry", b"x" * 1000) == {"status": "accepted"}


async def test_unknown_fields_are_ignored(tmp_path: Path) -> None:
    """Newer clients send more."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        await desk.ok("/client/config", {"sdk_version": "99", "new": [1]})
        body: dict[str, Any] = {"tags": [], "user_metadata": None, "sdk_version": "0"}
        body["new"] = {"a": None}
        await desk.ok("/create_session", body)


async def test_the_served_tokenizer_is_sent(tmp_path: Path) -> None:
    """For clients without a hub at hand; other names are 404."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        assert (await desk.get("/tokenizers/tiny")).status == 404
        (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
        assert (await desk.get("/tokenizers/tiny")).body == b'{"version": "1.0"}'
        assert (await desk.get("/tokenizers/other/name")).status == 404


async def test_listings_are_paged(tmp_path: Path) -> None:
    """Newest first; a bad page is 422."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        session_id = await desk.session()
        ids = [await desk.model(session_id, number) for number in range(3)]
        page = (await desk.get("/training_runs?limit=2&offset=1")).json
        assert [ids[1], ids[0]] == [run["training_run_id"] for run in page["training_runs"]]
        assert page["cursor"] == {"offset": 1, "limit": 2, "total_count": 3}
        assert (await desk.get("/training_runs?limit=-1")).status == 422
        assert [session_id] == (await desk.get("/sessions")).json["sessions"]
        about = (await desk.get(f"/sessions/{session_id}")).json
        assert (ids, {"a": "b"}) == (about["training_run_ids"], about["user_metadata"])
