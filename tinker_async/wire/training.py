"""Protobuf form of `forward_backward`: the request and its result, for both sides.

The rule: tensors travel as the buffers they are. Encoded lists hold the caller's own
memory, decoded tensors are views of the body.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TypeAlias, cast

import msgspec
import numpy as np
import numpy.typing as npt

from tinker_async.data.datum import Datum
from tinker_async.data.model_input import ModelInput
from tinker_async.data.results import ForwardBackwardOutput
from tinker_async.data.tensors import DType, TensorData
from tinker_async.errors import InvalidInputError
from tinker_async.wire import schema
from tinker_async.wire.datums import encode_data
from tinker_async.wire.inputs import chunk_of, spans_of
from tinker_async.wire.protobuf import Buffer, DecodeError, decode, encode
from tinker_async.wire.tensors import (
    DTYPE_NUMBERS,
    array_bytes,
    array_view,
    element_type,
    tensor_data,
    widened,
)

_FEW_OFFSETS = 64
"""Up to so many numbers Python is quicker than numpy."""
_MAX_ROW_BYTES = 2**63 - 1
_MAX_EMPTY_OUTPUTS = 1 << 17
"""Records without fields name numbers of datums that no bytes back: not believed above this."""


class ForwardBackwardBody(msgspec.Struct, frozen=True):
    """A decoded request. `seq_id` is 0 when it was not set."""

    model_id: str
    seq_id: int
    data: list[Datum]
    loss_fn: str
    loss_fn_config: dict[str, float | str]
    forward_only: bool


def encode_forward_backward(
    *,
    model_id: str,
    seq_id: int,
    data: Sequence[Datum],
    loss_fn: str,
    loss_fn_config: Mapping[str, float | str] | None,
    forward_only: bool,
) -> list[Buffer]:
    """Return the body of `forward_backward` as buffers to be sent in order.

    Large tensors are in the list as their own memory: do not change them until they
    are sent. Numbers of the config go into both of its maps, texts only into the newer.

    Raises:
        ValueError: `seq_id` does not fit int32.
    """
    config = loss_fn_config or {}
    numbers = {key: float(value) for key, value in config.items() if not isinstance(value, str)}
    head = encode(schema.ForwardBackwardRequest(model_id=model_id, seq_id=seq_id))
    tail = encode(
        schema.ForwardBackwardRequest(
            loss_fn=loss_fn,
            loss_fn_config=numbers,
            forward_only=forward_only,
            loss_fn_config_v2={
                key: schema.LossConfigValue(text=value)
                if isinstance(value, str)
                else schema.LossConfigValue(number=numbers[key])
                for key, value in config.items()
            },
        )
    )
    return encode_data(data, head=b"".join(head), tail=b"".join(tail))


def decode_forward_backward(body: Buffer) -> ForwardBackwardBody:
    """Return the request in `body`; its arrays are views that keep `body` alive.

    Raises:
        DecodeError: Malformed, or an input chunk is of an unknown kind.
    """
    request = decode(schema.ForwardBackwardRequest, body)
    config: dict[str, float | str] = {**request.loss_fn_config}
    if request.loss_fn_config_v2:
        config = {key: _config_value(key, v) for key, v in request.loss_fn_config_v2.items()}
    return ForwardBackwardBody(
        model_id=request.model_id,
        seq_id=request.seq_id,
        data=[_datum(message, f"data[{i}]") for i, message in enumerate(request.data)],
        loss_fn=request.loss_fn,
        loss_fn_config=config,
        forward_only=request.forward_only,
    )


def _datum(message: schema.Datum, where: str) -> Datum:
    chunks = tuple(
        chunk_of(chunk, f"{where}.model_input[{i}]") for i, chunk in enumerate(message.model_input)
    )
    inputs = {
        key: tensor_data(tensor, f"{where}.loss_fn_inputs[{key!r}]")
        for key, tensor in message.loss_fn_inputs.items()
    }
    if not (message.model_input_spans or message.loss_fn_input_spans):
        return Datum(ModelInput(chunks), inputs)
    return Datum(
        ModelInput(chunks),
        inputs,
        spans_of(message.model_input_spans, f"{where}.model_input_spans"),
        spans_of(message.loss_fn_input_spans, f"{where}.loss_fn_input_spans"),
    )


def _config_value(key: str, value: schema.LossConfigValue) -> float | str:
    if value.text is not None:
        return value.text
    if value.number is None:
        raise DecodeError(f"loss_fn_config[{key!r}] has neither a number nor a text")
    return value.number


# Results

_Form: TypeAlias = tuple[tuple[str, DType, tuple[int, ...]], ...]
"""Name, dtype and trailing shape of each field: what the datums of one record share."""


def encode_forward_backward_output(output: ForwardBackwardOutput) -> list[Buffer]:
    """Return the protobuf form of a result as buffers to be sent in order.

    Consecutive datums with the same fields, dtypes and trailing shapes share a record.
    The official client needs the same fields in all of them.
    """
    records: list[schema.ArrayRecord] = []
    group: list[dict[str, npt.NDArray[np.generic]]] = []
    group_form: _Form = ()
    for tensors in output.loss_fn_outputs:
        arrays = {name: np.atleast_1d(tensors[name].to_numpy()) for name in sorted(tensors)}
        form = tuple((name, tensors[name].dtype, array.shape[1:]) for name, array in arrays.items())
        if group and form != group_form:
            records.append(_record(group_form, group))
            group = []
        group_form = form
        group.append(arrays)
    if group:
        records.append(_record(group_form, group))
    return encode(
        schema.ForwardBackwardOutput(
            loss_fn_output_type=output.loss_fn_output_type,
            loss_fn_outputs=records,
            metrics=output.metrics,
        )
    )


def _record(form: _Form, datums: list[dict[str, npt.NDArray[np.generic]]]) -> schema.ArrayRecord:
    fields = {}
    for name, dtype, trailing in form:
        pieces = [array_bytes(arrays[name]) for arrays in datums]
        offsets = np.fromiter(accumulate(map(len, pieces), initial=0), dtype="<i8")
        fields[name] = schema.BatchedTensor(
            data=pieces,
            offsets=offsets.tobytes(),
            dtype=DTYPE_NUMBERS[dtype],
            trailing_shape=trailing,
        )
    return schema.ArrayRecord(fields=fields, num_datums=len(datums))


def decode_forward_backward_output(body: Buffer) -> ForwardBackwardOutput:
    """Return the result in `body`; float32 and int64 tensors are views that keep it alive.

    Raises:
        DecodeError: Malformed, or the fields of a record disagree on how many datums
            it has.
    """
    message = decode(schema.ForwardBackwardOutput, body)
    outputs: list[dict[str, TensorData]] = []
    empty = [record for record in message.loss_fn_outputs if not record.fields]
    unbacked = sum(max(record.num_datums, 0) for record in empty)
    if unbacked > _MAX_EMPTY_OUTPUTS:
        raise DecodeError(f"{unbacked} datums without fields")
    for i, record in enumerate(message.loss_fn_outputs):
        outputs.extend(_record_outputs(record, f"loss_fn_outputs[{i}]"))
    return ForwardBackwardOutput(
        loss_fn_output_type=message.loss_fn_output_type.rsplit(":", 1)[-1] or "ArrayRecord",
        loss_fn_outputs=outputs,
        metrics=message.metrics,
    )


def _record_outputs(record: schema.ArrayRecord, where: str) -> list[dict[str, TensorData]]:
    columns = {name: _split(tensor, f"{where}.{name}") for name, tensor in record.fields.items()}
    # Servers older than `num_datums` leave it at 0: then the fields say it.
    count = record.num_datums or max(map(len, columns.values()), default=0)
    wrong = next((name for name, column in columns.items() if len(column) != count), None)
    if wrong is not None:
        raise DecodeError(f"{where}.{wrong}: {len(columns[wrong])} datums, not {count}")
    if count < 0:
        raise DecodeError(f"{where}: {count} datums without fields")
    return [{name: column[i] for name, column in columns.items()} for i in range(count)]


def _split(tensor: schema.BatchedTensor, name: str) -> list[TensorData]:
    """Return one tensor for each datum."""
    element = element_type(tensor.dtype, name)
    raw = cast("Buffer", tensor.data)
    array, dtype = widened(array_view(raw, element, name), tensor.dtype)
    trailing = tuple(tensor.trailing_shape)
    offsets = array_view(tensor.offsets, "<i8", f"{name}: offsets")
    row = math.prod(trailing)
    row_bytes = max(row, 1) * int(element[2])
    if min(trailing, default=0) < 0 or row_bytes > _MAX_ROW_BYTES:
        raise DecodeError(f"{name}: trailing shape {list(trailing)} is negative or too large")
    _check_offsets(offsets, len(raw), row_bytes, name)
    bounds = [offset // row_bytes for offset in offsets.tolist()] if row else [0] * offsets.size
    width = max(row, 1)
    try:
        return [
            TensorData(
                data=array[start * width : stop * width],
                dtype=dtype,
                shape=(stop - start, *trailing),
            )
            for start, stop in pairwise(bounds)
        ]
    except InvalidInputError as error:
        raise DecodeError(f"{name}: {error}") from error


def _check_offsets(
    offsets: npt.NDArray[np.int64], total_bytes: int, row_bytes: int, name: str
) -> None:
    if offsets.size <= _FEW_OFFSETS:
        found = offsets.tolist()
        sound = (
            found[0] == 0
            and found[-1] == total_bytes
            and found == sorted(found)
            and not any(offset % row_bytes for offset in found)
            if found
            else total_bytes == 0
        )
    else:
        sound = bool(
            offsets[0] == 0
            and offsets[-1] == total_bytes
            and (offsets[1:] >= offsets[:-1]).all()
            and not (offsets % row_bytes).any()
        )
    if not sound:
        raise DecodeError(f"{name}: offsets do not divide {total_bytes} bytes of data into datums")
