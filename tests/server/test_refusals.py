"""What is refused, and how."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import zstandard
from server.desk import (
    open_desk,
    sample_body,
    sampler,
    step_body,
)
from server.engine_double import QuickEngine

from tinker_async.local.server.http import _unzstd
from tinker_async.local.server.limits import Limits
from tinker_async.local.server.refusal import Refusal

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
    ("/asample", sample_body("X", 0, prompt_alt_tokens_k=-1), 400, "prompt_alt_tokens_k"),
    ("/asample", sample_body("X", 0, prompt_logprobs_last_n=1), 400, "prompt_logprobs_last_n"),
    ("/asample", sample_body("X", 0, sampling_params={"top_p": 2}), 422, "sampling_params"),
    ("/retrieve_future", {"request_id": 5}, 422, "request_id"),
]


async def test_what_cannot_be_right_is_refused_with_the_field_at_fault(tmp_path: Path) -> None:
    """At once, with a length (clients take a 400 without one for a proxy's)."""
    engine = QuickEngine()
    async with open_desk(tmp_path, engine) as desk:
        session_id = await desk.session()
        names = {"S": session_id, "M": await desk.model(session_id)}
        names["X"] = await sampler(desk, session_id, 7)
        for path, body, status, field in NO_BODY:
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            for name, value in names.items():
                raw = raw.replace(f'"{name}"'.encode(), f'"{value}"'.encode())
            reply = await desk.post(path, raw)
            found = reply.status, reply.json.get("field", "").partition(".")[0]
            assert (status, field) == found, (path, body, reply)
            assert str(len(reply.body)) == reply.headers["content-length"]
        assert ["CreateModel"] == engine.kinds()


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


def test_a_decompression_bomb_never_fills_the_memory() -> None:
    """Reading stops at the limit: what the frame declares is not believed."""
    bomb = zstandard.compress(bytes(50_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(Refusal) as caught:
            _unzstd(bomb, 1000)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    assert caught.value.status == 413


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
