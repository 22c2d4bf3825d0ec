"""Many samples at once: results as they complete, and groups of one prompt.

The rule: nothing is held that nobody has asked for. A mapping takes its next request only when
one of its samples has been handed over, so that memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sized,
)
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import anyio
import anyio.lowlevel
import msgspec

from tinker_async.data import given
from tinker_async.data.model_input import ModelInput
from tinker_async.data.params import SamplingParams
from tinker_async.data.results import SampleResponse
from tinker_async.data.tensors import TensorLike
from tinker_async.errors import InvalidInputError, TinkerError
from tinker_async.lone_errors import lone_errors

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

T = TypeVar("T")


class SampleTask(msgspec.Struct, frozen=True, eq=False):
    """One request of `SamplingClient.map`: the arguments of `sample`, and a tag of your own."""

    prompt: ModelInput
    sampling_params: SamplingParams | None = None
    num_samples: int = 1
    include_prompt_logprobs: bool = False
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    tag: object = None
    """Comes back with the result; never sent."""
    target_prompt_logprobs: TensorLike | None = None
    prompt_alt_tokens_k: int = 0
    prompt_logprobs_last_n: int | None = None


class SampleOutcome(msgspec.Struct, frozen=True, eq=False):
    """What became of one request of `SamplingClient.map`."""

    index: int
    """Number of the request, from 0."""
    task: SampleTask
    response: SampleResponse | None
    """None when it failed."""
    error: TinkerError | None
    """Why it failed, else None."""

    def result(self) -> SampleResponse:
        """Return the response.

        Raises:
            TinkerError: Why there is none.
        """
        if self.response is None:
            raise self.error or InvalidInputError("an outcome without a result", field="outcome")
        return self.response


class SampleOutcomes:
    """An async iterator of what became of the requests, in the order in which they ended."""

    def __init__(self, stream: MemoryObjectReceiveStream[SampleOutcome]) -> None:
        self._stream = stream

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SampleOutcome:
        try:
            return await self._stream.receive()
        except anyio.EndOfStream:
            # Cancelled workers are gone, too. What was cut off must not look complete.
            await anyio.lowlevel.checkpoint_if_cancelled()
            raise StopAsyncIteration from None


Requests = Iterable[SampleTask | ModelInput] | AsyncIterable[SampleTask | ModelInput]
Sample = Callable[[SampleTask], Awaitable[SampleResponse]]


def check_requests(requests: object, max_in_flight: object) -> None:
    """Check what is to be mapped over, and how many of it at a time.

    Raises:
        InvalidInputError: Nothing can be iterated over, or the number is below 1.
    """
    given.whole(max_in_flight, "max_in_flight", least=1)
    iterable = isinstance(requests, (Iterable, AsyncIterable))
    if not iterable or isinstance(requests, (str, bytes, Mapping, ModelInput)):
        raise given.wrong(
            "requests",
            f"must be prompts or SampleTasks to iterate over, got {given.shown(requests)}",
            "the form is [ModelInput.from_ints(tokens), ...]",
        )


@asynccontextmanager
async def mapping(
    sample: Sample, requests: Requests, *, max_in_flight: int
) -> AsyncGenerator[SampleOutcomes]:
    """Draw samples for requests, so many at a time, in a task group of this block."""
    send, receive = anyio.create_memory_object_stream[SampleOutcome]()
    source = _Source(requests)
    if isinstance(requests, Sized):  # no more tasks than there is work for
        max_in_flight = min(max_in_flight, len(requests))
    with lone_errors():
        async with receive, anyio.create_task_group() as tasks:
            async with send:
                for _ in range(max_in_flight):
                    tasks.start_soon(_work, sample, source, send.clone())
            yield SampleOutcomes(receive)
            tasks.cancel_scope.cancel()


async def _work(
    sample: Sample, source: _Source, send: MemoryObjectSendStream[SampleOutcome]
) -> None:
    async with send:
        while (taken := await source.take()) is not None:
            index, task = taken
            response: SampleResponse | None = None
            error: TinkerError | None = None
            try:
                response = await sample(task)
            except TinkerError as failure:
                error = failure
            await send.send(SampleOutcome(index, task, response, error))
            del response, error, task, taken


class _Source:
    """Hands out numbered requests, one at a time, to whoever asks."""

    def __init__(self, requests: Requests) -> None:
        self._requests: AsyncIterator[SampleTask | ModelInput] = (
            aiter(requests) if isinstance(requests, AsyncIterable) else _Later(requests)
        )
        self._lock = anyio.Lock()
        self._next = 0
        self._ended = False

    async def take(self) -> tuple[int, SampleTask] | None:
        """Return the next one; None when there are no more."""
        async with self._lock:
            if self._ended:
                return None
            try:
                request = await anext(self._requests)
            except StopAsyncIteration:
                self._ended = True
                return None
            index, self._next = self._next, self._next + 1
        return index, request if isinstance(request, SampleTask) else SampleTask(request)


class _Later(Generic[T]):
    """A plain iterable as an async iterator."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        try:
            return next(self._items)
        except StopIteration:
            raise StopAsyncIteration from None


async def group(
    sample: Sample, tasks_of: list[SampleTask], *, least: int | None
) -> list[SampleResponse]:
    """Draw all of the samples at once; return those that succeeded, in order.

    Raises:
        TinkerError: That of the failure after which `least` could not be reached any more.
    """
    needed = len(tasks_of) if least is None else given.whole(least, "least")
    if not 0 <= needed <= len(tasks_of):
        raise InvalidInputError(
            f"least: must be between 0 and {len(tasks_of)}, got {needed}", field="least"
        )
    got: dict[int, SampleResponse] = {}
    failures: list[TinkerError] = []
    async with anyio.create_task_group() as tasks:

        async def one(index: int, task: SampleTask) -> None:
            try:
                got[index] = await sample(task)
            except TinkerError as error:
                failures.append(error)
                if len(tasks_of) - len(failures) < needed:
                    tasks.cancel_scope.cancel()

        for index, task in enumerate(tasks_of):
            tasks.start_soon(one, index, task)
    if len(got) < needed:
        error = failures[-1]
        error.add_note(
            f"{len(failures)} of {len(tasks_of)} samples failed; {needed} had to succeed"
        )
        raise error
    return [got[index] for index in sorted(got)]
