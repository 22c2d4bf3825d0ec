"""`forward_backward` bodies and results, judged by the official messages and converters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from support.wire_values import official_datum, outputs, quick, requests, same_tensor
from tinker import types
from tinker.proto import tinker_public_pb2 as pb
from tinker.proto.request_conv import forward_backward_request_to_proto
from tinker.proto.response_conv import deserialize_forward_backward_output

from tinker_async.data.datum import Datum
from tinker_async.data.model_input import EncodedTextChunk, ModelInput
from tinker_async.data.results import ForwardBackwardOutput
from tinker_async.data.tensors import TensorData
from tinker_async.wire.protobuf import DecodeError
from tinker_async.wire.training import (
    ForwardBackwardBody,
    decode_forward_backward,
    decode_forward_backward_output,
    encode_forward_backward,
    encode_forward_backward_output,
)


def _official_request(request: dict[str, Any]) -> Any:
    """The message that the official converter builds, `forward_only` set as its caller does."""
    message = forward_backward_request_to_proto(
        types.ForwardBackwardRequest(
            forward_backward_input=types.ForwardBackwardInput(
                data=[official_datum(datum) for datum in request["data"]],
                loss_fn=request["loss_fn"],
                loss_fn_config=request["loss_fn_config"],
            ),
            model_id=request["model_id"],
            seq_id=request["seq_id"],
        )
    )
    message.forward_only = request["forward_only"]
    return message


def _body(request: dict[str, Any]) -> ForwardBackwardBody:
    return ForwardBackwardBody(**request | {"loss_fn_config": request["loss_fn_config"] or {}})


@quick
@given(request=requests)
def test_our_request_is_the_message_the_official_client_builds(request: dict[str, Any]) -> None:
    """For the same data, our bytes parse to the official converter's message."""
    body = b"".join(encode_forward_backward(**request))

    assert _official_request(request) == pb.ForwardBackwardRequest.FromString(body)


@quick
@given(request=requests)
def test_official_requests_are_read_as_they_were_meant(request: dict[str, Any]) -> None:
    """Bytes of the official runtime decode to the data they were made from."""
    body = _official_request(request).SerializeToString()

    assert _body(request) == decode_forward_backward(body)


@quick
@given(request=requests)
def test_a_request_survives_our_own_round_trip(request: dict[str, Any]) -> None:
    """Decoding what we encoded gives the same request."""
    assert _body(request) == decode_forward_backward(b"".join(encode_forward_backward(**request)))


WORKED_REQUEST = bytes.fromhex(
    "0a016d10011a380a0c0a0a0a08050000000600000012280a0d7461726765745f746f6b656e7312170a1006000000"
    "000000000700000000000000180222010222 0370706f2a1d0a12636c69705f6c6f775f7468726573686f6c64119a"
    "9999999999e93f3a1f0a12636c69705f6c6f775f7468726573686f6c641209099a9999999999e93f"
)
WORKED_OUTPUT = bytes.fromhex(
    "0a0b41727261795265636f7264123a12360a086c6f6770726f6273122a0a0c000080bf000000c0000040c0121800"
    "0000000000000004000000000000000c000000000000001801 18021a130a086c6f73733a73756d11000000000000"
    "f03f"
)


def test_the_worked_request_has_exactly_its_bytes() -> None:
    """The worked example of the protocol's description, byte for byte, both ways."""
    request: dict[str, Any] = {
        "model_id": "m",
        "seq_id": 1,
        "data": [Datum(ModelInput.from_ints([5, 6]), {"target_tokens": [6, 7]})],
        "loss_fn": "ppo",
        "loss_fn_config": {"clip_low_threshold": 0.8},
        "forward_only": False,
    }

    assert b"".join(encode_forward_backward(**request)) == WORKED_REQUEST
    assert _body(request) == decode_forward_backward(WORKED_REQUEST)


def test_the_worked_result_has_exactly_its_bytes() -> None:
    """The worked example of the protocol's description, byte for byte, both ways."""
    rows: list[dict[str, TensorData]] = [
        {"logprobs": TensorData.from_value("logprobs", row)} for row in ([-1.0], [-2.0, -3.0])
    ]
    output = ForwardBackwardOutput("ArrayRecord", rows, {"loss:sum": 1.0})

    assert b"".join(encode_forward_backward_output(output)) == WORKED_OUTPUT
    assert output == decode_forward_backward_output(WORKED_OUTPUT)


