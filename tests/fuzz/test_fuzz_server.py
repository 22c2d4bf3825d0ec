"""Damaged requests to the embedded server: refused in the official form, and it lives on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import anyio
import msgspec
import pytest
import zstandard
from anyio.abc import ByteStream
from fuzz import corpus
from fuzz.harness import afuzz, peak_within
from fuzz.mutations import damaged, damaged_json, damaged_protobuf
from server.desk import (
    KEY,
    PROTOBUF,
    Desk,
    Reply,
    forward_backward_body,
    open_desk,
    sample_body,
    step_body,
)
from server.engine_double import CARD, QuickEngine

from tinker_async.local.server.hosting import Site, bind, host
from tinker_async.local.server.limits import Limits
from tinker_async.local.server.ownership import lock_folder

pytestmark = pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {}), ("trio", {})], ids=["asyncio", "trio"]
)

LIMITS = Limits(hold_s=0.01, gap_s=0.05, body_bytes=1 << 20, delivered_bytes=1 << 16)


class Target(msgspec.Struct):
    """A good request."""

    method: str
    path: str
    body: bytes
    headers: dict[str, str]


def targets(session: str, model: str, sampler: str) -> list[Target]:
    """A good request to each endpoint."""

    def post(path: str, body: dict[str, Any]) -> Target:
        return Target("POST", path, json.dumps(body).encode(), {})

    forward = {"data": [msgspec.to_builtins(json.loads(corpus.json_datums()[0]))], "loss_fn": "ppo"}
    named = {"model_id": model, "path": "a", "seq_id": None}
    run = f"/training_runs/{model}"
    kept, loss = (
        f"tinker://{model}/weights/kept",
        json.loads(corpus.MESSAGES["CreateCustomLossRequest"]),
    )
    binary = forward_backward_body(model, 1)
    return [
        post("/create_session", {"tags": [], "user_metadata": {"a": 1}, "sdk_version": "0"}),
        post("/session_heartbeat", {"session_id": session}),
        post("/client/config", {"sdk_version": "0.38.0"}),
        post("/create_model", {"session_id": session, "model_seq_id": 5, "base_model": "tiny"}),
        post("/get_info", {"model_id": model}),
        Target("POST", "/forward_backward", binary, {"content_type": PROTOBUF}),
        Target(
            "POST",
            "/forward_backward",
            zstandard.compress(binary),
            {"content_type": PROTOBUF, "content_encoding": "zstd"},
        ),
        post("/forward", {"model_id": model, "seq_id": 1, "forward_input": forward}),
        post(
            "/forward_backward",
            {"model_id": model, "seq_id": 1, "forward_backward_input": forward},
        ),
        post("/optim_step", step_body(model, 2)),
        post("/save_weights", {**named, "ttl_seconds": 60, "overwrite": True}),
        post("/save_weights_for_sampler", {**named, "ttl_seconds": 5}),
        post("/save_weights_for_sampler", {"model_id": model, "sampling_session_seq_id": 3}),
        post("/load_weights", {"path": f"tinker://{model}/weights/kept", "model_id": model}),
        post("/weights_info", {"tinker_path": f"tinker://{model}/weights/kept"}),
        post(
            "/create_sampling_session",
            {"session_id": session, "sampling_session_seq_id": 7, "base_model": "tiny"},
        ),
        post("/asample", sample_body(sampler, None, prompt_logprobs=True, topk_prompt_logprobs=2)),
        post("/retrieve_future", {"request_id": "r-1", "allow_metadata_only": True}),
        post("/cancel_future", {"request_id": "r-1"}),
        post("/retrieve_futures", watched(sampler)),
        post("/join_sampling_session", {"sampling_session_id": sampler}),
        post("/save_weights_external", {"model_id": model, "path": "e", "seq_id": None}),
        post("/create_custom_loss", {**loss, "session_id": session}),
        post("/copy_weights", {"source_path": kept, "destination_project_id": "p"}),
        post("/sessions/search", json.loads(corpus.RECORDS["SessionSearchRequest"])),
        post(f"/sessions/{session}/finish", {"reason": {"type": "success"}, "detail": None}),
        post("/telemetry", json.loads(corpus.MESSAGES["TelemetrySendRequest"])),
        Target("PUT", f"/sessions/{session}/project", b'{"project_id":"p"}', {}),
        *(Target("GET", path, b"", {}) for path in asked(session, run)),
        Target("GET", "/training_runs?limit=3&offset=1", b"", {}),
        Target("GET", run, b"", {}),
        Target("GET", f"{run}/checkpoints", b"", {}),
        Target("GET", "/checkpoints?limit=1&offset=0", b"", {}),
        Target("GET", f"/samplers/{sampler}", b"", {}),
        Target("POST", f"{run}/checkpoints/weights/kept/publish", b"", {}),
        Target("PUT", f"{run}/checkpoints/weights/kept/ttl", b'{"ttl_seconds":5}', {}),
        Target("DELETE", f"{run}/checkpoints/weights/no", b"", {}),
    ]


def watched(sampler: str) -> dict[str, Any]:
    """The body of a session poller's request that is answered at once."""
    body = json.loads(corpus.MESSAGES["RetrieveFuturesRequest"])
    target = {"type": "sampling_session", "sampling_session_id": sampler, "cloned_sampler_id": 0}
    return {**body, "target": target, "prev_cursor": 0, "timeout": 0}


