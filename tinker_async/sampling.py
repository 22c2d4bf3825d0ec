"""`SamplingClient`: samples from one immutable set of weights.

Its methods are coroutines in the caller's own scope: start many at once in a task
group, and cancel any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import numpy.typing as npt

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller, decode_json
from tinker_async.api.promises import PATH as RETRIEVE_PATH
from tinker_async.api.promises import RETRIEVE_ANY, PromiseResult, retrieve
from tinker_async.api.retry import RetryPolicy
from tinker_async.background.sampling_pool import SamplingPool
from tinker_async.data.model_input import ModelInput
from tinker_async.data.params import SamplingParams
from tinker_async.data.results import SampleResponse
from tinker_async.errors import (
    InvalidInputError,
    PromiseLostError,
    RateLimitError,
    RequestTimeoutError,
    ResponseError,
)
from tinker_async.logs import log
from tinker_async.tokenizer import load_tokenizer
from tinker_async.wire import json as wire_json
from tinker_async.wire import sampling as wire_sampling
from tinker_async.wire.messages import GetSamplerResponse, SampleRequest, UntypedAPIFuture
from tinker_async.wire.protobuf import DecodeError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MOST_RESUBMISSIONS = 5
_BYTES_PER_TOKEN = 10


class SamplingClient:
    """Samples from a base model, a checkpoint or a snapshot. Made by a session.

    All samplers of a session share its limits: so many samples under way, so many
    bytes being sent, one back-off.
    """

    def __init__(
        self,
        sampling_session_id: str,
        *,
        caller: Caller,
        pool: SamplingPool,
        policy: RetryPolicy,
        base_model: str | None,
        model_path: str | None,
        is_open: Callable[[], Any],
    ) -> None:
        self.sampling_session_id = sampling_session_id
        """The server's id of this sampler."""
        self.model_path = model_path
        """The checkpoint's path, if it was made from one."""
        self._caller = caller
        self._pool = pool
        self._policy = policy
        self._base_model = base_model
        self._is_open = is_open
        self._next_seq_id = 0

    async def sample(
        self,
        prompt: ModelInput,
        sampling_params: SamplingParams | None = None,
        num_samples: int = 1,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
        *,
        timeout: float | None = None,  # noqa: ASYNC109  # the official name
    ) -> SampleResponse:
        """Draw sequences that continue a prompt.

        Args:
            prompt: At least one token.
            sampling_params: How to draw; default `SamplingParams()`.
            num_samples: How many sequences.
            include_prompt_logprobs: Also return the log-prob of each prompt token.
            topk_prompt_logprobs: Also return the k most likely tokens at each prompt position.
            topk_sample_logprobs: The same at each sampled position.
            timeout: Seconds for all of it, waiting in line included; None is no limit.

        Cancelling (or the timeout) gives the sample up: its place is freed and the
        server is told. Nothing else is disturbed.

        Raises:
            InvalidInputError: Before anything is sent.
            RequestFailedError: The server could not carry it out.
            RequestTimeoutError: `timeout` is over.
            SessionClosedError: Outside the session's block.
        """
        self._is_open()
        _check(prompt, num_samples, topk_prompt_logprobs, topk_sample_logprobs)
        make_request = partial(
            SampleRequest,
            sampling_session_id=self.sampling_session_id,
            prompt=prompt,
            sampling_params=sampling_params or SamplingParams(),
            num_samples=num_samples,
            prompt_logprobs=True if include_prompt_logprobs else None,
            topk_prompt_logprobs=topk_prompt_logprobs,
            topk_sample_logprobs=topk_sample_logprobs,
        )
        nbytes = _BYTES_PER_TOKEN * prompt.length
        if timeout is None:
            return await self._within_limits(make_request, nbytes)
        response: SampleResponse | None = None
        with anyio.move_on_after(timeout):
            response = await self._within_limits(make_request, nbytes)
        if response is None:
            raise RequestTimeoutError(
                f"the sample had no result after {timeout} s", hint="it was cancelled"
            )
        return response

    async def compute_logprobs(
        self,
        prompt: ModelInput,
        *,
        timeout: float | None = None,  # noqa: ASYNC109  # the official name
    ) -> npt.NDArray[np.float32]:
        """Return the log-prob of each prompt token given those before it.

        Returns:
            float32 `[prompt length]`, natural logarithm at temperature 1; NaN at position 0.

        Raises: as `sample`.
        """
        response = await self.sample(
            prompt,
            SamplingParams(max_tokens=1),
            include_prompt_logprobs=True,
            timeout=timeout,
        )
        if response.prompt_logprobs is None:
            raise ResponseError("the server returned no prompt log-probs", endpoint=RETRIEVE_PATH)
        return response.prompt_logprobs

    async def get_base_model(self) -> str:
        """Return the name of the base model; asked once, then remembered."""
        if self._base_model is None:
            sampler = await self._caller.call_json(
                endpoints.sampler(self.sampling_session_id), answer=GetSamplerResponse
            )
            self._base_model = sampler.base_model
        return self._base_model

    async def get_tokenizer(self, folder: str | PathLike[str] | None = None) -> Tokenizer:
        """Return the base model's tokenizer; as `TrainingClient.get_tokenizer`."""
        name = "" if folder is not None else await self.get_base_model()
        return await load_tokenizer(self._caller, name, folder=folder)

    async def _within_limits(
        self, make_request: Callable[..., SampleRequest], nbytes: int
    ) -> SampleResponse:
        await self._pool.places.acquire()
        try:
            for _ in range(_MOST_RESUBMISSIONS):
                try:
                    return await self._sample_once(make_request, nbytes)
                except PromiseLostError as error:
                    # A sample has no effect on the server: it can simply be drawn again.
                    log.info("sample_resubmitted", request_id=error.request_id)
            return await self._sample_once(make_request, nbytes)
        finally:
            self._pool.places.release()

    async def _sample_once(
        self, make_request: Callable[..., SampleRequest], nbytes: int
    ) -> SampleResponse:
        seq_id, self._next_seq_id = self._next_seq_id, self._next_seq_id + 1
        request = make_request(seq_id=seq_id)
        promise = await self._submit(request, nbytes)
        try:
            result = await retrieve(
                self._caller, promise.request_id, endpoint=RETRIEVE_ANY, policy=self._policy
            )
        except anyio.get_cancelled_exc_class():
            self._pool.abandon(promise.request_id)
            raise
        ids = promise.sample_sequence_ids or [
            f"{self.sampling_session_id}:{seq_id}:{index}" for index in range(request.num_samples)
        ]
        return _decode(result, ids)

    async def _submit(self, request: SampleRequest, nbytes: int) -> UntypedAPIFuture:
        while True:
            await self._pool.start_dispatch(nbytes)
            try:
                response = await self._caller.call(
                    endpoints.SAMPLE,
                    (wire_json.encode(request),),
                    policy=self._policy,
                    never_repeat=(RateLimitError,),
                )
            except RateLimitError as error:
                self._pool.back_off(error, nbytes)
            else:
                return decode_json(response.body, UntypedAPIFuture, endpoints.SAMPLE.path)
            finally:
                self._pool.end_dispatch(nbytes)

    def __repr__(self) -> str:
        return f"<SamplingClient {self.sampling_session_id}: {self._pool.places!r}>"


def _decode(result: PromiseResult, sequence_ids: list[str]) -> SampleResponse:
    try:
        if result.is_protobuf:
            return wire_sampling.decode_sample_response(result.body, sequence_ids)
        return wire_json.sample_response_from_json(result.body, sequence_ids)
    except DecodeError as error:
        raise ResponseError(
            f"the result of a sample was not understood: {error}", endpoint=RETRIEVE_PATH
        ) from error


def _check(prompt: ModelInput, num_samples: int, topk_prompt: int, topk_sample: int) -> None:
    if prompt.length == 0:
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
