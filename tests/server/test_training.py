"""Models and their operations, without a socket and with an engine that answers at once."""

from __future__ import annotations

from pathlib import Path

import anyio
import zstandard
from server.desk import (
    DATUM,
    PROTOBUF,
    forward_backward_body,
    open_desk,
    step_body,
)
from server.engine_double import QuickEngine

from tinker_async.errors import InvalidInputError
from tinker_async.local.engine import jobs
from tinker_async.wire.training import decode_forward_backward_output


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
        engine.answers[jobs.OptimStep] = RuntimeError("broken")
        fault = await desk.result(await desk.step(model_id, 1))
        engine.answers[jobs.OptimStep] = InvalidInputError("bad", field="x")
        user = await desk.result(await desk.step(model_id, 2))
        del engine.answers[jobs.OptimStep]
        good = await desk.result(await desk.step(model_id, 3))

    assert fault == {"error": "RuntimeError: broken", "category": "server"}
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