def _large_request() -> dict[str, Any]:
    random = np.random.default_rng(7)
    data = [
        Datum(
            ModelInput.from_ints(random.integers(0, 150_000, 4096, dtype=np.int32)),
            {
                "target_tokens": random.integers(0, 150_000, 4096),
                "weights": random.random(4096, dtype=np.float32),
            },
        )
        for _ in range(64)
    ]
    return {
        "model_id": "run",
        "seq_id": 3,
        "data": data,
        "loss_fn": "cross_entropy",
        "loss_fn_config": None,
        "forward_only": True,
    }


def test_a_large_request_is_sent_from_the_memory_of_its_tensors() -> None:
    """64 x 4096 tokens: the official message, and each tensor is a buffer of the list."""
    request = _large_request()
    buffers = encode_forward_backward(**request)

    assert _official_request(request) == pb.ForwardBackwardRequest.FromString(b"".join(buffers))
    arrays = [chunk.tokens for datum in request["data"] for chunk in datum.model_input.chunks]
    arrays += [t.data for datum in request["data"] for t in datum.loss_fn_inputs.values()]
    sent = {np.frombuffer(b, np.uint8).ctypes.data for b in buffers}
    assert {array.ctypes.data for array in arrays} <= sent
    assert len(buffers) <= 2 * len(arrays) + 1


def test_a_large_request_is_read_without_copying() -> None:
    """Every array of a decoded request is a view of the body."""
    body = b"".join(encode_forward_backward(**_large_request()))
    memory = np.frombuffer(body, np.uint8)

    decoded = decode_forward_backward(body)
    for datum in decoded.data:
        assert np.shares_memory(datum.model_input.to_numpy(), memory)
        assert all(np.shares_memory(t.data, memory) for t in datum.loss_fn_inputs.values())


def test_a_tensor_without_elements_still_says_that_it_is_dense() -> None:
    """The oneof is set for empty tensors, as old servers want it."""
    empty = TensorData(data=np.zeros(0, np.float32), dtype="float32", shape=(0,))
    request = _large_request() | {"data": [Datum(ModelInput.empty(), {"weights": empty})]}

    message = pb.ForwardBackwardRequest.FromString(b"".join(encode_forward_backward(**request)))
    assert message.data[0].loss_fn_inputs["weights"].WhichOneof("encoding") == "dense"


def test_the_older_config_map_counts_only_where_the_newer_is_empty() -> None:
    """Map 7 supersedes map 5 as a whole."""
    both = pb.ForwardBackwardRequest(loss_fn_config={"a": 1.0, "b": 2.0})
    old = both.SerializeToString()
    both.loss_fn_config_v2["a"].text = "x"

    assert decode_forward_backward(old).loss_fn_config == {"a": 1.0, "b": 2.0}
    assert decode_forward_backward(both.SerializeToString()).loss_fn_config == {"a": "x"}


def test_narrow_element_types_are_widened() -> None:
    """int32 becomes int64; bfloat16 is the upper half of a float32, to the bit."""
    message = pb.ForwardBackwardRequest()
    inputs = message.data.add().loss_fn_inputs
    inputs["i"].CopyFrom(
        pb.Tensor(dtype=pb.DTYPE_INT32, dense=np.array([-1, 7], np.int32).tobytes())
    )
    inputs["b"].CopyFrom(
        pb.Tensor(dtype=pb.DTYPE_BFLOAT16, dense=np.array([0x3FC0, 0xC000], "<u2").tobytes())
    )

    found = decode_forward_backward(message.SerializeToString()).data[0].loss_fn_inputs
    assert (found["i"].tolist(), found["i"].dtype) == ([-1, 7], "int64")
    assert (found["b"].tolist(), found["b"].dtype) == ([1.5, -2.0], "float32")


def _with_tensor(**fields: Any) -> bytes:
    message = pb.ForwardBackwardRequest()
    message.data.add().loss_fn_inputs["weights"].CopyFrom(pb.Tensor(**fields))
    body: bytes = message.SerializeToString()
    return body


