"""Damaged answers to the whole client: each call ends, in a value or a TinkerError."""

from __future__ import annotations

import functools
import gzip
import json
import urllib.parse
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from random import Random

import anyio
import msgspec
import pytest
from anyio.abc import SocketAttribute, SocketStream
from fuzz import corpus
from fuzz.harness import CASE, afuzz
from fuzz.mutations import damaged, damaged_json, damaged_protobuf
from fuzz.programs import PROGRAMS

from tinker_async import RetryPolicy, Session, TinkerError
from tinker_async.data.results import ForwardBackwardOutput, SampledSequence, SampleResponse
from tinker_async.data.tensors import TensorData
from tinker_async.local.tiny import byte_tokenizer
from tinker_async.wire.sampling import encode_sample_response
from tinker_async.wire.training import encode_forward_backward_output

pytestmark = pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {}), ("trio", {})], ids=["asyncio", "trio"]
)

JSON, PROTOBUF = "application/json", "application/x-protobuf"
QUICK = RetryPolicy(max_attempts=3, base_s=0.001, max_s=0.001, max_server_s=0.001)
BOUND_S = 15.0
HOLD_S = 0.03

SAMPLED = SampleResponse([SampledSequence(corpus.SPARSE.data[:2].astype("int32"), None, "length")])
TRAINED = ForwardBackwardOutput(
    "ArrayRecord", [{"logprobs": TensorData.from_value("logprobs", [-1.0] * 3)}], {"loss:sum": 1.0}
)
BINARY = {
    "asample": b"".join(encode_sample_response(SAMPLED)),
    "forward_backward": b"".join(encode_forward_backward_output(TRAINED)),
}
RESULTS = {
    "create_model": b'{"type":"create_model","model_id":"s:train:0"}',
    "asample": b'{"sequences":[{"tokens":[7,8],"logprobs":[-1.0,null],"stop_reason":"stop",'
    b'"topk_logprobs":[[[7,-1.0]],null]}],"prompt_logprobs":[null,-1.0,-2.0]}',
    "optim_step": b'{"metrics":{"lr":0.1}}',
    "save_weights": b'{"path":"tinker://s/weights/a","type":"save_weights"}',
    "save_weights_for_sampler": b'{"path":"tinker://s/sampler_weights/a"}',
    "load_weights": b'{"path":"tinker://s/weights/a","model_id":"s:train:0"}',
    "save_weights_external": b'{"path":"tinker://s/external_weights/a","size_bytes":5}',
    "create_custom_loss": corpus.MESSAGES["CreateCustomLossResponse"],
}
FILES = "training_runs/run/checkpoints/external_weights/a/external_weights_urls"
ANSWERS = {
    "client/config": corpus.MESSAGES["ClientConfigResponse"],
    "client/dynamic_config": corpus.MESSAGES["DynamicConfigResponse"],
    "create_session": corpus.MESSAGES["CreateSessionResponse"],
    "create_sampling_session": corpus.MESSAGES["CreateSamplingSessionResponse"],
    "get_server_capabilities": corpus.RESULTS["GetServerCapabilitiesResponse"],
    "get_info": corpus.RESULTS["GetInfoResponse"],
    "training_runs": corpus.RECORDS["TrainingRunsResponse"],
    "training_runs/run": corpus.RECORDS["TrainingRun"],
    "checkpoints": corpus.RECORDS["CheckpointsListResponse"],
    "weights_info": corpus.RECORDS["WeightsInfoResponse"],
    "samplers/s:sample:0": corpus.RECORDS["GetSamplerResponse"],
    "tokenizers/m": byte_tokenizer().to_str().encode(),
    "sessions": corpus.RECORDS["ListSessionsResponse"],
    "sessions/s": corpus.RECORDS["GetSessionResponse"],
    "sessions/search": corpus.RECORDS["SessionSearchResponse"],
    "sessions/s/trace_export": corpus.MESSAGES["TraceExportResponse"],
    "billing/usage/events": corpus.RECORDS["BillingUsageResponse"],
    "billing/usage/checkpoints/current": corpus.RECORDS["CurrentCheckpointStorageUsageResponse"],
    "audit": corpus.RECORDS["AuditLogResponse"],
    "healthz": corpus.RECORDS["HealthResponse"],
    "auth/apikey/me": corpus.MESSAGES["ApiKeyResponse"],
    "auth/token": corpus.MESSAGES["AuthTokenResponse"],
    "copy_weights": corpus.MESSAGES["CopyWeightsResponse"],
    FILES: corpus.RECORDS["ExternalWeightsUrlsResponse"],
    "retrieve_futures": b'{"completions":[%s],"cursor":1}'
    % b",".join(b'{"request_id":"asample %d"}' % number for number in range(200)),
    "telemetry": b'{"status":"accepted"}',
    "join_sampling_session": corpus.MESSAGES["JoinSamplingSessionResponse"],
}
SWITCHES = {
    "poll": b'{"sample_use_retrieve_futures":true}',
    "join": b'{"sample_join_sampling_session":true}',
    "upload": b'{"custom_loss_server_side":true}',
    "exchange": b'{"pjwt_auth_enabled":true}',
}
"""What the server's config turns on for a call, by its name."""

