"""What the stub answers. No I/O: bytes of a request in, bytes of an answer out.

The speed of a "model" is in the name of the base model, so one session can have a slow and
a quick sampler: `stub-256-tokens-100-ms` draws 256 tokens, ready 100 ms after `asample`.
Switches of the server are in the base path: `/c20000-z` means 20,000 samples at once
and zstd; `/p` turns the session poller on, and `/h500` holds polls for 500 ms. A sample's request id holds when it is ready, so
samples need no memory here but for the poller's.
"""

from __future__ import annotations

import functools
import itertools
import re
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import msgspec
import numpy as np

from tinker_async.data.results import ForwardBackwardOutput, SampledSequence, SampleResponse
from tinker_async.data.tensors import TensorData
from tinker_async.wire.json import forward_backward_output_to_json, sample_response_to_json
from tinker_async.wire.sampling import encode_sample_response
from tinker_async.wire.training import decode_forward_backward, encode_forward_backward_output

_SPEED = re.compile(r"stub-(\d+)-tokens-(\d+)-ms")
_SAMPLER = re.compile(rb'"sampling_session_id"\s*:\s*"([^"]*)"')
_MODEL = re.compile(rb'"base_model"\s*:\s*"([^"]*)"')
_MODEL_SEQ = re.compile(rb'"model_seq_id"\s*:\s*(\d+)')
_REQUEST = re.compile(rb'"request_id"\s*:\s*"([^"]*)"')
_CURSOR = re.compile(rb'"prev_cursor"\s*:\s*(\d+)')
_NAME = re.compile(rb'"path"\s*:\s*"([^"]*)"')
_NONE_YET_NS = 20_000_000
_VOCABULARY = 49_152
_RUN = "s-1:train:0"
"""The only run; any other's requests are taken for its."""


@dataclass(frozen=True)
class Answer:
    """`due_ns` is when it may be sent, on the monotonic clock; 0 means at once."""

    body: bytes
    is_protobuf: bool = False
    due_ns: int = 0
    status: int = 200
    at_last: Callable[[], bytes] | None = None
    """Makes the body when it is sent, if that is later."""

    def content(self) -> bytes:
        """Return the body as it is now."""
        return self.body if self.at_last is None else self.at_last()


@dataclass(frozen=True)
class Asked:
    """What is known of a request besides its path."""

    body: bytes
    wants_protobuf: bool = False
    is_zstd: bool = False
    is_listed: bool = False
    """Whether a poller is to be told of the sample."""
    hold_ns: int = 0
    """How long a poll is held at most; 0 is as long as it takes."""


_Handler: TypeAlias = "Callable[[Desk, Asked], Answer]"


def _json(value: object) -> Answer:
    return Answer(msgspec.json.encode(value))


class _Listed:
    """Samples of one sampler, as its poller is told of them. Each takes as long as the others."""

    def __init__(self) -> None:
        self._passed = 0
        self._samples: deque[tuple[int, bytes]] = deque()

    def add(self, due_ns: int, request_id: bytes) -> None:
        """Add one."""
        self._samples.append((due_ns, request_id))

    def pass_by(self, cursor: int) -> None:
        """Forget what a cursor has passed."""
        while self._passed < cursor and self._samples:
            self._samples.popleft()
            self._passed += 1

    @property
    def next_ns(self) -> int:
        """When there is something to tell."""
        return self._samples[0][0] if self._samples else time.monotonic_ns() + _NONE_YET_NS

    def told(self) -> bytes:
        """Return what is done."""
        now = time.monotonic_ns()
        done = [
            name for due_ns, name in itertools.takewhile(lambda one: one[0] <= now, self._samples)
        ]
        listed = b",".join(b'{"state":"finished","request_id":"%b"}' % name for name in done)
        return b'{"completions":[%b],"cursor":%d}' % (listed, self._passed + len(done))


_NOT_YET = b'{"type":"try_again","request_id":"","queue_state":"active"}'
_NOTHING = Answer(b"{}")
_NOT_FOUND = Answer(b'{"detail":"the stub does not know this"}', status=404)