def _with_chunk(**fields: Any) -> bytes:
    datum = pb.Datum(model_input=[pb.Chunk(**fields)])
    body: bytes = pb.ForwardBackwardRequest(data=[datum]).SerializeToString()
    return body


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (_with_chunk(image=pb.ImageChunk(format="png")), r"data\[0\].model_input\[0\]: data: "),
        (_with_chunk(image=pb.ImageChunk(format="gif", data=b"x")), "png or jpeg, got 'gif'"),
        (_with_chunk(dmel=pb.DmelChunk()), "dmel"),
        (_with_chunk(), "unknown"),
        (_with_chunk(encoded_text=pb.EncodedTextChunk(tokens=b"123")), "whole elements"),
        (_with_chunk(encoded_text=pb.EncodedTextChunk(tokens=b"\xff" * 4)), "token ids"),
        (
            pb.ForwardBackwardRequest(
                data=[pb.Datum(model_input_spans=[pb.ProvenanceSpan()])]
            ).SerializeToString(),
            r"data\[0\].model_input_spans\[0\]: a span of unknown kind",
        ),
        (
            pb.ForwardBackwardRequest(
                data=[
                    pb.Datum(
                        loss_fn_input_spans=[
                            pb.ProvenanceSpan(sampled_tokens=pb.SampledProvenanceSpan(length=1))
                        ]
                    )
                ]
            ).SerializeToString(),
            "loss_fn_input_spans.*sequence_id",
        ),
        (_with_tensor(dense=b"1234"), "dtype number 0"),
        (_with_tensor(dense=b"1234", dtype=99), "dtype number 99"),
        (_with_tensor(dense=b"123", dtype=1), r"loss_fn_inputs\['weights'\].*whole elements"),
        (_with_tensor(dense=b"1234", dtype=1, shape=[2]), r"shape \(2,\)"),
        (_with_tensor(dense=b"1234", dtype=1, shape=[-1, -1]), "negative"),
        (_with_tensor(dtype=1, shape=[3]), r"shape \(3,\)"),
        (_with_tensor(sparse_csr=pb.SparseCsr(), dtype=1), "2-D"),
        (_with_tensor(sparse_csr=pb.SparseCsr(), dtype=1, shape=[-1, 2]), "negative"),
        (_with_tensor(sparse_csr=pb.SparseCsr(), dtype=1, shape=[1, 2]), "CSR"),
        (
            pb.ForwardBackwardRequest(
                loss_fn_config_v2={"k": pb.LossConfigValue()}
            ).SerializeToString(),
            "neither",
        ),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused_by_name(body: bytes, says: str) -> None:
    """The error names the place and what is wrong with it."""
    with pytest.raises(DecodeError, match=says):
        decode_forward_backward(body)