def asked(session: str, run: str) -> list[str]:
    """Paths that are only read."""
    hours = "starting_on=2026-07-13T00:00:00Z&ending_before=2026-07-14T00:00:00Z"
    return [
        "/sessions?limit=3&offset=1&access_scope=accessible",
        f"/sessions/{session}",
        f"/sessions/{session}/trace_export",
        f"{run}/checkpoints/weights/kept/archive",
        f"{run}/checkpoints/external_weights/kept/external_weights_urls",
        f"/downloads/weights/{run.rpartition('/')[2]}/weights/kept/a?expires=1&signature=0",
        f"/billing/usage/events?{hours}",
        "/billing/usage/checkpoints/current?project_id=p",
        "/audit?event_type=all&date=2026-07-13",
    ]


def hurt(rng: Random, target: Target, bodies: list[bytes]) -> Target:
    """Damage a request: most often its body, sometimes its path or headers."""
    method, path, body, headers = target.method, target.path, target.body, dict(target.headers)
    if body and rng.random() < 0.9:
        if headers.get("content_encoding") == "zstd" and rng.random() < 0.7:
            plain = zstandard.decompress(body)
            body = zstandard.compress(damaged_protobuf(rng, plain, bodies))
        elif headers:
            body = damaged_protobuf(rng, body, bodies)
        else:
            body = damaged_json(rng, body, bodies)
    if not body or rng.random() < 0.05:
        path = damaged(rng, path.encode(), [b"/training_runs"]).decode("latin-1")
        path = "/" + path.lstrip("/").replace("#", "")
    if rng.random() < 0.05:
        method = rng.choice(("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"))
    if rng.random() < 0.05:
        headers["content_type"] = rng.choice((PROTOBUF, "", "text/plain; charset=\xff", "x" * 5000))
    if rng.random() < 0.05:
        headers["content_encoding"] = rng.choice(("zstd", "gzip", "identity", "zstd, zstd", ""))
    return Target(method, path, body, headers)


def check(reply: Reply) -> None:
    """Take a success, or a refusal in the official form."""
    assert reply.status in {200, 204, 302} or 400 <= reply.status < 500, reply
    if reply.status >= 400:
        assert isinstance(reply.json["detail"], str), reply
        assert KEY not in reply.json["detail"]


async def settled(desk: Desk, promise: Any) -> Any:
    """Return the result of a promise; polls are hardly held here."""
    with anyio.fail_after(10):
        while (result := await desk.result(promise)).get("type") == "try_again":
            pass
    return result


async def made(desk: Desk, session: str) -> str:
    """Return the id of a new model."""
    body = {"session_id": session, "model_seq_id": 0, "base_model": "tiny"}
    return str((await settled(desk, await desk.ok("/create_model", body)))["model_id"])


async def ready(desk: Desk) -> list[Target]:
    """Make what the requests are about; return them."""
    session = await desk.session()
    model = await made(desk, session)
    await settled(desk, await desk.ok("/save_weights", {"model_id": model, "path": "kept"}))
    body = {"session_id": session, "sampling_session_seq_id": 0, "base_model": "tiny"}
    sampler = await desk.ok("/create_sampling_session", body)
    return targets(session, model, str(sampler["sampling_session_id"]))


