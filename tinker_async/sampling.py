"""`SamplingClient`: samples from one immutable set of weights.

Its methods are coroutines in the caller's own scope: start many at once in a task
group, and cancel any of them. Only `submit_sample` leaves the waiting to the session.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller
from tinker_async.api.features import Feature
from tinker_async.api.progress import DEFAULT, Progress, Timeout, within
from tinker_async.api.promises import PATH as RETRIEVE_PATH
from tinker_async.api.retry import RetryPolicy
from tinker_async.background.draws import AnyDraw, Draw, Drawer, Drawn, SampleFuture, Submissions
from tinker_async.background.sampling_pool import SamplingPool
from tinker_async.background.session_poller import SessionPoller
from tinker_async.data import given
from tinker_async.data.handles import SamplerHandle
from tinker_async.data.model_input import EncodedTextChunk, ModelInput
from tinker_async.data.params import SamplingParams
from tinker_async.data.records import GetSamplerResponse
from tinker_async.data.results import SampleResponse
from tinker_async.data.tensors import TensorLike
from tinker_async.errors import (
    BadRequestError,
    InvalidInputError,
    ResponseError,
    TinkerError,
    UnprocessableEntityError,
)
from tinker_async.futures import APIFuture
from tinker_async.many_samples import (
    Requests,
    SampleOutcomes,
    SampleTask,
    check_requests,
    group,
    mapping,
)
from tinker_async.plan.checks import check_prompt, check_sample_length
from tinker_async.plan.prompt_scores import PromptScores, prompt_scores
from tinker_async.tokenizer import load_tokenizer
from tinker_async.wire import json as wire_json
from tinker_async.wire import sampling as wire_sampling
from tinker_async.wire.messages import SampleRequest
from tinker_async.wire.promises import PromiseResult

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTES_PER_TOKEN = 10
_GIVEN_UP = "it was cancelled"
_MAX_TOKENS = 128
"""Where neither the caller nor the server has a limit, and the context's length is not known."""


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
        poller: SessionPoller | None = None,
    ) -> None:
        self.sampling_session_id = handle.sampling_session_id
        """The server's id of this sampler."""
        self.model_path = handle.model_path
        """The checkpoint's path, if it was made from one."""
        self.check_inputs = True
        """Whether arguments are checked before they are sent."""
        self.record_stability_info = False
        """Whether the server keeps what training with `stable_reinforce` needs of each sample."""
        self.context_length: int | None = None
        """The most tokens of a prompt and its sample; None where the server does not say."""
        self._handle = handle
        self._caller = caller
        self._pool = pool
        self._submissions = submissions
        self._policy = policy
        self._base_model = handle.base_model
        self._is_open = is_open
        self._saw_ids = False
        self._drawer = Drawer(caller, pool, first_seq_id, poller)

    async def sample(
        self,
        prompt: ModelInput,
        sampling_params: SamplingParams | None = None,
        num_samples: int = 1,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
        target_prompt_logprobs: TensorLike | None = None,
        prompt_alt_tokens_k: int = 0,
        prompt_logprobs_last_n: int | None = None,
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
            target_prompt_logprobs: Also return the log-probs of these tokens: ids, int64
                `[prompt length - 1, K]`, row i for position i + 1, -1 for none. A sparse tensor
                (`TensorData.from_torch_sparse(ids, pad_value=-1)`) sends only the others.
            prompt_alt_tokens_k: Also draw k tokens for each prompt position after the first.
            prompt_logprobs_last_n: Score only so many tokens at the prompt's end; needs
                `include_prompt_logprobs`, and goes for the top k as well.
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
            ResponseError: The server did not do what one of the last three arguments asks for.
            RequestTimeoutError: `timeout` is over.
            SessionClosedError: Outside the session's block.
        """
        self._is_open()
        limit_s = self._caller.limit_of(timeout, retry)
        nbytes, request, scores = self._checked(
            prompt,
            sampling_params,
            num_samples,
            include_prompt_logprobs,
            topk_prompt_logprobs,
            topk_sample_logprobs,
            target_prompt_logprobs,
            prompt_alt_tokens_k,
            prompt_logprobs_last_n,
        )
        draw = Draw("sample", self._pool)
        policy = retry or self._policy
        draw_it = self._drawer.draw if request.sampling_params.max_tokens else self._draw_unlimited
        if limit_s is None:
            drawn = await draw_it(draw, request, nbytes, policy)
        else:
            work = partial(draw_it, draw, request, nbytes, policy)
            drawn = await within(limit_s, draw, work, hint=_GIVEN_UP)
        return self._response(draw, drawn, prompt, num_samples, scores)

    def submit_sample(
        self,
        prompt: ModelInput,
        sampling_params: SamplingParams | None = None,
        num_samples: int = 1,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
        target_prompt_logprobs: TensorLike | None = None,
        prompt_alt_tokens_k: int = 0,
        prompt_logprobs_last_n: int | None = None,
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
        limit_s = self._caller.limit_of(timeout, retry)
        nbytes, request, scores = self._checked(
            prompt,
            sampling_params,
            num_samples,
            include_prompt_logprobs,
            topk_prompt_logprobs,
            topk_sample_logprobs,
            target_prompt_logprobs,
            prompt_alt_tokens_k,
            prompt_logprobs_last_n,
        )
        future = SampleFuture("submit_sample", self._pool)
        draw_it = self._drawer.draw if request.sampling_params.max_tokens else self._draw_unlimited
        work = partial(
            draw_it,
            future,
            request,
            nbytes,
            retry or self._policy,
        )

        async def draw() -> SampleResponse:
            drawn = await within(limit_s, future, work, hint=_GIVEN_UP)
            return self._response(future, drawn, prompt, num_samples, scores)

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
            InvalidInputError: `max_in_flight` is below 1, or there is nothing to iterate over.
        """
        self._caller.limit_of(timeout, retry)
        check_requests(requests, max_in_flight)
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
        params = SamplingParams() if sampling_params is None else sampling_params
        check_prompt(prompt, params)
        if self.check_inputs:
            _check(prompt.least_length, 1, 0, 0)
        given.whole(n, "n", least=1)
        self._caller.limit_of(timeout, retry)
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
            task.target_prompt_logprobs,
            task.prompt_alt_tokens_k,
            task.prompt_logprobs_last_n,
            timeout=timeout,
            retry=retry,
        )

    async def compute_logprobs(
        self,
        prompt: ModelInput,
        prompt_logprobs_last_n: int | None = None,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> npt.NDArray[np.float32]:
        """Return the log-prob of each prompt token given those before it.

        Args:
            prompt: At least one token.
            prompt_logprobs_last_n: Score only so many tokens at its end, which costs less where
                the server knows the beginning already.
            timeout: As for `sample`.
            retry: As for `sample`.

        Returns:
            float32 `[prompt length]`, natural logarithm at temperature 1; NaN at position 0 and
            where nothing was scored.

        Raises: as `sample`.
        """
        try:
            response = await self.sample(
                prompt,
                SamplingParams(max_tokens=1),
                include_prompt_logprobs=True,
                prompt_logprobs_last_n=prompt_logprobs_last_n,
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
        self._caller.limit_of(timeout, retry)
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
        if folder is not None:
            given.path(folder, "folder")

        async def load() -> Tokenizer:
            name = ""
            if folder is None:
                name = await self.get_base_model(timeout=None, retry=retry)
            return await load_tokenizer(
                self._caller, name, folder=folder, policy=retry, progress=progress
            )

        return await within(self._caller.limit_of(timeout, retry), progress, load)

    def _checked(
        self,
        prompt: ModelInput,
        sampling_params: SamplingParams | None,
        num_samples: int,
        include_prompt_logprobs: bool,
        topk_prompt_logprobs: int,
        topk_sample_logprobs: int,
        target_prompt_logprobs: TensorLike | None,
        prompt_alt_tokens_k: int,
        prompt_logprobs_last_n: int | None,
    ) -> tuple[int, SampleRequest, PromptScores | None]:
        """Check the arguments of `sample`.

        Returns:
            The request's size in bytes, roughly; the request, its `seq_id` open; and what the
            response must have because of the last three arguments, if they ask for anything.
        """
        params = SamplingParams() if sampling_params is None else sampling_params
        check_prompt(prompt, params)
        if type(params.stop) is str:  # some servers take no bare one, or each letter of it
            params = msgspec.structs.replace(params, stop=(params.stop,))
        length = prompt.text_length
        nbytes = _BYTES_PER_TOKEN * length
        if length < 0:
            length, nbytes = prompt.least_length, _size_of(prompt)
        if self.check_inputs:
            _check(length, num_samples, topk_prompt_logprobs, topk_sample_logprobs)
            if type(include_prompt_logprobs) is not bool:
                given.flag(include_prompt_logprobs, "include_prompt_logprobs")
            if type(prompt_alt_tokens_k) is not int:
                given.whole(prompt_alt_tokens_k, "prompt_alt_tokens_k", least=0)
            check_sample_length(length, params.max_tokens, self.context_length)
        if topk_prompt_logprobs or topk_sample_logprobs or self.record_stability_info:
            self._require(
                topk_prompt_logprobs=topk_prompt_logprobs,
                topk_sample_logprobs=topk_sample_logprobs,
                stability_info=self.record_stability_info,
            )
        request = SampleRequest(
            sampling_session_id=self.sampling_session_id,
            prompt=prompt,
            sampling_params=params,
            num_samples=num_samples,
            prompt_logprobs=True if include_prompt_logprobs else None,
            topk_prompt_logprobs=topk_prompt_logprobs,
            topk_sample_logprobs=topk_sample_logprobs,
            record_stability_info=True if self.record_stability_info else None,
        )
        if (
            target_prompt_logprobs is None
            and not prompt_alt_tokens_k
            and prompt_logprobs_last_n is None
        ):
            return nbytes, request, None
        self._require(
            target_prompt_logprobs=target_prompt_logprobs is not None,
            prompt_alt_tokens=prompt_alt_tokens_k,
            prompt_logprobs_last_n=prompt_logprobs_last_n is not None,
        )
        scores = prompt_scores(
            prompt,
            target_prompt_logprobs,
            prompt_alt_tokens_k,
            prompt_logprobs_last_n,
            include_prompt_logprobs=include_prompt_logprobs,
            check=self.check_inputs,
        )
        request = msgspec.structs.replace(request, **scores.fields())
        return nbytes + scores.nbytes, request, scores

    def _require(self, **wanted: bool | int) -> None:
        """Refuse what is wanted of a server that is known not to have it."""
        self._caller.features.require_all(Feature(name) for name, wants in wanted.items() if wants)

    async def _draw_unlimited(
        self, draw: AnyDraw, request: SampleRequest, nbytes: int, policy: RetryPolicy
    ) -> Drawn:
        """Draw a sample whose length is the server's to choose, or ours where it cannot."""
        features = self._caller.features
        if Feature.MAX_TOKENS_DEFAULT not in features.missing:
            try:
                return await self._drawer.draw(draw, request, nbytes, policy)
            except (BadRequestError, UnprocessableEntityError) as error:
                if "max_tokens" not in error.detail:
                    raise
                features.learn(Feature.MAX_TOKENS_DEFAULT, False, detail=error.message)
        room = (self.context_length or 0) - request.prompt.length
        params = msgspec.structs.replace(
            request.sampling_params, max_tokens=room if room > 0 else _MAX_TOKENS
        )
        request = msgspec.structs.replace(request, sampling_params=params)
        return await self._drawer.draw(draw, request, nbytes, policy)

    def _response(
        self,
        draw: AnyDraw,
        drawn: Drawn,
        prompt: ModelInput,
        num_samples: int,
        scores: PromptScores | None,
    ) -> SampleResponse:
        result, sequence_ids, seq_id = drawn
        if not self._saw_ids:
            self._saw_ids = True
            self._caller.features.learn(Feature.SEQUENCE_IDS, bool(sequence_ids))
        ids = sequence_ids or [
            f"{self.sampling_session_id}:{seq_id}:{index}" for index in range(num_samples)
        ]
        try:
            response = _decode(result, ids)
            if response.prompt_logprobs is not None:
                response = _from_first_token(response, prompt)
            return response if scores is None else scores.check_response(response)
        except ResponseError as error:
            draw.describe(error)
            raise

    def __repr__(self) -> str:
        return f"<SamplingClient {self.sampling_session_id}: {self._pool.places!r}>"


def _decode(result: PromiseResult, sequence_ids: Sequence[str]) -> SampleResponse:
    try:
        if result.is_protobuf:
            return wire_sampling.decode_sample_response(result.body, sequence_ids)
        return wire_json.sample_response_from_json(result.body, sequence_ids)
    except Exception as error:  # whatever a strange answer breaks: one sample, not the session
        raise ResponseError(
            f"the result of a sample was not understood: {error}", endpoint=RETRIEVE_PATH
        ) from error


def _from_first_token(response: SampleResponse, prompt: ModelInput) -> SampleResponse:
    """Let prompt log-probs begin at the first token, which some servers leave out."""
    found = response.prompt_logprobs
    if found is None or found.size != prompt.text_length - 1:
        return response
    whole = np.concatenate((np.full(1, np.nan, dtype=np.float32), found))
    return msgspec.structs.replace(response, prompt_logprobs=whole)


def _size_of(prompt: ModelInput) -> int:
    """Return about how many bytes a prompt with files is in JSON, where they are base64."""
    return sum(
        _BYTES_PER_TOKEN * chunk.length
        if isinstance(chunk, EncodedTextChunk)
        else 4 * chunk.nbytes // 3
        for chunk in prompt.chunks
    )


def _seeded(params: SamplingParams, index: int) -> SamplingParams:
    if params.seed is None:
        return params
    return msgspec.structs.replace(params, seed=params.seed + index)


def _check(length: int, num_samples: int, topk_prompt: int, topk_sample: int) -> None:
    if length == 0:
        raise InvalidInputError("prompt has no tokens", field="prompt")
    if type(num_samples) is not int or num_samples < 1:
        given.whole(num_samples, "num_samples", least=1)
    for field, value in (
        ("topk_prompt_logprobs", topk_prompt),
        ("topk_sample_logprobs", topk_sample),
    ):
        if type(value) is not int or value < 0:
            given.whole(value, field, least=0)
