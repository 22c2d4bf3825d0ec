"""The rarer types, with the genuine official client as the judge.

Both clients make the same calls to a fake server of their own. What each sent is compared request
by request, with defaults left out, and so is what each was given back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from official.endpoints import COMPARED

import tinker_async as ta
from tinker_async.testing import FakeService, endpoints_training, routing
from tinker_async.wire.messages import ClientConfigResponse
from tinker_async.wire.training import decode_forward_backward

torch = pytest.importorskip("torch")
pytest.importorskip("tinker", reason="the official client is in the extra `judge`")

CONVERSATION = Path(__file__).with_name("types_conversation.py")
BOUND_S = 300
DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(("train_mlp", "train_attn", "train_unembed"), True),
    **dict.fromkeys(("prompt_logprobs", "record_stability_info", "overwrite"), False),
    **dict.fromkeys(("topk_prompt_logprobs", "topk_sample_logprobs", "prompt_alt_tokens_k"), 0),
    "temperature": 1.0,
    "top_k": -1,
    "top_p": 1.0,
    "num_samples": 1,
    "kind": "snapshot",
}
"""Fields that one client sends at their default, and the other leaves out."""
ONE = ta.SamplingParams(max_tokens=1, seed=3)

Requests = dict[str, list[Any]]


class Recorder:
    """Keeps what the fake server parses, by endpoint: bodies, and training data as messages."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: Requests = defaultdict(list)
        parse, decode = routing.Call.parse, decode_forward_backward
        recorder = self

        def parsed(call: Any, type_: Any) -> Any:
            recorder.requests[call.entry.endpoint].append(json.loads(call.body))
            return parse(call, type_)

        def decoded(body: Any) -> Any:
            recorder.requests["forward_backward"].append(bytes(body))
            return decode(body)

        monkeypatch.setattr(routing.Call, "parse", parsed)
        monkeypatch.setattr(endpoints_training, "decode_forward_backward", decoded)

    def taken(self) -> Requests:
        found, self.requests = self.requests, defaultdict(list)
        return found


def fake() -> FakeService:
    return FakeService(config=ClientConfigResponse(custom_loss_server_side=True))


async def official() -> dict[str, Any]:
    service = fake()
    async with service.serve() as url:
        with anyio.fail_after(BOUND_S):
            process = await anyio.run_process(
                [sys.executable, str(CONVERSATION), url, service.api_key],
                env={**os.environ, "TINKER_TELEMETRY": "0", "OMP_NUM_THREADS": "1"},
                stderr=subprocess.PIPE,
                check=False,
            )
    assert process.returncode == 0, process.stderr.decode()
    found: dict[str, Any] = json.loads(process.stdout)
    return found


# The same with our client


def mixed() -> ta.ModelInput:
    return (
        ta.ModelInput.from_ints([1, 2, 3])
        .append(ta.ImageChunk(b"\x89PNG" + bytes(range(256)) * 40, "png", 2))
        .append_int(4)
        .append(ta.DmelChunk(bytes([3, 2, 5, 80]) + b"rows"))
    )


def marked() -> ta.Datum:
    span = ta.SampledProvenanceSpan(sequence_id="s1:sample:0:0:0", offset=2, length=9)
    prompt = ta.PromptProvenanceSpan(sequence_id="s1:sample:0:0:0", length=2)
    datum = ta.Datum(mixed(), {"target_tokens": list(range(11)), "weights": [1.0] * 11})
    return datum.with_provenance([prompt, span], [prompt, span])


def sparse() -> ta.Datum:
    targets, weights = torch.zeros(3, 8, dtype=torch.int64), torch.zeros(3, 8)
    targets[0, 1], weights[0, 1] = 9, 0.5
    inputs = {"target_tokens": targets, "weights": weights}
    return ta.Datum(ta.ModelInput.from_ints([1, 2, 3]), inputs)


def plain() -> ta.Datum:
    inputs: dict[str, Any] = {"target_tokens": [2, 3, 4], "weights": [1.0, 0.5, 0.0]}
    return ta.Datum(ta.ModelInput.from_ints([1, 2, 3]), inputs)


def weighted(logprobs: Any, weights: Any) -> Any:
    loss = -(logprobs * weights).sum()
    return loss, {"custom/loss:sum": loss, "custom/mean:mean": logprobs.mean()}


async def ours() -> dict[str, Any]:
    found: dict[str, Any] = {}
    with anyio.fail_after(BOUND_S):
        async with fake().session() as session:
            trainer = await training(session, found)
            await weights(session, trainer, found)
            await sampling(session, trainer, found)
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]  # tuples are lists there


async def training(session: ta.Session, found: dict[str, Any]) -> ta.TrainingClient:
    trainer = await session.create_lora_training_client(
        "toy", rank=4, seed=1, optimizer=ta.DimuonOptimizerConfig()
    )
    found["optimizer"] = (await trainer.get_info()).optimizer_config
    output = await trainer.forward_backward([marked(), sparse()], "cross_entropy")
    found["loss"] = output.metrics["loss:sum"]
    found["shapes"] = [one["logprobs"].dense_shape for one in output.loss_fn_outputs]
    await trainer.optim_step(ta.DimuonParams(learning_rate=0.01, beta1=0.5))
    handle = await session.create_custom_loss(weighted, {"logprobs": 1, "weights": 1})
    found["loss_id"] = handle.loss_id
    custom = await trainer.forward_backward_custom([plain()], handle)
    found["custom"] = dict(sorted(custom.metrics.items()))
    with pytest.raises(ta.RequestFailedError) as caught:
        await trainer.forward([plain()], "ppo_x", {"mode": "x", "eps": 0.5})
    found["ppo"] = caught.value.category
    return trainer