class Desk:
    """Answers requests, and counts them."""

    def __init__(self) -> None:
        self.requests = 0
        self.body_bytes = 0
        self._paths: dict[str, _Handler] = {}
        self._counter = 0
        self._outputs: list[tuple[int, ...]] = []
        self._listed: defaultdict[bytes, _Listed] = defaultdict(_Listed)

    def answer(self, path: str, asked: Asked) -> Answer:
        """Return the answer to a request."""
        self.requests += 1
        self.body_bytes += len(asked.body)
        handler = self._paths.get(path)
        if handler is None:
            handler = self._paths[path] = _route(path)
        return handler(self, asked)

    def _next(self) -> int:
        self._counter += 1
        return self._counter

    # Each handler is named after its endpoint.

    def create_session(self, _: Asked) -> Answer:
        return _json({"type": "create_session", "session_id": f"s-{self._next()}"})

    def create_sampling_session(self, asked: Asked) -> Answer:
        found = _MODEL.search(asked.body)
        speed = found[1].decode() if found else "stub-256-tokens-0-ms"
        return _json(
            {
                "type": "create_sampling_session",
                "sampling_session_id": f"{speed}:{self._next()}",
            }
        )

    def create_model(self, asked: Asked) -> Answer:
        found = _MODEL_SEQ.search(asked.body)
        return _json({"request_id": f"model {int(found[1]) if found else 0}"})

    def asample(self, asked: Asked) -> Answer:
        found = _SAMPLER.search(asked.body)
        tokens, delay_ns = _speed(found[1]) if found else (256, 0)
        due_ns = time.monotonic_ns() + delay_ns
        number = self._next()
        request_id = b"sample %d %d %d" % (tokens, due_ns, number)
        if asked.is_listed and found:
            self._listed[found[1]].add(due_ns, request_id)
        return Answer(
            b'{"request_id":"%b","sample_sequence_ids":["%d %d"]}' % (request_id, due_ns, number)
        )

    def asample_listed(self, asked: Asked) -> Answer:
        return self.asample(replace(asked, is_listed=True))

    def retrieve_futures(self, asked: Asked) -> Answer:
        sampler, cursor = _SAMPLER.search(asked.body), _CURSOR.search(asked.body)
        if sampler is None or cursor is None:
            return _NOT_FOUND
        listed = self._listed[sampler[1]]
        listed.pass_by(int(cursor[1]))
        due_ns, given_up_ns = listed.next_ns, time.monotonic_ns() + asked.hold_ns
        if asked.hold_ns:
            due_ns = min(due_ns, given_up_ns)
        return Answer(b"", due_ns=due_ns, at_last=listed.told)

    def forward_backward(self, asked: Asked) -> Answer:
        request = decode_forward_backward(_unzstd(asked.body) if asked.is_zstd else asked.body)
        lengths = tuple(
            int(datum.loss_fn_inputs["target_tokens"].to_numpy().size) for datum in request.data
        )
        if not self._outputs or self._outputs[-1] != lengths:
            self._outputs.append(lengths)
        return _json({"request_id": f"output {len(self._outputs) - 1} {self._next()}"})

    def optim_step(self, _: Asked) -> Answer:
        return _json({"request_id": f"step {self._next()}"})

    def save_weights(self, asked: Asked) -> Answer:
        found = _NAME.search(asked.body)
        return _json({"request_id": f"saved {found[1].decode() if found else self._next()}"})

    def retrieve_future(self, asked: Asked) -> Answer:
        found = _REQUEST.search(asked.body)
        if found is None:
            return _NOT_FOUND
        kind, *numbers = found[1].split(b" ")
        if kind == b"sample":
            due_ns, given_up_ns = int(numbers[1]), time.monotonic_ns() + asked.hold_ns
            if asked.hold_ns and given_up_ns < due_ns:
                return Answer(_NOT_YET, due_ns=given_up_ns)
            body = _sample(int(numbers[0]), asked.wants_protobuf)
            return Answer(body, asked.wants_protobuf, due_ns)
        if kind == b"output":
            lengths = self._outputs[int(numbers[0])]
            return Answer(_output(lengths, asked.wants_protobuf), asked.wants_protobuf)
        return _small_result(kind, numbers[0].decode())


def _small_result(kind: bytes, what: str) -> Answer:
    """Return the result of an operation that has little of one."""
    if kind == b"model":
        return _json({"type": "create_model", "model_id": f"s-1:train:{what}"})
    if kind == b"saved":
        return _json({"type": "save_weights", "path": f"tinker://{_RUN}/weights/{what}"})
    return Answer(b'{"metrics":{"lr":0.0001}}')


