"""`SamplingClient`: samples from one immutable set of weights.

Its methods are coroutines in the caller's own scope: start many at once in a task
group, and cancel any of them. Only `submit_sample` leaves the waiting to the session.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller
from tinker_async.api.progress import DEFAULT, Progress, Timeout, within
from tinker_async.api.promises import PATH as RETRIEVE_PATH
from tinker_async.api.retry import RetryPolicy
from tinker_async.background.draws import AnyDraw, Draw, Drawer, Drawn, SampleFuture, Submissions
from tinker_async.background.sampling_pool import SamplingPool
from tinker_async.data.handles import SamplerHandle
from tinker_async.data.model_input import ModelInput
from tinker_async.data.params import SamplingParams
from tinker_async.data.results import SampleResponse
from tinker_async.errors import InvalidInputError, ResponseError, TinkerError
from tinker_async.futures import APIFuture
from tinker_async.many_samples import Requests, SampleOutcomes, SampleTask, group, mapping
from tinker_async.plan.checks import check_sample_length
from tinker_async.tokenizer import load_tokenizer
from tinker_async.wire import json as wire_json
from tinker_async.wire import sampling as wire_sampling
from tinker_async.wire.messages import GetSamplerResponse, SampleRequest
from tinker_async.wire.promises import PromiseResult

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTES_PER_TOKEN = 10
_GIVEN_UP = "it was cancelled"


class SamplingClient:
    """Samples from a base model, a checkpoint or a snapshot. Made by a session.

    All samplers of a session share its limits and take turns: so many samples under
    way, so many bytes being sent, one back-off.
    """

    def __init__(
        self,
        handle: SamplerHandle,
        *,
        caller: Caller,
        pool: SamplingPool,
        submissions: Submissions,
        policy: RetryPolicy,
        is_open: Callable[[], Any],
        first_seq_id: int = 0,
    ) -> None:
        self.sampling_session_id = handle.sampling_session_id
        """The server's id of this sampler."""
        self.model_path = handle.model_path
        """The checkpoint's path, if it was made from one."""
        self.check_inputs = True
        """Whether arguments are checked before they are sent."""
        self.context_length: int | None = None
        """The most tokens of a prompt and its sample; None where the server does not say."""
        self._handle = handle
        self._caller = caller
        self._pool = pool
        self._submissions = submissions
        self._policy = policy
        self._base_model = handle.base_model
        self._is_open = is_open
        self._drawer = Drawer(caller, pool, first_seq_id)

    async def sample(
        self,
        prompt: ModelInput,
        sampling_params: SamplingParams | None = None,
        num_samples: int = 1,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> SampleResponse:
        """Draw sequences that continue a prompt.

        Args:
            prompt: At least one token.
            sampling_params: How to draw; default `SamplingParams()`.
            num_samples: How many sequences.
            include_prompt_logprobs: Also return the log-prob of each prompt token.
            topk_prompt_logprobs: Also return the k most likely tokens at each prompt position.
            topk_sample_logprobs: The same at each sampled position.
            timeout: Seconds for all of it, waiting in line included; None is no limit,
                default the session's.
            retry: When to repeat what failed; default the session's policy. A 429 counts as
                an attempt, and its window is the time for which the server takes no sample
                of this session at all.

        Cancelling (or the timeout) gives the sample up: its place is freed at once and the
        server is told, if it was sent. Nothing else is disturbed.

        Raises:
            InvalidInputError: Before anything is sent.
            RequestFailedError: The server could not carry it out.
            RequestTimeoutError: `timeout` is over.
            SessionClosedError: Outside the session's block.
        """
        self._is_open()
        limit_s = self._caller.limit_of(timeout)
        length, make_request = self._checked(
            prompt,
            sampling_params,
            num_samples,
            include_prompt_logprobs,
            topk_prompt_logprobs,
            topk_sample_logprobs,
        )
        draw = Draw("sample", self._pool)
        nbytes, policy = _BYTES_PER_TOKEN * length, retry or self._policy
        if limit_s is None:
            drawn = await self._drawer.draw(draw, make_request, nbytes, policy)
        else:
            work = partial(self._drawer.draw, draw, make_request, nbytes, policy)
            drawn = await within(limit_s, draw, work, hint=_GIVEN_UP)
        return self._response(draw, drawn, num_samples)

    def submit_sample(
        self,
        prompt: ModelInput,
        sampling_params: SamplingParams | None = None,
        num_samples: int = 1,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
        *,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> APIFuture[SampleResponse]:
        """Do as `sample`, but return at once: the session waits for the result.

        The future can be awaited by many tasks and many times. Cancelling one of them leaves
        the sample alone; `cancel()` of the future gives it up as cancelling `sample` does. When
        the session's block ends normally, samples that were submitted may finish first.

        Raises:
            InvalidInputError: Before anything is sent.
            SessionClosedError: Outside the session's block.
        """
        self._is_open()
        limit_s = self._caller.limit_of(timeout)
        length, make_request = self._checked(
            prompt,
            sampling_params,
            num_samples,
            include_prompt_logprobs,
            topk_prompt_logprobs,
            topk_sample_logprobs,
        )
        future = SampleFuture("submit_sample", self._pool)
        work = partial(
            self._drawer.draw,
            future,
            make_request,
            _BYTES_PER_TOKEN * length,
            retry or self._policy,
        )

        async def draw() -> SampleResponse:
            drawn = await within(limit_s, future, work, hint=_GIVEN_UP)
            return self._response(future, drawn, num_samples)

        return self._submissions.start(future, draw)

    def map(
        self,
        requests: Requests,
        *,
        max_in_flight: int = 64,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> AbstractAsyncContextManager[SampleOutcomes]:
        """Draw a sample for each request, and hand over the results as they complete.

        `async with sampler.map(requests) as outcomes: async for outcome in outcomes: ...`. A
        request is taken from `requests` (which may be endless, and asynchronous) only when it
        is its turn, so that no more than `max_in_flight` of them are under way or wait to be
        read. One that fails is an outcome with an `error`; the others go on. Leaving the
        block cancels what is under way.

        Args:
            requests: Prompts, or `SampleTask` with the other arguments of `sample`.
            max_in_flight: Most samples at a time.
            timeout: Seconds for each sample, its time in line included.
            retry: As for `sample`.

        Raises:
            InvalidInputError: `max_in_flight` is below 1.
        """
        sample = partial(self._sample_task, timeout=timeout, retry=retry)
        return mapping(sample, requests, max_in_flight=max_in_flight)

    async def sample_group(
        self,
        prompt: ModelInput,
        n: int,
        sampling_params: SamplingParams | None = None,
        *,
        least: int | None = None,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> list[SampleResponse]:
        """Draw n samples of one prompt, each by a request of its own.

        Unlike `sample` with `num_samples`, one that fails or takes too long does not spoil the
        others. With a seed, sample i uses `seed + i`.

        Args:
            prompt: At least one token.
            n: How many.
            sampling_params: How to draw.
            least: How many must succeed; default all. As soon as that is out of reach the
                others are cancelled.
            timeout: Seconds for each of them.
            retry: As for `sample`.

        Returns:
            The responses of those that succeeded, at least `least`, in order of their number.

        Raises:
            InvalidInputError: Before anything is sent.
            TinkerError: The failure that was one too many.
        """
        self._is_open()
        if self.check_inputs:
            _check(prompt.length, 1, 0, 0)
        if n < 1:
            raise InvalidInputError(f"n: must be at least 1, got {n}", field="n")
        params = sampling_params or SamplingParams()
        tasks = [SampleTask(prompt, _seeded(params, index)) for index in range(n)]
        sample = partial(self._sample_task, timeout=timeout, retry=retry)
        try:
            return await group(sample, tasks, least=least)
        except TinkerError as error:
            error.operation = "sample_group"
            raise

    async def _sample_task(
        self,
        task: SampleTask,
        *,
        timeout: Timeout,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None,
    ) -> SampleResponse:
        return await self.sample(
            task.prompt,
            task.sampling_params,
            task.num_samples,
            task.include_prompt_logprobs,
            task.topk_prompt_logprobs,
            task.topk_sample_logprobs,
            timeout=timeout,
            retry=retry,
        )

    async def compute_logprobs(
        self,
        prompt: ModelInput,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> npt.NDArray[np.float32]:
        """Return the log-prob of each prompt token given those before it.

        Returns:
            float32 `[prompt length]`, natural logarithm at temperature 1; NaN at position 0.

        Raises: as `sample`.
        """
        try:
            response = await self.sample(
                prompt,
                SamplingParams(max_tokens=1),
                include_prompt_logprobs=True,
                timeout=timeout,
                retry=retry,
            )
            if response.prompt_logprobs is None:
                raise ResponseError(
                    "the server returned no prompt log-probs", endpoint=RETRIEVE_PATH
                )
        except TinkerError as error:
            error.operation = "compute_logprobs"
            raise
        return response.prompt_logprobs

    def handle(self) -> SamplerHandle:
        """Return what another process or machine needs to sample from the same weights.

        It has no secret in it, and serves any number of processes:
        `Session.create_sampling_client_from_handle` opens it there, with a credential of its
        own. What it promises is said there, too.

        Raises:
            SessionClosedError: Outside the session's block.
        """
        self._is_open()
        return self._handle

    async def get_base_model(
        self,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> str:
        """Return the name of the base model; asked once, then remembered."""
        if self._base_model is None:
            sampler = await self._caller.ask(
                "get_base_model",
                endpoints.sampler(self.sampling_session_id),
                answer=GetSamplerResponse,
                timeout=timeout,
                retry=retry,
            )
            self._base_model = sampler.base_model
        return self._base_model

    async def get_tokenizer(
        self,
        folder: str | PathLike[str] | None = None,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> Tokenizer:
        """Return the base model's tokenizer; as `TrainingClient.get_tokenizer`."""
        progress = Progress("get_tokenizer")

        async def load() -> Tokenizer:
            name = ""
            if folder is None:
                name = await self.get_base_model(timeout=None, retry=retry)
            return await load_tokenizer(
                self._caller, name, folder=folder, policy=retry, progress=progress
            )

        return await within(self._caller.limit_of(timeout), progress, load)

    def _checked(
        self,
        prompt: ModelInput,
        sampling_params: SamplingParams | None,
        num_samples: int,
        include_prompt_logprobs: bool,
        topk_prompt_logprobs: int,
        topk_sample_logprobs: int,
    ) -> tuple[int, partial[SampleRequest]]:
        """Check the arguments of `sample`.

        Returns:
            The prompt's length, and what makes the request from `seq_id`.
        """
        params = sampling_params or SamplingParams()
        length = prompt.length
        if self.check_inputs:
            _check(length, num_samples, topk_prompt_logprobs, topk_sample_logprobs)
            check_sample_length(length, params.max_tokens, self.context_length)
        return length, partial(
            SampleRequest,
            sampling_session_id=self.sampling_session_id,
            prompt=prompt,
            sampling_params=params,
            num_samples=num_samples,
            prompt_logprobs=True if include_prompt_logprobs else None,
            topk_prompt_logprobs=topk_prompt_logprobs,
            topk_sample_logprobs=topk_sample_logprobs,
        )

    def _response(self, draw: AnyDraw, drawn: Drawn, num_samples: int) -> SampleResponse:
        result, promise, seq_id = drawn
        ids = promise.sample_sequence_ids or [
            f"{self.sampling_session_id}:{seq_id}:{index}" for index in range(num_samples)
        ]
        try:
            return _decode(result, ids)
        except ResponseError as error:
            draw.describe(error)
            raise

    def __repr__(self) -> str:
        return f"<SamplingClient {self.sampling_session_id}: {self._pool.places!r}>"


def _decode(result: PromiseResult, sequence_ids: list[str]) -> SampleResponse:
    try:
        if result.is_protobuf:
            return wire_sampling.decode_sample_response(result.body, sequence_ids)
        return wire_json.sample_response_from_json(result.body, sequence_ids)
    except Exception as error:  # whatever a strange answer breaks: one sample, not the session
        raise ResponseError(
            f"the result of a sample was not understood: {error}", endpoint=RETRIEVE_PATH
        ) from error


def _seeded(params: SamplingParams, index: int) -> SamplingParams:
    if params.seed is None:
        return params
    return msgspec.structs.replace(params, seed=params.seed + index)


def _check(length: int, num_samples: int, topk_prompt: int, topk_sample: int) -> None:
    if length == 0:
        raise InvalidInputError("prompt has no tokens", field="prompt")
    if num_samples < 1:
        raise InvalidInputError(
            f"num_samples: must be at least 1, got {num_samples}", field="num_samples"
        )
    for field, value in (
        ("topk_prompt_logprobs", topk_prompt),
        ("topk_sample_logprobs", topk_sample),
    ):
        if value < 0:
            raise InvalidInputError(f"{field}: must not be negative", field=field)