async def test_damaged_requests_are_refused_and_the_server_lives_on(tmp_path: Path) -> None:
    """No damaged request makes the server fail, and a good one still works afterwards."""
    async with open_desk(tmp_path, QuickEngine(), LIMITS) as desk:
        wanted = await ready(desk)
        bodies = [target.body for target in wanted if target.body]
        # The case is a number for chance, so that it can be told in one line.
        numbers = range(10**6)

        async def ask(case: bytes) -> None:
            rng = Random(case)
            target = hurt(rng, rng.choice(wanted), bodies)
            try:
                check(await desk.send(target.method, target.path, target.body, **target.headers))
            except Exception as error:
                error.add_note(repr(target)[:2000])
                raise

        await afuzz("server-request", lambda rng: b"%d" % rng.choice(numbers), ask, cases=1500)
        model = await made(desk, await desk.session())
        promise = await desk.ok(
            "/forward_backward", forward_backward_body(model, 1), content_type=PROTOBUF
        )
        assert {"loss:sum": 1.0} == (await settled(desk, promise))["metrics"]


@pytest.mark.parametrize("levels", [1, 2])
async def test_a_bomb_for_the_server_is_refused_in_bounded_memory(
    tmp_path: Path, levels: int
) -> None:
    """A body that decompresses to far more than the limit is 413, without taking the space."""
    body = bytes(1 << 28)
    for _ in range(levels):
        body = zstandard.compress(body)
    async with open_desk(tmp_path, QuickEngine(), LIMITS) as desk:
        wanted = {"content_type": PROTOBUF, "content_encoding": "zstd"}
        with peak_within(len(body), free_bytes=16 << 20):
            reply = await desk.post("/forward_backward", body, **wanted)
    assert (413 if levels == 1 else 400) == reply.status


# On a real socket: what is not even HTTP


@asynccontextmanager
async def hosted(folder: Path) -> AsyncIterator[int]:
    """Run the server on a port, with an engine that answers at once."""
    listener = bind("127.0.0.1", 0)
    port = int(listener.getsockname()[1])
    stopping, up = anyio.Event(), anyio.Event()
    site = Site(QuickEngine(), CARD, folder, folder, KEY, LIMITS)

    async def run() -> None:
        await host(site, listener, stopping=stopping, ready=up.set)

    with lock_folder(folder):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await up.wait()
            yield port
            stopping.set()


def request(path: str, body: bytes, *more: str) -> bytes:
    head = [f"POST /api/v1{path} HTTP/1.1", "host: here", f"x-api-key: {KEY}", *more]
    return "\r\n".join([*head, f"content-length: {len(body)}", "", ""]).encode() + body


GOOD = request(
    "/create_session", b'{"tags":[],"user_metadata":{},"sdk_version":"0"}', "connection: close"
)
RAW = (
    GOOD,
    request("/asample", b"{}"),
    GOOD.replace(b"content-length: 48", b"transfer-encoding: chunked\r\nx: 1").replace(
        b"{", b"30\r\n{", 1
    )
    + b"\r\n0\r\n\r\n",
    (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
        b"\x00\x00\x01\x01\x05\x00\x00\x00\x01\x82"
    ),
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 500,
)


ANSWER_S = 0.05
"""What is no whole request is never answered: nobody waits for long."""


async def exchange(port: int, data: bytes) -> bytes:
    """Send bytes, then nothing more; return what comes back before we hang up."""
    stream: ByteStream
    received = b""
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        with anyio.move_on_after(ANSWER_S), suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            await stream.send(data)
            while len(received) < 1 << 20:
                received += await stream.receive()
    return received


async def test_bytes_that_are_not_http_leave_the_server_alive(tmp_path: Path) -> None:
    """Whatever is sent to the port, the connection ends and good requests are served."""
    async with hosted(tmp_path) as port:

        async def ask(data: bytes) -> None:
            answer = await exchange(port, data)
            assert KEY.encode() not in answer
            if not answer.startswith(b"HTTP/1.1 501"):  # a transfer-encoding that nobody knows
                assert not answer.startswith(b"HTTP/1.1 5"), answer

        await afuzz("server-bytes", lambda rng: damaged(rng, rng.choice(RAW), RAW), ask, cases=80)
        with anyio.fail_after(5):
            while not (answer := await exchange(port, GOOD)):
                pass
    assert answer.startswith(b"HTTP/1.1 200"), answer