def _route(path: str) -> _Handler:
    """Return what answers a path; called once for each."""
    switches, _, tail = path.partition("/api/v1/")
    name = tail.partition("?")[0]
    handlers: dict[str, _Handler] = {
        "create_session": Desk.create_session,
        "create_sampling_session": Desk.create_sampling_session,
        "create_model": Desk.create_model,
        "asample": Desk.asample_listed if "p" in switches else Desk.asample,
        "forward_backward": Desk.forward_backward,
        "optim_step": Desk.optim_step,
        "save_weights": Desk.save_weights,
        "retrieve_future": Desk.retrieve_future,
        "retrieve_futures": Desk.retrieve_futures,
    }
    hold = re.search(r"h(\d+)", switches)
    if name in handlers:
        handler = handlers[name]
        if hold is None:
            return handler
        hold_ns = int(hold[1]) * 1_000_000
        return lambda desk, asked: handler(desk, replace(asked, hold_ns=hold_ns))
    fixed = _fixed(name, switches)
    return lambda _desk, _asked: fixed


def _fixed(name: str, switches: str) -> Answer:
    """Return an answer that depends on nothing but the path."""
    concurrency = re.search(r"c(\d+)", switches)
    answers: dict[str, object] = {
        "client/config": {
            "parallel_fwdbwd_chunks": True,
            "proto_compress_fwdbwd": "z" in switches,
            "sample_use_retrieve_futures": "p" in switches,
            "sample_max_concurrent_requests": int(concurrency[1]) if concurrency else 2000,
        },
        "client/dynamic_config": {},
        "session_heartbeat": {"type": "session_heartbeat"},
        "get_server_capabilities": {"supported_models": [{"model_name": "stub"}]},
        "get_info": {
            "type": "get_info",
            "model_id": "s-1:train:0",
            "model_data": {"model_name": "stub", "tokenizer_id": "stub"},
            "is_lora": True,
            "lora_rank": 32,
        },
        "telemetry": {"status": "accepted"},
        "cancel_future": {},
    }
    if name in answers:
        return _json(answers[name])
    if name.startswith("training_runs/"):
        return _of_run(name)
    if name.startswith("samplers/"):
        return _json({"sampler_id": name[9:], "base_model": "stub"})
    if name.startswith("sessions/") and name.endswith("/finish"):
        return _NOTHING
    return _NOT_FOUND


def _of_run(name: str) -> Answer:
    """What is asked of a training run: that it is well, who may see its checkpoints, to delete one."""
    what = name.split("/", 3)[2:]
    if not what:
        return _json(
            {
                "training_run_id": _RUN,
                "base_model": "stub",
                "model_owner": "stub",
                "is_lora": True,
                "lora_rank": 32,
                "last_request_time": "2026-01-01T00:00:00Z",
                "corrupted": False,
            }
        )
    return _json({"checkpoints": []}) if what == ["checkpoints"] else _NOTHING


@functools.cache
def _speed(sampler_id: bytes) -> tuple[int, int]:
    """Return the number of tokens and the delay in nanoseconds of a sampler."""
    found = _SPEED.match(sampler_id.decode())
    return (int(found[1]), int(found[2]) * 1_000_000) if found else (256, 0)


@functools.cache
def _sample(tokens: int, protobuf: bool) -> bytes:
    random = np.random.default_rng(1)
    sequence = SampledSequence(
        tokens=random.integers(0, _VOCABULARY, tokens, dtype=np.int32),
        logprobs=-random.random(tokens, dtype=np.float32),
        stop_reason="length",
        sequence_id="",
    )
    response = SampleResponse(sequences=[sequence])
    if protobuf:
        return b"".join(encode_sample_response(response))
    return sample_response_to_json(response)


@functools.lru_cache(maxsize=32)
def _output(lengths: tuple[int, ...], protobuf: bool) -> bytes:
    logprobs = -np.random.default_rng(2).random(max(lengths), dtype=np.float32)
    output = ForwardBackwardOutput(
        loss_fn_output_type="ArrayRecord",
        loss_fn_outputs=[
            {"logprobs": TensorData.from_value("logprobs", logprobs[:length])} for length in lengths
        ],
        metrics={"loss:sum": 1.5},
    )
    if protobuf:
        return b"".join(encode_forward_backward_output(output))
    return forward_backward_output_to_json(output)


def _unzstd(body: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdDecompressor().decompress(body)