@quick
@given(output=outputs())
def test_our_result_gives_the_official_client_the_same_values(
    output: ForwardBackwardOutput,
) -> None:
    """The official converter reads from our bytes what went in."""
    official = deserialize_forward_backward_output(b"".join(encode_forward_backward_output(output)))

    assert output.metrics == official.metrics
    assert len(output.loss_fn_outputs) == len(official.loss_fn_outputs)
    for ours, theirs in zip(output.loss_fn_outputs, official.loss_fn_outputs, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(same_tensor(theirs[name], tensor) for name, tensor in ours.items())
    if output.loss_fn_outputs:
        assert output.loss_fn_output_type == official.loss_fn_output_type


@quick
@given(output=outputs())
def test_a_result_survives_the_official_runtime_and_our_decoder(
    output: ForwardBackwardOutput,
) -> None:
    """Our bytes, reserialised by the official runtime, decode to what went in."""
    ours = b"".join(encode_forward_backward_output(output))
    theirs = pb.ForwardBackwardOutput.FromString(ours).SerializeToString()

    assert output == decode_forward_backward_output(ours)
    assert output == decode_forward_backward_output(theirs)


def test_datums_with_other_fields_start_a_new_record() -> None:
    """Fields, dtypes and trailing shapes are those of a record; a change starts another."""
    flat = TensorData.from_numpy(np.ones(3, np.float32))
    whole = TensorData.from_numpy(np.ones(3, np.int64))
    wide = TensorData.from_numpy(np.ones((3, 2), np.float32))
    rows: list[dict[str, TensorData]] = [{"x": flat}, {"x": flat}, {"x": whole}, {"x": wide}]
    rows += [{"x": wide, "y": flat}, {}, {}]

    body = b"".join(encode_forward_backward_output(ForwardBackwardOutput("T", rows, {})))
    message = pb.ForwardBackwardOutput.FromString(body)
    assert [record.num_datums for record in message.loss_fn_outputs] == [2, 1, 1, 1, 2]
    assert rows == decode_forward_backward_output(body).loss_fn_outputs


def test_outputs_without_fields_keep_their_number() -> None:
    """A server that strips outputs still says how many datums there were."""
    output = ForwardBackwardOutput("ArrayRecord", [{}, {}, {}], {})
    body = b"".join(encode_forward_backward_output(output))

    assert deserialize_forward_backward_output(body).loss_fn_outputs == [{}, {}, {}]
    assert output == decode_forward_backward_output(body)


def test_sparse_and_scalar_outputs_travel_as_the_format_allows() -> None:
    """A CSR tensor is sent dense, a tensor without dimensions as one element."""
    sparse = TensorData.from_value("weights", np.eye(9, dtype=np.float32))
    assert sparse.is_sparse
    scalar = TensorData.from_numpy(np.array(2.5, np.float32))
    output = ForwardBackwardOutput("T", [{"m": sparse, "s": scalar}], {})

    body = b"".join(encode_forward_backward_output(output))
    (found,) = decode_forward_backward_output(body).loss_fn_outputs
    np.testing.assert_array_equal(np.eye(9), found["m"].to_numpy())
    assert (found["s"].shape, found["s"].tolist()) == ((1,), [2.5])


def test_logprobs_are_views_of_the_received_body() -> None:
    """Nothing of a large result is copied, neither out nor in."""
    logprobs = [np.full(4096, -i, np.float32) for i in range(64)]
    rows = [{"logprobs": TensorData.from_numpy(array)} for array in logprobs]

    buffers = encode_forward_backward_output(ForwardBackwardOutput("ArrayRecord", rows, {}))
    sent = {np.frombuffer(buffer, np.uint8).ctypes.data for buffer in buffers}
    assert {array.ctypes.data for array in logprobs} <= sent
    body = b"".join(buffers)
    decoded = decode_forward_backward_output(body)
    assert rows == decoded.loss_fn_outputs
    memory = np.frombuffer(body, np.uint8)
    assert all(np.shares_memory(row["logprobs"].data, memory) for row in decoded.loss_fn_outputs)


def _batched(values: list[float], offsets: list[int], **fields: Any) -> Any:
    return pb.BatchedTensor(
        data=np.array(values, "<f4").tobytes(),
        offsets=np.array(offsets, "<i8").tobytes(),
        **{"dtype": 1} | fields,
    )


def _output(*records: Any, **fields: Any) -> bytes:
    body: bytes = pb.ForwardBackwardOutput(loss_fn_outputs=records, **fields).SerializeToString()
    return body


def test_the_type_of_outputs_is_the_text_after_the_last_colon() -> None:
    """A qualified name is cut to its class; an empty one is ArrayRecord."""
    assert decode_forward_backward_output(_output()).loss_fn_output_type == "ArrayRecord"
    named = _output(loss_fn_output_type="pkg.mod:Outer:Inner")
    assert decode_forward_backward_output(named).loss_fn_output_type == "Inner"


def test_records_of_servers_that_do_not_count_are_counted_by_their_fields() -> None:
    """`num_datums` 0 with fields is an older server."""
    body = _output(pb.ArrayRecord(fields={"x": _batched([1, 2, 3], [0, 4, 12])}))

    found = decode_forward_backward_output(body).loss_fn_outputs
    assert [row["x"].tolist() for row in found] == [[1.0], [2.0, 3.0]]
    assert len(deserialize_forward_backward_output(body).loss_fn_outputs) == len(found)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (_output(pb.ArrayRecord(fields={"x": _batched([1], [0, 4])}, num_datums=2)), "1 datums"),
        (
            _output(pb.ArrayRecord(fields={"x": _batched([1], [0, 4]), "y": _batched([], [])})),
            "y: 0 datums, not 1",
        ),
        (_output(pb.ArrayRecord(num_datums=2**40)), "without fields"),
        (_output(pb.ArrayRecord(num_datums=-1)), "without fields"),
        (_output(pb.ArrayRecord(fields={"x": _batched([1], [0, 4], dtype=0)})), "dtype number 0"),
        (_output(pb.ArrayRecord(fields={"x": _batched([1], [4, 4])})), "offsets"),
        (_output(pb.ArrayRecord(fields={"x": _batched([1], [0, 8])})), "offsets"),
        (_output(pb.ArrayRecord(fields={"x": _batched([1, 2], [0, 8, 4, 8])})), "offsets"),
        (_output(pb.ArrayRecord(fields={"x": _batched([1], [0, 2, 4])})), "offsets"),
        (_output(pb.ArrayRecord(fields={"x": _batched([1], [])})), "offsets"),
        (
            _output(pb.ArrayRecord(fields={"x": _batched([1], [0, 4], trailing_shape=[2])})),
            "offsets",
        ),
        (
            _output(pb.ArrayRecord(fields={"x": _batched([1], [0, 4], trailing_shape=[-1, -1])})),
            "negative",
        ),
    ],
    ids=lambda value: (
        value if isinstance(value, str) else "body"
    ),  # map order varies: no ids of bytes
)
def test_a_result_that_does_not_add_up_is_refused(body: bytes, says: str) -> None:
    """Counts, offsets and shapes must agree; nothing is dropped or guessed."""
    with pytest.raises(DecodeError, match=says):
        decode_forward_backward_output(body)