Damage = Callable[[str, bytes, str], "bytes | None"]
"""Given path, body and content type: the bytes to send instead of the answer, or None."""


def answer(body: bytes, kind: str, *more: str, status: int = 200) -> bytes:
    head = [f"HTTP/1.1 {status} X", f"content-type: {kind}", f"content-length: {len(body)}", *more]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


class Server:
    """Answers well, except where `damage` says otherwise; then it hangs up."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.damage: Damage = lambda _path, _body, _kind: None
        self.switches = ANSWERS["client/config"]
        self.hold_s = 0.0
        """How long polls of single results are held."""
        self.promises = 0

    def good(self, path: str, body: bytes, accept: str) -> tuple[str, bytes, str]:
        """Return the name of an answer, the answer, and its type."""
        if path == "retrieve_future":
            operation = str(json.loads(body)["request_id"]).partition(" ")[0]
            if operation in BINARY and PROTOBUF in accept:
                return f"{operation} result", BINARY[operation], PROTOBUF
            return f"{operation} result", RESULTS.get(operation, b"{}"), JSON
        if path in RESULTS or path in BINARY:
            self.promises = (self.promises + 1) % 200
            promise = b'{"request_id":"%s %d","model_id":"m"}' % (path.encode(), self.promises)
            return path, promise, JSON
        if path == "client/config":
            return path, self.switches, JSON
        return path, ANSWERS.get(path, b"{}"), JSON

    async def serve(self, stream: SocketStream) -> None:
        async with stream:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                pending = b""
                while True:
                    pending = await self._one(stream, pending)

    async def _one(self, stream: SocketStream, pending: bytes) -> bytes:
        while b"\r\n\r\n" not in pending:
            pending += await stream.receive()
        head, _, pending = pending.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (s.partition(": ") for s in lines[1:])}
        while len(pending) < int(headers.get("content-length", "0")):
            pending += await stream.receive()
        path = urllib.parse.unquote(lines[0].split(" ")[1].split("?")[0])
        size = int(headers.get("content-length", "0"))
        name, content, kind = self.good(
            path.removeprefix("/api/v1/"), pending[:size], headers.get("accept", "")
        )
        if path.endswith("/retrieve_future"):
            await anyio.sleep(self.hold_s)
        instead = self.damage(name, content, kind)
        await stream.send(answer(content, kind) if instead is None else instead)
        if instead is not None:
            raise anyio.EndOfStream
        return pending[size:]


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    server = Server(int(listener.extra(SocketAttribute.local_port)))
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, server.serve)
        yield server
        tasks.cancel_scope.cancel()


def hurt(rng: Random, body: bytes, kind: str) -> bytes:
    """Return a damaged response: mostly its body, sometimes its status, head or framing."""
    choice = rng.random()
    if choice < 0.65:
        mutate = damaged_protobuf if kind == PROTOBUF else damaged_json
        return answer(mutate(rng, body, [body, *corpus.PROMISE_ANSWERS]), kind)
    if choice < 0.75:
        other = JSON if kind == PROTOBUF else PROTOBUF
        return answer(body, rng.choice((other, "text/html", "", "\xff")))
    if choice < 0.85:
        status = rng.choice((199, 201, 204, 302, 304, 400, 401, 408, 409, 410, 418, 425, 429, 500))
        more = rng.choice(("retry-after: 1e9", "retry-after: x", "x-should-retry: true", "a: b"))
        refusal = damaged_json(rng, b'{"detail":"no","category":"user"}')
        return answer(refusal, JSON, more, status=rng.choice((status, 503, 999)))
    if choice < 0.9:
        coding = rng.choice(("gzip", "deflate", "br", "zstd", "gzip, gzip"))
        return answer(damaged(rng, gzip.compress(body)), kind, f"content-encoding: {coding}")
    return damaged(rng, answer(body, kind), [body])


DAMAGED: list[tuple[str, str, int]] = [
    ("enter", "create_session", 50),
    ("enter", "client/dynamic_config", 30),
    ("sample", "client/config", 50),
    ("train", "client/config", 50),
    ("sample", "create_sampling_session", 40),
    ("sample", "asample", 80),
    ("sample", "asample result", 150),
    ("train", "create_model result", 40),
    ("train", "forward_backward", 60),
    ("train", "forward_backward result", 150),
    ("train", "optim_step result", 60),
    ("save", "save_weights result", 60),
    ("save", "save_weights_for_sampler result", 40),
    ("save", "load_weights result", 40),
    ("browse", "training_runs", 60),
    ("browse", "checkpoints", 40),
    ("browse", "training_runs/run", 40),
    ("ask", "get_server_capabilities", 60),
    ("ask", "samplers/s:sample:0", 40),
    ("tokenizer", "get_info", 40),
    ("tokenizer", "tokenizers/m", 30),
    ("look", "sessions", 30),
    ("look", "sessions/search", 40),
    ("look", "sessions/s", 30),
    ("look", "sessions/s/trace_export", 20),
    ("account", "healthz", 20),
    ("account", "auth/apikey/me", 30),
    ("account", "billing/usage/events", 50),
    ("account", "billing/usage/checkpoints/current", 30),
    ("account", "audit", 30),
    ("manage", "copy_weights", 30),
    ("manage", FILES, 30),
    ("manage", "weights_info", 30),
    ("export", "save_weights_external result", 30),
    ("poll", "retrieve_futures", 30),
    ("join", "join_sampling_session", 40),
    ("tell", "telemetry", 20),
    ("upload", "create_custom_loss result", 30),
    ("exchange", "auth/token", 30),
]
"""What the program does, which of the answers to it is damaged, and how many cases."""


def only_ours(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):  # of operations that nobody awaited
        return all(map(only_ours, error.exceptions))
    return isinstance(error, TinkerError)


@pytest.mark.parametrize(("call", "path", "cases"), DAMAGED, ids=str)
async def test_each_call_ends_in_a_value_or_a_tinker_error(
    call: str, path: str, cases: int
) -> None:
    """Whatever the server answers to one of its requests, once or always: a value or TinkerError."""
    work = PROGRAMS[call]
    reached = 0

    async def one(server: Server, case: bytes) -> None:
        rng = Random(case)
        times = rng.choice((1, 1, 5))
        # The first words of a session are repeated after seconds, not `QUICK`; and for a
        # tokenizer that the server does not have, the hub would be asked.
        intact = path.startswith(("client/", "tokenizers/"))

        def damage(name: str, body: bytes, kind: str) -> bytes | None:
            nonlocal times, reached
            if name != path or not times:
                return None
            times -= 1
            reached += 1
            if intact:
                return answer(damaged_json(rng, body, [body]), kind)
            return hurt(rng, body, kind)

        server.damage = damage
        server.switches = SWITCHES.get(call, ANSWERS["client/config"])
        server.hold_s = HOLD_S if call == "poll" else 0.0
        try:
            async with Session(
                server.url, "tml-test", retry=QUICK, grace_s=5.0, telemetry=call == "tell"
            ) as session:
                await work(session)
        except (Exception, BaseExceptionGroup) as error:
            if not only_ours(error):
                raise
            msgspec.json.encode(str(error))

    async with serving() as server:
        await afuzz(
            f"client-{call}-{path}",
            lambda rng: b"%d" % rng.randrange(10**9),
            functools.partial(one, server),
            cases=cases,
            bound_s=BOUND_S,
        )
    assert reached or CASE


async def test_without_damage_every_call_has_its_value() -> None:
    """The server of these tests answers all calls well when nothing is damaged."""
    async with serving() as server:
        for name in sorted({name for name, _, _ in DAMAGED}):
            server.switches = SWITCHES.get(name, ANSWERS["client/config"])
            async with Session(server.url, "tml-test", retry=QUICK) as session:
                await PROGRAMS[name](session)
