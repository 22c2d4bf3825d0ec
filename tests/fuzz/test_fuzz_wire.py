"""Damaged bodies: each decoder of the wire gives a value that can be used, or a DecodeError."""

from __future__ import annotations

import functools
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
import pytest
from fuzz import corpus
from fuzz.harness import fuzz
from fuzz.mutations import damaged_json, damaged_protobuf

from tinker_async.data import identity, records, results, session_search, sessions, usage
from tinker_async.data.datum import Datum
from tinker_async.data.tensors import TensorData
from tinker_async.wire import messages
from tinker_async.wire.json import (
    decode,
    encode,
    forward_backward_output_from_json,
    sample_response_from_json,
)
from tinker_async.wire.promises import parse_promise_answer, parse_timeout_answer
from tinker_async.wire.sampling import decode_sample_response
from tinker_async.wire.table import DecodeError
from tinker_async.wire.training import decode_forward_backward, decode_forward_backward_output

Mutate = Callable[[Random, bytes, list[bytes]], bytes]

_MOST_CELLS = 1 << 20
"""A sparse tensor may stand for more than anybody would want in memory."""

BINARY: dict[str, tuple[Callable[[], list[bytes]], Callable[[bytes], Any]]] = {
    "forward-backward-request": (corpus.binary_requests, decode_forward_backward),
    "forward-backward-output": (corpus.binary_outputs, decode_forward_backward_output),
    "sample-response": (corpus.binary_samples, lambda body: decode_sample_response(body, None)),
    "sample-response-with-ids": (
        corpus.binary_samples,
        lambda body: decode_sample_response(body, ["a", "b"]),
    ),
}
TEXTS: dict[str, tuple[Callable[[], list[bytes]], Callable[[bytes], Any]]] = {
    "forward-backward-output-json": (corpus.json_outputs, forward_backward_output_from_json),
    "sample-response-json": (
        corpus.json_samples,
        lambda body: sample_response_from_json(body, None),
    ),
    "datum-json": (corpus.json_datums, lambda body: decode(body, Datum)),
    "promise-answer": (
        lambda: [*corpus.PROMISE_ANSWERS, *corpus.json_samples()[:5]],
        lambda body: parse_promise_answer(body, b"application/json"),
    ),
    "timeout-answer": (lambda: list(corpus.PROMISE_ANSWERS), parse_timeout_answer),
}


def maker(bodies: list[bytes], mutate: Mutate) -> Callable[[Random], bytes]:
    return lambda rng: mutate(rng, rng.choice(bodies), bodies)


def used(value: Any) -> None:
    """Do with a decoded value what a program does."""
    repr(value)
    for tensor in tensors(value):
        if _cells(tensor) <= _MOST_CELLS:
            tensor.to_numpy()
            tensor.tolist()
        assert tensor.nbytes >= 0
        assert tensor == tensor  # noqa: PLR0124  # NaNs are equal here
    if isinstance(value, results.SampleResponse):
        for topk in [value.topk_prompt_logprobs, *(s.topk_logprobs for s in value.sequences)]:
            if topk is not None:
                topk.tolist()


def _cells(tensor: TensorData) -> int:
    cells = 1
    for size in tensor.dense_shape:
        cells *= size
    return cells


def tensors(value: Any) -> list[TensorData]:
    """Return all tensors in a value, however deep it is."""
    found, left = [], [value]
    while left:
        one = left.pop()
        if isinstance(one, TensorData):
            found.append(one)
        elif isinstance(one, msgspec.Struct):
            left += [getattr(one, name) for name in one.__struct_fields__]
        elif isinstance(one, dict):
            left += one.values()
        elif isinstance(one, list | tuple):
            left += one
    return found


@pytest.mark.parametrize("name", BINARY)
def test_damaged_protobuf_is_a_value_or_a_decode_error(name: str) -> None:
    """No damage to a protobuf body gives another exception, hangs, or takes unbacked memory."""
    bodies, read = BINARY[name]
    fuzz(
        name,
        maker(bodies(), damaged_protobuf),
        lambda body: used(read(body)),
        cases=1500,
        allowed=(DecodeError,),
        memory=True,
    )


@pytest.mark.parametrize("name", TEXTS)
def test_damaged_json_results_are_a_value_or_a_decode_error(name: str) -> None:
    """No damage to a JSON body gives another exception, hangs, or takes unbacked memory."""
    bodies, read = TEXTS[name]
    fuzz(
        name,
        maker(bodies(), damaged_json),
        lambda body: used(read(body)),
        cases=1200,
        allowed=(DecodeError,),
        memory=True,
    )


MESSAGES = {**corpus.MESSAGES, **corpus.RESULTS, **corpus.RECORDS}

HOMES = (messages, results, records, sessions, session_search, usage, identity)


def type_of(name: str) -> Any:
    return next(found for home in HOMES if (found := vars(home).get(name)) is not None)


@pytest.mark.parametrize("name", MESSAGES)
def test_damaged_messages_are_a_value_or_a_decode_error(name: str) -> None:
    """The same for each JSON message, whichever side reads it; what was read can be written."""
    others = list(MESSAGES.values())
    read = functools.partial(decode, type_=type_of(name))

    def read_and_write(body: bytes) -> None:
        value: Any = read(body)
        used(value)
        encode(value)

    fuzz(
        f"message-{name}",
        lambda rng: damaged_json(rng, MESSAGES[name], others),
        read_and_write,
        cases=200,
        allowed=(DecodeError,),
    )


def test_each_message_has_a_body_that_is_read() -> None:
    """The bodies that are damaged are good ones, and no message is without."""
    structs = {name for name, value in vars(messages).items() if _is_message(value)}
    inner = {"FinishReason", "ForwardBackwardInput", "FuturesTarget", "FutureCompletion"}
    inner |= {"NamedResponse", "UserDetailsResponse", "ApiKeyDetailsResponse"}
    assert structs - inner == set(corpus.MESSAGES)
    for name, body in MESSAGES.items():
        used(decode(body, type_of(name)))
    for bodies, read in [*BINARY.values(), *TEXTS.values()]:
        for body in bodies():
            if read is not BINARY["sample-response-with-ids"][1]:
                used(read(body))


def _is_message(value: Any) -> bool:
    return isinstance(value, type) and value.__module__ == messages.__name__