def test_narrow_outputs_are_widened_and_still_cut_at_their_offsets() -> None:
    """Offsets count the bytes on the wire, not those after widening."""
    halves = np.array([0x3FC0, 0xC000, 0x4040], "<u2").tobytes()
    tensor = _batched([], [0, 2, 6], dtype=4)
    tensor.data = halves
    body = _output(pb.ArrayRecord(fields={"x": tensor}, num_datums=2))

    found = decode_forward_backward_output(body).loss_fn_outputs
    official = deserialize_forward_backward_output(body).loss_fn_outputs
    assert [row["x"].tolist() for row in found] == [[1.5], [-2.0, 3.0]]
    assert all(same_tensor(o["x"], f["x"]) for o, f in zip(official, found, strict=True))


def test_an_input_may_have_several_chunks() -> None:
    """Chunks stay apart and in order."""
    chunks = tuple(EncodedTextChunk(np.array(t, np.int32)) for t in ([1], [2, 3], []))
    request = _large_request() | {"data": [Datum(ModelInput(chunks), {})]}

    decoded = decode_forward_backward(b"".join(encode_forward_backward(**request)))
    assert chunks == decoded.data[0].model_input.chunks


@pytest.mark.parametrize("datums", [1, 3, 63, 64, 200])
@pytest.mark.parametrize("fault", ["none", "start", "end", "order", "row"])
def test_offsets_must_divide_the_data_however_many_there_are(datums: int, fault: str) -> None:
    """Few are looked at one by one, many at once: with the same verdict."""
    offsets = np.arange(datums + 1, dtype="<i8") * 8
    if fault == "start":
        offsets[0] = 4
    elif fault == "end":
        offsets[-1] += 8
    elif fault == "order":
        offsets = np.concatenate([offsets[:1], offsets[-1:], offsets[:1], offsets[1:]])
    elif fault == "row":
        offsets = np.insert(offsets, 1, 4)
    tensor = pb.BatchedTensor(
        data=b"\0" * (8 * datums),
        offsets=offsets.tobytes(),
        dtype=pb.DTYPE_FLOAT32,
        trailing_shape=[2],
    )
    message = pb.ForwardBackwardOutput(
        loss_fn_outputs=[pb.ArrayRecord(fields={"logprobs": tensor}, num_datums=len(offsets) - 1)]
    )
    if fault == "none":
        found = decode_forward_backward_output(message.SerializeToString()).loss_fn_outputs
        assert [(1, 2)] * datums == [item["logprobs"].shape for item in found]
        return
    with pytest.raises(DecodeError, match="offsets do not divide"):
        decode_forward_backward_output(message.SerializeToString())
