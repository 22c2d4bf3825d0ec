"""zstd for training data: only when the server asks, never in the event loop, never required."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import Any

import anyio
import numpy as np
import pytest
import structlog
import zstandard
from support.scripted import Call, ScriptedServer

from tinker_async import AdamParams, Datum, ModelInput, Session
from tinker_async.background.compression import LEAST_BYTES, Compression
from tinker_async.transport import Buffer
from tinker_async.wire.training import decode_forward_backward

ASKS_FOR_ZSTD = {"proto_compress_fwdbwd": True}


def data(tokens: int, rows: int = 1) -> list[Datum]:
    values = np.arange(tokens)
    return [
        Datum(
            ModelInput.from_ints(values + row),
            {"target_tokens": values, "weights": np.ones(tokens, np.float32)},
        )
        for row in range(rows)
    ]


async def train(session: Session, batch: list[Datum]) -> None:
    with anyio.fail_after(10):
        async with session:
            trainer = await session.create_lora_training_client("m")
            step = (
                trainer.forward_backward(batch, "cross_entropy"),
                trainer.optim_step(AdamParams()),
            )
            for future in step:
                await future


def answer_training(server: ScriptedServer, config: dict[str, Any]) -> None:
    output = {"loss_fn_output_type": "x", "loss_fn_outputs": [], "metrics": {}}
    server.on("client/config", lambda _: config)
    server.on("retrieve_future", lambda _: {"model_id": "s1:train:0", **output})


async def test_training_data_are_compressed_for_a_server_that_asks(
    server: ScriptedServer, session: Session
) -> None:
    """The header says so, the content is the same, its size is in the frame; no other request is."""
    answer_training(server, ASKS_FOR_ZSTD)
    batch = data(4096, rows=3)
    await train(session, batch)

    (call,) = server.seen("forward_backward")
    assert "zstd" == call.headers["content-encoding"]
    assert "application/x-protobuf" == call.headers["content-type"]
    plain = zstandard.ZstdDecompressor().decompress(call.body)
    assert 3 * 16 * 4096 < len(plain)
    assert len(call.body) < len(plain) / 2
    assert batch == decode_forward_backward(plain).data
    others = [call for call in server.calls if not call.path.endswith("forward_backward")]
    assert not [call.path for call in others if "content-encoding" in call.headers]


@pytest.mark.parametrize(
    ("config", "tokens"),
    [({}, 4096), ({"proto_compress_fwdbwd": False}, 4096), (ASKS_FOR_ZSTD, 16)],
)
async def test_other_data_go_as_they_are(
    server: ScriptedServer, session: Session, config: dict[str, Any], tokens: int
) -> None:
    """Without the server's wish, and where there is nothing to gain."""
    answer_training(server, config)
    batch = data(tokens)
    await train(session, batch)

    (call,) = server.seen("forward_backward")
    assert "content-encoding" not in call.headers
    assert batch == decode_forward_backward(call.body).data


async def test_a_repeated_request_is_the_same_compressed_body(
    server: ScriptedServer, session: Session
) -> None:
    """Under the same number: it is compressed once."""
    answer_training(server, ASKS_FOR_ZSTD)
    refusals = [(503, {"retry-after-ms": "1"}, b"busy")]
    server.on("forward_backward", lambda _: refusals.pop() if refusals else server.promise())
    await train(session, data(4096))

    first, second = server.seen("forward_backward")
    assert first.body == second.body
    assert ["zstd", "zstd"] == [call.headers["content-encoding"] for call in (first, second)]


async def test_without_the_library_data_go_as_they_are_and_the_log_says_so_once(
    server: ScriptedServer, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wish is the server's, the extra the user's."""
    monkeypatch.setitem(sys.modules, "zstandard", None)
    answer_training(server, ASKS_FOR_ZSTD)
    with structlog.testing.capture_logs() as logs:
        await train(session, data(4096))

    (call,) = server.seen("forward_backward")
    assert "content-encoding" not in call.headers
    told = [entry for entry in logs if entry["event"] == "zstd_not_installed"]
    assert ["pip install 'tinker-async[zstd]'"] == [entry["hint"] for entry in told]


class _Watched:
    """The library, noting in which thread it works."""

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def ZstdCompressor(self, level: int) -> Any:  # noqa: N802  # the library's name
        watched, compressor = self, zstandard.ZstdCompressor(level=level)

        class Compressor:
            def compressobj(self, size: int) -> Any:
                watched.threads.add(threading.get_ident())
                return compressor.compressobj(size=size)

        return Compressor()


async def test_compressing_happens_in_a_worker_thread_of_its_own_limiter() -> None:
    """Not in the event loop, and one body at a time."""
    library = _Watched()
    compression = Compression(library)
    body: Sequence[Buffer] = (b"a" * LEAST_BYTES, memoryview(b"b" * 10), b"")
    found: list[Any] = []

    async def compress() -> None:
        found.append(await compression.compressed(body))

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(compress)

    assert 1 == compression.threads.total_tokens
    assert library.threads
    assert threading.get_ident() not in library.threads
    assert 3 == len(found)
    for parts in found:
        plain = zstandard.ZstdDecompressor().decompress(b"".join(parts))
        assert b"".join(body) == plain


async def test_a_custom_loss_is_compressed_both_ways(
    server: ScriptedServer, session: Session
) -> None:
    """Its requests are `forward_backward` too, whatever their number."""
    pytest.importorskip("torch")
    answer_training(server, ASKS_FOR_ZSTD)
    batch = data(4096)

    def total(_: Any, found: list[Any]) -> tuple[Any, dict[str, float]]:
        return found[0].sum(), {}

    def logprobs(_: Call) -> Any:
        output = {"logprobs": {"data": [-1.0] * 4096, "dtype": "float32", "shape": [4096]}}
        return {"loss_fn_output_type": "x", "loss_fn_outputs": [output], "metrics": {}}

    server.on(
        "retrieve_future",
        lambda call: (
            logprobs(call) if call.json["request_id"] != "r1" else {"model_id": "s1:train:0"}
        ),
    )
    with anyio.fail_after(10):
        async with session:
            trainer = await session.create_lora_training_client("m")
            await trainer.forward_backward_custom(batch, total)

    calls = server.seen("forward_backward")
    assert ["zstd", "zstd"] == [call.headers.get("content-encoding") for call in calls]
