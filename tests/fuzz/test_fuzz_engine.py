"""Damaged training data and prompts that the server accepts: the engine refuses them and lives on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np
import pytest
from fuzz.harness import fuzz
from fuzz.mutations import damaged_json, damaged_protobuf, delimited, varint
from server.processes import RunningServer, start_server

from tinker_async.data.datum import Datum
from tinker_async.data.model_input import ModelInput
from tinker_async.data.tensors import TensorData
from tinker_async.wire.training import encode_forward_backward

PROTOBUF = "application/x-protobuf"
PROMPT = ModelInput.from_ints(list(range(20)))
WIDE = TensorData.from_value("target_tokens", np.eye(20, dtype=np.int64))
SPARSE = TensorData.from_value("weights", np.eye(20, dtype=np.float32))
DATA = [
    Datum(PROMPT, {"target_tokens": list(range(20)), "weights": [1.0] * 20}),
    Datum(PROMPT, {"target_tokens": WIDE, "weights": SPARSE}),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server process with the tiny Llama."""
    with start_server(tmp_path_factory.mktemp("fuzz") / "data") as running:
        yield running


def body(model_id: str, data: list[Datum], seq_id: int = 0) -> bytes:
    return b"".join(
        encode_forward_backward(
            model_id=model_id,
            seq_id=seq_id,
            data=data,
            loss_fn="cross_entropy",
            loss_fn_config=None,
            forward_only=False,
        )
    )


def ones(columns: int) -> TensorData:
    """A sparse tensor that says of a few numbers that they are a huge matrix."""
    return TensorData(
        data=np.ones(20, np.int64),
        dtype="int64",
        shape=(20, columns),
        sparse_crow_indices=np.arange(21),
        sparse_col_indices=np.zeros(20, np.int64),
    )


def ended(server: RunningServer, reply: tuple[int, dict[str, str], bytes]) -> None:
    """Wait for what was accepted; the server's own failures count as faults."""
    status, _, content = reply
    assert status < 500, content
    if status == 200:
        result = server.result(json.loads(content))
        assert result.get("category") != "server", result


def test_the_engine_outlives_damaged_data(server: RunningServer) -> None:
    """Data and prompts that decode but make no sense fail their own request, as the user's fault."""
    model = server.model()
    session = model.partition(":")[0]
    made = {"session_id": session, "sampling_session_seq_id": 0, "base_model": server.models[0]}
    sampler = server.post("/create_sampling_session", made)["sampling_session_id"]
    chunks: dict[str, Any] = {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3, 4]}]}
    params: dict[str, Any] = {"max_tokens": 2, "seed": 1, "stop": ["a"], "top_k": 3, "top_p": 0.5}
    sample = {"prompt": chunks, "sampling_params": {**params, "temperature": 0.7}, "num_samples": 2}
    sample |= {"sampling_session_id": sampler, "topk_sample_logprobs": 2, "prompt_logprobs": True}
    training = [body(model, DATA[:1]), body(model, DATA[1:]), body(model, DATA)]
    prompts = [json.dumps(sample).encode()]

    def case(rng: Random) -> bytes:
        if rng.random() < 0.5:
            return damaged_protobuf(rng, rng.choice(training), training)
        return b"{" + damaged_json(rng, prompts[0], prompts)

    number = 1

    def train(data: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send data as the model's next request: of a field, the last value counts."""
        nonlocal number
        last = delimited(1, model.encode()) + varint(2 << 3) + varint(number)
        reply = server.send("POST", "/forward_backward", data + last, content_type=PROTOBUF)
        number += reply[0] == 200
        return reply

    def ask(data: bytes) -> None:
        sampled = data.startswith(b"{")
        ended(server, server.send("POST", "/asample", data[1:]) if sampled else train(data))

    fuzz("engine", case, ask, cases=120, allowed=())
    assert "error" not in server.result(json.loads(train(training[2])[2]))
    assert "error" not in server.result(server.post("/asample", sample))


@pytest.mark.parametrize("columns", [2**16, 2**40])
def test_a_matrix_wider_than_the_vocabulary_is_refused(server: RunningServer, columns: int) -> None:
    """A sparse tensor of a kilobyte is not made a matrix of terabytes: it is the user's fault."""
    model = server.model()
    data = [Datum(PROMPT, {"target_tokens": ones(columns), "weights": ones(columns)})]
    ended(
        server,
        server.send("POST", "/forward_backward", body(model, data, 1), content_type=PROTOBUF),
    )