async def weights(session: ta.Session, trainer: ta.TrainingClient, found: dict[str, Any]) -> None:
    path = (await trainer.save_state("a", 3600, True, {"k": "v"})).path
    await trainer.save_weights_for_sampler("b", 3600, {"k": "w"})
    found["external"] = (await trainer.save_weights_external("c", 7200, ["age1q"])).path
    again = await session.create_training_client_from_state_with_optimizer(
        path, "toy", {"m": "n"}, "token"
    )
    await again.optim_step(ta.DimuonParams(learning_rate=0.01))
    fresh = await session.create_training_client_from_state(
        path, None, None, None, ta.DimuonOptimizerConfig()
    )
    await fresh.optim_step(ta.DimuonParams(learning_rate=0.01))


def without_nan(array: Any) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in array]


async def sampling(session: ta.Session, trainer: ta.TrainingClient, found: dict[str, Any]) -> None:
    sampler = await trainer.save_weights_and_get_sampling_client(
        kind="inflight", record_stability_info=True
    )
    prompt = ta.ModelInput.from_ints([1, 2, 3, 4])
    ids = torch.full((3, 9), -1)
    ids[2, 4] = 7
    response = await sampler.sample(
        prompt,
        ONE,
        1,
        include_prompt_logprobs=True,
        topk_sample_logprobs=2,
        target_prompt_logprobs=ta.TensorData.from_torch_sparse(ids, pad_value=-1),
        prompt_alt_tokens_k=2,
        prompt_logprobs_last_n=2,
    )
    assert response.target_prompt_logprobs is not None
    assert response.prompt_alt_tokens is not None
    assert response.sequences[0].topk_logprobs is not None
    found["prompt_logprobs"] = without_nan(response.prompt_logprobs)
    found["target"] = response.target_prompt_logprobs.tolist()
    found["alternatives"] = response.prompt_alt_tokens.tokens.tolist()
    found["alternative_logprobs"] = response.prompt_alt_tokens.logprobs.tolist()
    found["topk"] = response.sequences[0].topk_logprobs.tolist()
    pointer = ta.ImageAssetPointerChunk("jpeg", "s3://x", 3)
    found["of_images"] = without_nan(await sampler.compute_logprobs(mixed().append(pointer)))
    base = await session.create_sampling_client(base_model="toy")
    found["text"] = (await base.sample(prompt, ONE, 1)).sequences[0].tokens.tolist()


# Held against each other


def sparingly(value: Any) -> Any:
    """A body without what is at its default, so that who says it and who does not are alike."""
    if isinstance(value, list):
        return [sparingly(part) for part in value]
    if not isinstance(value, dict):
        return value
    return {
        key: sparingly(part)
        for key, part in value.items()
        if key not in DEFAULTS or part != DEFAULTS[key]
    }


@pytest.fixture(scope="module")
def of_theirs() -> tuple[Any, Requests]:
    """What the official client found, and what it sent."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        recorder = Recorder(monkeypatch)
        return anyio.run(official), recorder.taken()


@pytest.fixture(
    scope="module",
    params=[("asyncio", {}), ("asyncio", {"use_uvloop": True}), ("trio", {})],
    ids=["asyncio", "uvloop", "trio"],
)
def both(request: pytest.FixtureRequest, of_theirs: Any) -> tuple[Any, tuple[Any, Requests]]:
    """What each client found, and what it sent; ours on each event loop."""
    backend, options = request.param
    with pytest.MonkeyPatch.context() as monkeypatch:
        recorder = Recorder(monkeypatch)
        found = anyio.run(ours, backend=backend, backend_options=options)
        return of_theirs, (found, recorder.taken())


def test_both_clients_are_given_the_same(both: Any) -> None:
    (theirs, _), (found, _) = both

    assert theirs.keys() == found.keys()
    for name, value in theirs.items():
        assert value == found[name], name


def test_training_data_are_the_same_messages(both: Any) -> None:
    """Images, audio, spans, CSR and texts in the config: equal as the official runtime reads them."""
    from tinker.proto import tinker_public_pb2 as pb

    (_, theirs), (_, found) = both
    read = pb.ForwardBackwardRequest.FromString

    assert len(theirs["forward_backward"]) == 3
    assert [read(body) for body in theirs["forward_backward"]] == [
        read(body) for body in found["forward_backward"]
    ]


@pytest.mark.parametrize(
    "endpoint",
    [
        one.removeprefix("POST /")
        for one in COMPARED["test_types"]
        if one != "POST /forward_backward"  # a message: above
    ],
)
def test_bodies_are_the_same_but_for_defaults(both: Any, endpoint: str) -> None:
    """Request by request, in order."""
    (_, theirs), (_, found) = both

    assert theirs[endpoint]
    assert sparingly(theirs[endpoint]) == sparingly(found[endpoint])
