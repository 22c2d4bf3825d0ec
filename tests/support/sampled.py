"""Makes a scripted server sample: one token, the request's number; a number is one sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import numpy as np
from support.scripted import Call, ScriptedServer, promise_body

from tinker_async import ModelInput, SampledSequence, SampleResponse, SamplingClient, Session
from tinker_async.wire.sampling import encode_sample_response

PROMPT = ModelInput.from_ints([1, 2, 3])


class Sampled:
    """Answers samples at once; tests replace `sample` or `retrieve` as they need it."""

    def __init__(self, server: ScriptedServer) -> None:
        self.server = server
        self.seq_ids: dict[str, int] = {}
        self.promises: dict[tuple[str, int], Any] = {}
        self.cancelled: list[int] = []
        """Numbers of the samples that were cancelled, in order."""
        self._samplers = 0
        server.on("client/dynamic_config", lambda _: {"sample_cancel_enabled": True})
        server.on("create_sampling_session", self.create)
        server.on("asample", self.sample)
        server.on("retrieve_future", self.retrieve)
        server.on("cancel_future", self.cancel)

    @property
    def sent(self) -> list[int]:
        """Numbers of the samples that were sent, in order."""
        return [call.json["seq_id"] for call in self.server.seen("asample")]

    def limits(self, **limits: int) -> None:
        """Set limits that the server tells its clients."""
        self.server.on("client/config", lambda _: limits)

    def create(self, _: Call) -> Any:
        """A sampler of its own for each request."""
        self._samplers += 1
        return {"sampling_session_id": f"s1:sample:{self._samplers - 1}"}

    def sample(self, call: Call) -> Any:
        """A promise: the same one when the number comes again."""
        key = (call.json["sampling_session_id"], call.json["seq_id"])
        if key not in self.promises:
            count = call.json.get("num_samples", 1)
            promise = self.server.promise(sample_sequence_ids=[f"q{n}" for n in range(count)])
            self.promises[key] = promise
            self.seq_ids[promise["request_id"]] = call.json["seq_id"]
        return self.promises[key]

    def number(self, call: Call) -> int:
        """The number of the sample that a poll or a cancel is about."""
        return self.seq_ids[call.json["request_id"]]

    def retrieve(self, call: Call) -> Any:
        """The result."""
        sequence = SampledSequence(
            tokens=np.asarray([self.number(call) % 2**31], np.int32),
            logprobs=np.asarray([-0.5], np.float32),
            stop_reason="length",
        )
        response = SampleResponse(
            sequences=[sequence], prompt_logprobs=np.asarray([np.nan, -1, -2], np.float32)
        )
        return promise_body(encode_sample_response(response))

    def cancel(self, call: Call) -> Any:
        """Remember who was cancelled."""
        self.cancelled.append(self.number(call))
        return {}


class Held:
    """A handler whose answers wait until the test lets them go."""

    def __init__(self, answer: Callable[[Call], Any]) -> None:
        self.answer = answer
        self.came = 0
        self._go = anyio.Event()

    async def __call__(self, call: Call) -> Any:
        self.came += 1
        await self._go.wait()
        return self.answer(call)

    def let_go(self) -> None:
        """Answer those who wait, and later ones at once."""
        self._go.set()


async def sampler_of(session: Session) -> SamplingClient:
    """A new sampler."""
    return await session.create_sampling_client(base_model="m")


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something that nobody tells of."""
    with anyio.fail_after(10):
        while not holds():  # noqa: ASYNC110  # by the state of a client or a server
            await anyio.sleep(0.001)
