"""Sampling sessions and samples."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from tinker_async.data.results import SampleResponse, TopkLogprobs
from tinker_async.errors import InvalidInputError
from tinker_async.local.engine.jobs import Sample
from tinker_async.local.server.completions import CLONE_NUMBERS
from tinker_async.local.server.endpoints.loading import checkpoint_at
from tinker_async.local.server.endpoints.routing import Handler, body_of
from tinker_async.local.server.endpoints.training import check_base_model
from tinker_async.local.server.http import answer, parse
from tinker_async.local.server.promises import Promise
from tinker_async.local.server.refusal import Refusal, checked_number
from tinker_async.local.server.service import Sampler, Service
from tinker_async.local.server.snapshots import SnapshotGoneError
from tinker_async.wire.messages import (
    CreateSamplingSessionRequest,
    CreateSamplingSessionResponse,
    SampleRequest,
    UntypedAPIFuture,
)


async def create_sampling_session(service: Service, request: Request) -> Response:
    """Open a sampling session on the base model or on a checkpoint of either kind."""
    body = await body_of(service, request)
    wanted = parse(body, CreateSamplingSessionRequest)
    session = service.session(wanted.session_id)
    number = checked_number(wanted.sampling_session_seq_id, "sampling_session_seq_id")
    known = session.samplers.get(number)
    if known is None:
        sampler = _open(service, f"{session.id}:sample:{number}", wanted)
        session.samplers[number] = (body.digest, sampler.id)
        service.add_sampler(sampler)
        return answer(CreateSamplingSessionResponse(sampling_session_id=sampler.id))
    if known[0] != body.digest:
        raise Refusal(
            409,
            f"sampling_session_seq_id {number} was used for another sampler",
            field="sampling_session_seq_id",
        )
    return answer(CreateSamplingSessionResponse(sampling_session_id=known[1]))


def _open(service: Service, sampler_id: str, wanted: CreateSamplingSessionRequest) -> Sampler:
    if wanted.model_path is None:
        if wanted.base_model is None:
            raise Refusal(400, "base_model or model_path must be given", field="base_model")
        check_base_model(service, wanted.base_model)
        return Sampler(sampler_id, wanted.session_id, None, None)
    row = checkpoint_at(service, wanted.model_path, field="model_path", purpose="sample")
    check_base_model(service, row.base_model)
    service.snapshots.register(row.folder, service.folders.inside(row.folder))
    return Sampler(sampler_id, wanted.session_id, row.folder, wanted.model_path)


async def asample(service: Service, request: Request) -> Response:
    """Queue a sample. Promises the ids of its sequences too."""
    body = await body_of(service, request)
    wanted = parse(body, SampleRequest)
    if wanted.sampling_session_id is None:
        raise Refusal(422, "sampling_session_id is missing", field="sampling_session_id")
    sampler = service.sampler(wanted.sampling_session_id)
    known = service.samples.repeated(sampler, wanted.seq_id, body.digest)
    if known is not None:
        return _promised(known, _sequence_ids(sampler, wanted))
    _check(service, wanted)
    service.waiting.check(len(body.data))
    ids = _sequence_ids(sampler, wanted)
    promise = service.promises.make("sample", session_id=sampler.session_id)
    promise.listing = sampler.completions_of((wanted.seq_id or 0) // CLONE_NUMBERS)
    if wanted.seq_id is None:
        sampler.unnumbered += 1
    else:
        service.samples.remember(sampler, wanted.seq_id, body.digest, promise)
    _start(service, sampler, promise, wanted, ids, size_bytes=len(body.data))
    return _promised(promise, ids)


def _sequence_ids(sampler: Sampler, wanted: SampleRequest) -> list[str]:
    number = f"u{sampler.unnumbered}" if wanted.seq_id is None else str(wanted.seq_id)
    return [f"{sampler.id}:{number}:{index}" for index in range(wanted.num_samples)]


def _promised(promise: Promise, ids: list[str]) -> Response:
    return answer(UntypedAPIFuture(request_id=promise.request_id, sample_sequence_ids=ids))


def _check(service: Service, wanted: SampleRequest) -> None:
    limits = service.limits
    if not 1 <= wanted.num_samples <= limits.sequences_per_sample:
        raise Refusal(
            400,
            f"num_samples must be between 1 and {limits.sequences_per_sample}, got {wanted.num_samples}",
            field="num_samples",
        )
    if wanted.prompt.text_length < 0:
        raise Refusal(400, "this server reads text alone, no images and no audio", field="prompt")
    if wanted.prompt_alt_tokens_k < 0:
        raise Refusal(400, "must not be negative", field="prompt_alt_tokens_k")
    last_n = wanted.prompt_logprobs_last_n
    if last_n is not None and not (wanted.prompt_logprobs and 1 <= last_n < wanted.prompt.length):
        raise Refusal(
            400,
            "needs prompt_logprobs, and must be between 1 and one less than the prompt's tokens",
            field="prompt_logprobs_last_n",
        )
    if service.samples_waiting >= limits.samples_waiting:
        raise Refusal(429, f"{service.samples_waiting} samples are waiting", retry_after_s=1)


def _start(
    service: Service,
    sampler: Sampler,
    promise: Promise,
    wanted: SampleRequest,
    ids: list[str],
    *,
    size_bytes: int,
) -> None:
    job = Sample(
        prompt=wanted.prompt.to_numpy(),
        params=wanted.sampling_params,
        snapshot_id=sampler.snapshot_id,
        num_samples=wanted.num_samples,
        prompt_logprobs=bool(wanted.prompt_logprobs),
        topk_prompt_logprobs=wanted.topk_prompt_logprobs,
        topk_sample_logprobs=wanted.topk_sample_logprobs,
        target_prompt_logprobs=wanted.target_prompt_logprobs,
        prompt_alt_tokens_k=wanted.prompt_alt_tokens_k,
        key=promise.request_id,
    )
    service.samples_waiting += 1
    service.waiting.take(size_bytes)
    last_n = wanted.prompt_logprobs_last_n
    finish = partial(_finish, service, sampler, promise, last_n, ids, size_bytes=size_bytes)
    if sampler.snapshot_id is None or service.snapshots.pin_now(sampler.snapshot_id):
        service.port.submit(job, finish)
    else:
        service.start_soon(_start_loaded, service, sampler.snapshot_id, promise, job, finish)


async def _start_loaded(
    service: Service, snapshot_id: str, promise: Promise, job: Sample, finish: Any
) -> None:
    try:
        await service.snapshots.pin(snapshot_id)
    except SnapshotGoneError:
        text = (
            "these weights are gone: too many newer samplers; save them under a name to keep them"
        )
        finish(InvalidInputError(text, field="sampling_session_id"), pinned=False)
    except Exception as error:  # noqa: BLE001  # the boundary: a bad folder fails this sample only
        finish(error, pinned=False)
    else:
        if promise.settled:  # cancelled while the weights were loading
            finish(None)
        else:
            service.port.submit(job, finish)


def _finish(
    service: Service,
    sampler: Sampler,
    promise: Promise,
    last_n: int | None,
    ids: list[str],
    result: Any,
    *,
    size_bytes: int,
    pinned: bool = True,
) -> None:
    service.samples_waiting -= 1
    service.waiting.give_back(size_bytes)
    if pinned and sampler.snapshot_id is not None:
        service.snapshots.unpin(sampler.snapshot_id)
    if isinstance(result, SampleResponse):
        sequences = [
            msgspec.structs.replace(sequence, sequence_id=sequence_id)
            for sequence, sequence_id in zip(result.sequences, ids, strict=True)
        ]
        result = msgspec.structs.replace(result, sequences=sequences)
        if last_n is not None:
            result = _only_last(result, last_n)
    promise.settle(result)


def _only_last(response: SampleResponse, last_n: int) -> SampleResponse:
    logprobs, topk = response.prompt_logprobs, response.topk_prompt_logprobs
    if logprobs is not None:
        logprobs = logprobs.copy()
        logprobs[:-last_n] = np.nan
    if topk is not None:
        token_ids, values = topk.token_ids.copy(), topk.logprobs.copy()
        token_ids[:-last_n], values[:-last_n] = 0, TopkLogprobs.EMPTY
        topk = TopkLogprobs(token_ids, values)
    return msgspec.structs.replace(response, prompt_logprobs=logprobs, topk_prompt_logprobs=topk)


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/create_sampling_session", create_sampling_session),
    ("POST", "/asample", asample),
)
