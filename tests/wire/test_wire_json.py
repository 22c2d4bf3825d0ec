"""JSON bodies, judged by the official models where they exist."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.wire_values import (
    finite_datums,
    official_input,
    prompts,
    quick,
    samples,
    sparse_tensors,
    texts,
)
from tinker import types
from tinker.types._pydantic_types.forward_backward_input import (
    ForwardBackwardInput as OfficialForwardBackwardInput,
)

from tinker_async.data.datum import Datum
from tinker_async.data.media import DmelChunk, ImageAssetPointerChunk, ImageChunk
from tinker_async.data.model_input import ModelInput
from tinker_async.data.params import AdamParams, LoraConfig, SamplingParams
from tinker_async.data.results import (
    ForwardBackwardOutput,
    OptimStepResponse,
    SampledSequence,
    SampleResponse,
    TopkLogprobs,
)
from tinker_async.data.tensors import TensorData
from tinker_async.wire import messages
from tinker_async.wire.json import (
    decode,
    encode,
    forward_backward_output_from_json,
    forward_backward_output_to_json,
    sample_response_from_json,
    sample_response_to_json,
)
from tinker_async.wire.protobuf import DecodeError

PROMPT = ModelInput.from_ints([1, 2, 3])
TARGET = TensorData.from_numpy(np.array([[1, -1], [2, 3]]))

REQUESTS: list[tuple[msgspec.Struct, type[Any]]] = [
    (messages.CreateSessionRequest(["a"], {"k": None}, "0.1"), types.CreateSessionRequest),
    (
        messages.CreateSessionRequest([], None, "0.1", project_id="p", display_name="d"),
        types.CreateSessionRequest,
    ),
    (messages.SessionHeartbeatRequest("s"), types.SessionHeartbeatRequest),
    (messages.RetrieveFutureRequest("r", allow_metadata_only=True), types.FutureRetrieveRequest),
    (messages.CreateModelRequest("s", 0, "base"), types.CreateModelRequest),
    (
        messages.CreateModelRequest(
            "s",
            1,
            "base",
            lora_config=LoraConfig(rank=8, seed=3, train_mlp=False),
            user_metadata={"a": 1},
            optimizer_config={"type": "adamw"},
        ),
        types.CreateModelRequest,
    ),
    (messages.ModelRequest("m"), types.GetInfoRequest),
    (messages.ModelRequest("m", type="unload_model"), types.UnloadModelRequest),
    (messages.OptimStepRequest("m", 3, AdamParams()), types.OptimStepRequest),
    (messages.SaveWeightsRequest("m", path="n", seq_id=4), types.SaveWeightsRequest),
    (
        messages.SaveWeightsRequest(
            "m", ttl_seconds=3600, overwrite=True, user_metadata={"a": "b"}
        ),
        types.SaveWeightsRequest,
    ),
    (
        messages.LoadWeightsRequest("tinker://a/weights/b", True, model_id="m", seq_id=1),
        types.LoadWeightsRequest,
    ),
    (
        messages.LoadWeightsRequest(
            "tinker://a/weights/b",
            optimizer=False,
            session_id="s",
            model_seq_id=1,
            weights_access_token="t",
        ),
        types.LoadWeightsRequest,
    ),
    (messages.SaveWeightsForSamplerRequest("m", path="x"), types.SaveWeightsForSamplerRequest),
    (
        messages.SaveWeightsForSamplerRequest("m", sampling_session_seq_id=0, kind="inflight"),
        types.SaveWeightsForSamplerRequest,
    ),
    (
        messages.CreateSamplingSessionRequest("s", 2, model_path="tinker://a/sampler_weights/b"),
        types.CreateSamplingSessionRequest,
    ),
    (messages.JoinSamplingSessionRequest("s"), types.JoinSamplingSessionRequest),
    (messages.SampleRequest(PROMPT, SamplingParams(max_tokens=5)), types.SampleRequest),
    (
        messages.SampleRequest(
            PROMPT,
            SamplingParams(seed=1, stop=["a", "b"], temperature=0, top_k=2, top_p=0.5),
            num_samples=4,
            sampling_session_id="s",
            seq_id=0,
            prompt_logprobs=True,
            topk_prompt_logprobs=2,
            topk_sample_logprobs=3,
            target_prompt_logprobs=TARGET,
            prompt_logprobs_last_n=2,
            record_stability_info=True,
        ),
        types.SampleRequest,
    ),
    (messages.SampleRequest(PROMPT, SamplingParams(stop=[5, 6])), types.SampleRequest),
]
IDS = [f"{i}-{type(ours).__name__}" for i, (ours, _) in enumerate(REQUESTS)]


@pytest.mark.parametrize(("ours", "official"), REQUESTS, ids=IDS)
def test_the_official_models_accept_our_requests_strictly(
    ours: msgspec.Struct, official: type[Any]
) -> None:
    """Validated without coercion and without unknown fields, no value is lost."""
    body = encode(ours)

    accepted = official.model_validate_json(body, strict=True)
    sent, kept = json.loads(body), json.loads(accepted.model_dump_json())
    assert {key: value for key, value in sent.items() if key != "prompt"}.items() <= {
        key: _pruned(value, sent.get(key)) for key, value in kept.items()
    }.items()


def _pruned(kept: Any, sent: Any) -> Any:
    """Leave out of nested objects what was not sent: the official defaults."""
    if isinstance(kept, dict) and isinstance(sent, dict):
        return {key: _pruned(value, sent[key]) for key, value in kept.items() if key in sent}
    return kept


@pytest.mark.parametrize("ours", [ours for ours, _ in REQUESTS], ids=IDS)
def test_requests_decode_to_what_was_encoded(ours: msgspec.Struct) -> None:
    """What the client writes, the server reads."""
    found: Any = decode(encode(ours), type(ours))

    for name in ours.__struct_fields__:
        assert getattr(ours, name) == getattr(found, name)


@pytest.mark.parametrize(
    ("ours", "captured"),
    [
        (messages.ClientConfigRequest("0.38.0"), {"sdk_version": "0.38.0"}),
        (
            messages.RetrieveFutureRequest("r1", allow_metadata_only=True),
            {"request_id": "r1", "allow_metadata_only": True},
        ),
        (messages.ModelRequest("m"), {"model_id": "m", "type": "get_info"}),
        (
            messages.OptimStepRequest("m", 3, AdamParams()),
            {
                "model_id": "m",
                "seq_id": 3,
                "type": "optim_step",
                "adam_params": {
                    "learning_rate": 0.0001,
                    "beta1": 0.9,
                    "beta2": 0.95,
                    "eps": 1e-12,
                },
            },
        ),
        (
            messages.FinishSessionRequest(messages.FinishReason("success")),
            {"reason": {"type": "success"}, "detail": None},
        ),
        (
            messages.SampleRequest(PROMPT, SamplingParams()),
            {
                "prompt": {"chunks": [{"tokens": [1, 2, 3], "type": "encoded_text"}]},
                "sampling_params": {},
                "type": "sample",
            },
        ),
    ],
)
def test_bodies_are_those_of_the_official_client(
    ours: msgspec.Struct, captured: dict[str, Any]
) -> None:
    """The captured bodies, but for fields at their default."""
    assert captured == json.loads(encode(ours))


@quick
@given(data=st.lists(finite_datums, max_size=3))
def test_training_data_in_json_is_what_the_official_models_mean(data: list[Datum]) -> None:
    """The official model reads our data, and we read it back."""
    config: dict[str, float | str] = {"beta": 0.5, "mode": "x"}
    wanted = messages.ForwardBackwardInput(data, "cross_entropy", config)
    request = messages.ForwardBackwardRequest("m", 1, wanted)
    body = encode(request)

    read = OfficialForwardBackwardInput.model_validate_json(encode(wanted))
    for theirs, ours in zip(read.data, data, strict=True):
        assert theirs.model_input.to_ints() == ours.model_input.to_ints()
        for key, tensor in ours.loss_fn_inputs.items():
            assert theirs.loss_fn_inputs[key].data == tensor.data.tolist()
            assert theirs.loss_fn_inputs[key].dtype == tensor.dtype
    assert data == decode(body, messages.ForwardBackwardRequest).forward_backward_input.data


@quick
@given(prompt=prompts)
def test_prompts_of_every_kind_of_chunk_are_what_the_official_models_mean(
    prompt: ModelInput,
) -> None:
    """Each reads what the other wrote; files are base64."""
    official = official_input(prompt)

    assert official == type(official).model_validate_json(encode(prompt))
    assert prompt == decode(official.model_dump_json(exclude_none=True).encode(), ModelInput)


@pytest.mark.parametrize(
    ("chunk", "captured"),
    [
        (ImageChunk(b"ab", "png"), {"data": "YWI=", "format": "png", "type": "image"}),
        (DmelChunk(b"\0\1\5"), {"dmel": "AAEF", "type": "dmel"}),
        (
            ImageAssetPointerChunk("jpeg", "l", 3),
            {
                "format": "jpeg",
                "location": "l",
                "expected_tokens": 3,
                "type": "image_asset_pointer",
            },
        ),
    ],
)
def test_chunks_are_written_as_the_official_client_writes_them(
    chunk: Any, captured: dict[str, Any]
) -> None:
    """The captured bodies."""
    assert {"chunks": [captured]} == json.loads(encode(ModelInput((chunk,))))


@quick
@given(tensor=sparse_tensors, prompt=prompts)
def test_tensors_and_inputs_survive_json(tensor: TensorData, prompt: ModelInput) -> None:
    """CSR indices and chunks come back as they were."""
    assert tensor == decode(encode(tensor), TensorData)
    assert prompt == decode(encode(prompt), ModelInput)


def test_a_tensor_leaves_out_what_it_has_not() -> None:
    """No nulls for shape and indices; CSR has all of them."""
    flat = TensorData(data=np.array([1.5], np.float32), dtype="float32")
    sparse = TensorData.from_value("weights", np.eye(9, dtype=np.float32))

    assert json.loads(encode(flat)) == {"data": [1.5], "dtype": "float32"}
    names = {"data", "dtype", "shape", "sparse_crow_indices", "sparse_col_indices"}
    assert names == json.loads(encode(sparse)).keys()


def test_the_result_of_training_has_its_documented_shape() -> None:
    """Type, outputs by name, metrics; and back."""
    row = {"logprobs": TensorData.from_numpy(np.array([-1.5, -2.0], np.float32))}
    output = ForwardBackwardOutput("ArrayRecord", [row], {"loss:sum": 3.5})

    body = forward_backward_output_to_json(output)
    assert json.loads(body) == {
        "loss_fn_output_type": "ArrayRecord",
        "loss_fn_outputs": [{"logprobs": {"data": [-1.5, -2.0], "dtype": "float32", "shape": [2]}}],
        "metrics": {"loss:sum": 3.5},
    }
    assert output == forward_backward_output_from_json(body)


def test_a_number_that_json_cannot_say_is_null_and_comes_back_as_nan() -> None:
    """NaN in metrics, tensors and prompt log-probs."""
    row = {"logprobs": TensorData.from_numpy(np.array([np.nan, -1], np.float32))}
    output = ForwardBackwardOutput("T", [row], {"loss:sum": math.nan})
    sample = SampleResponse([], prompt_logprobs=np.array([np.nan, -2], np.float32))

    found = forward_backward_output_from_json(forward_backward_output_to_json(output))
    assert math.isnan(found.metrics["loss:sum"])
    assert row == found.loss_fn_outputs[0]
    body = sample_response_to_json(sample)
    assert json.loads(body)["prompt_logprobs"] == [None, -2.0]
    logprobs = sample_response_from_json(body, None).prompt_logprobs
    np.testing.assert_array_equal(np.array([np.nan, -2], np.float32), logprobs)


def test_the_result_of_sampling_has_its_documented_shape() -> None:
    """Sequences without ids, prompt log-probs, top tokens as pairs."""
    topk = TopkLogprobs(
        token_ids=np.array([[0, 0], [5, 6]], np.int32),
        logprobs=np.array([[-99999, -99999], [-1, -2]], np.float32),
    )
    sequence = SampledSequence(
        np.array([7, 8], np.int32), np.array([-0.5, -1.5], np.float32), "stop", "id"
    )
    response = SampleResponse(
        [sequence], prompt_logprobs=np.array([-3], np.float32), topk_prompt_logprobs=topk
    )

    body = sample_response_to_json(response)
    assert json.loads(body) == {
        "type": "sample",
        "sequences": [{"stop_reason": "stop", "tokens": [7, 8], "logprobs": [-0.5, -1.5]}],
        "prompt_logprobs": [-3.0],
        "topk_prompt_logprobs": [None, [[5, -1.0], [6, -2.0]]],
    }
    found = sample_response_from_json(body, ["id"])
    assert topk == found.topk_prompt_logprobs
    assert found.sequences[0].sequence_id == "id"


@quick
@given(response=samples)
def test_sample_results_survive_json(response: SampleResponse) -> None:
    """Arrays come back with their dtypes; empty ones as None, infinities as NaN."""
    found = sample_response_from_json(sample_response_to_json(response), None)

    for ours, theirs in zip(response.sequences, found.sequences, strict=True):
        assert (ours.stop_reason, "int32") == (theirs.stop_reason, theirs.tokens.dtype.name)
        np.testing.assert_array_equal(ours.tokens, theirs.tokens)
        if ours.logprobs is None:
            assert theirs.logprobs is None
        else:
            assert theirs.logprobs is not None
            assert theirs.logprobs.dtype == np.float32
            finite = np.isfinite(ours.logprobs)
            np.testing.assert_array_equal(ours.logprobs[finite], theirs.logprobs[finite])
            assert np.isnan(theirs.logprobs[~finite]).all()


def test_results_of_newer_and_sloppier_servers_are_read() -> None:
    """Unknown fields and stop reasons survive; nulls where there may be nothing."""
    body = b"""{"type": "sample", "new": {"x": 1}, "prompt_logprobs": null,
        "topk_prompt_logprobs": [],
        "sequences": [{"stop_reason": "tool_call", "tokens": [], "logprobs": [], "new": 2}]}"""

    found = sample_response_from_json(body, None)
    assert found.topk_prompt_logprobs is None
    assert (found.sequences[0].stop_reason, found.sequences[0].logprobs) == ("tool_call", None)
    assert OptimStepResponse() == decode(b'{"x": 1}', OptimStepResponse)


@pytest.mark.parametrize(
    ("body", "type_", "path"),
    [
        (b'{"sequences": 1}', None, "$.sequences"),
        (b'{"sequences": [{"stop_reason": "stop"}]}', None, "$.sequences[0]"),
        (
            b'{"sequences": [{"stop_reason": "stop", "tokens": ["1"]}]}',
            None,
            "$.sequences[0].tokens",
        ),
        (
            b'{"sequences": [{"stop_reason": "stop", "tokens": [1.5]}]}',
            None,
            "$.sequences[0].tokens",
        ),
        (
            b'{"sequences": [{"stop_reason": "stop", "tokens": [2147483648]}]}',
            None,
            "$.sequences[0].tokens",
        ),
        (
            b'{"sequences": [{"stop_reason": "stop", "tokens": [[1], [2]]}]}',
            None,
            "$.sequences[0].tokens",
        ),
        (
            b'{"sequences": [{"stop_reason": "stop", "tokens": {"0": 1}}]}',
            None,
            "$.sequences[0].tokens",
        ),
        (
            b'{"chunks": [{"type": "encoded_text", "tokens": [-1]}]}',
            ModelInput,
            "$.chunks[0]",
        ),
        (b'{"chunks": [{"type": "image"}]}', ModelInput, "$.chunks[0]"),
        (b'{"data": [1, 2], "dtype": "int64", "shape": [3]}', TensorData, "shape"),
        (b'{"data": [1.5], "dtype": "int64"}', TensorData, "data"),
        (b'{"data": [1], "dtype": "int8"}', TensorData, "$.dtype"),
        (b'{"data": [18446744073709551616], "dtype": "int64"}', TensorData, "data"),
    ],
)
def test_an_answer_of_the_wrong_shape_names_the_place(
    body: bytes, type_: type[Any] | None, path: str
) -> None:
    """The error of a JSON body has the path of the field."""
    with pytest.raises(DecodeError) as caught:
        decode(body, type_) if type_ else sample_response_from_json(body, None)
    assert path in str(caught.value)


def test_ids_must_match_the_samples() -> None:
    """Ids that belong to other samples are not handed out."""
    with pytest.raises(DecodeError, match="1 sequence ids for 0"):
        sample_response_from_json(b'{"sequences": []}', ["a"])


def test_numbers_of_numpy_are_numbers_of_json() -> None:
    """Scalars and arrays inside plain containers are encoded by value."""
    found = json.loads(encode({"a": np.float32(0.5), "b": np.int64(3), "c": np.arange(2)}))

    assert found == {"a": 0.5, "b": 3, "c": [0, 1]}


def test_what_has_no_json_form_is_refused() -> None:
    """An object of no known kind is a TypeError that names it."""
    with pytest.raises(TypeError, match="object"):
        encode({"a": object()})


@quick
@given(body=st.dictionaries(texts, texts))
def test_any_buffer_can_be_decoded(body: dict[str, str]) -> None:
    """bytes, bytearray and memoryview give the same."""
    text = encode(body)

    for buffer in (text, bytearray(text), memoryview(text)):
        assert body == decode(buffer, dict[str, str])
