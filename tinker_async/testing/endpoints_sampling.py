"""Sampling sessions, samples, and the fetching of results."""

from __future__ import annotations

import hashlib
from typing import Any

import anyio

from tinker_async.data.records import GetSamplerResponse
from tinker_async.errors import InvalidInputError
from tinker_async.testing.answers import PROTOBUF, Answer, Refusal, json_answer
from tinker_async.testing.endpoints_training import check_base_model, checkpoint_at, claim_sampler
from tinker_async.testing.faults import OperationFails
from tinker_async.testing.ledger import SampleLine
from tinker_async.testing.promises import Promise
from tinker_async.testing.routing import Call, Route
from tinker_async.testing.state import Sampler, State
from tinker_async.testing.toy_inputs import toy_tokens
from tinker_async.testing.toy_model import ToyWeights
from tinker_async.testing.toy_sampling import draw
from tinker_async.wire import json as wire_json
from tinker_async.wire.messages import (
    CreateSamplingSessionRequest,
    CreateSamplingSessionResponse,
    FailedResponse,
    RetrieveFutureRequest,
    SampleRequest,
    TryAgainResponse,
    UntypedAPIFuture,
)
from tinker_async.wire.sampling import encode_sample_response
from tinker_async.wire.training import encode_forward_backward_output

CLIENT_NUMBERS = 1_000_000_000
"""So many numbers each client of a sampler has."""
CANCELLED = FailedResponse(error="the sample was cancelled", category="user")


def create_sampling_session(state: State, call: Call) -> Answer:
    """Open a sampling session on a base model or a checkpoint of either kind."""
    wanted = call.parse(CreateSamplingSessionRequest)
    session = state.session(wanted.session_id)
    number = wanted.sampling_session_seq_id
    if wanted.model_path is not None:
        weights = checkpoint_at(state, wanted.model_path).state.weights
    elif wanted.base_model is not None:
        check_base_model(state, wanted.base_model)
        weights = ToyWeights(wanted.base_model, {})
    else:
        raise Refusal(400, "base_model or model_path must be given")
    claim_sampler(state, session, number, call.digest)
    sampler_id = session.samplers[number][1]
    if sampler_id not in state.samplers:
        state.samplers[sampler_id] = Sampler(sampler_id, session.id, weights, wanted.model_path)
    return json_answer(CreateSamplingSessionResponse(sampling_session_id=sampler_id))


def get_sampler(state: State, call: Call) -> Answer:
    """Describe a sampling session."""
    sampler = state.sampler(call.ids[0])
    return json_answer(
        GetSamplerResponse(
            sampler_id=sampler.id,
            base_model=sampler.weights.base_model,
            model_path=sampler.model_path,
        )
    )


def asample(state: State, call: Call) -> Answer:
    """Draw a sample. A repetition gets the promise of the first time."""
    wanted = call.parse(SampleRequest)
    if wanted.sampling_session_id is None:
        raise Refusal(422, "sampling_session_id is missing")
    sampler = state.sampler(wanted.sampling_session_id)
    known = None if wanted.seq_id is None else sampler.numbers.get(wanted.seq_id)
    if known is not None:
        if known[0] != call.digest:
            raise Refusal(409, f"seq_id {wanted.seq_id} was used for another sample")
        if known[1].line is not None:
            known[1].line.asked += 1
        return _sample_promised(call, sampler, wanted, known[1])
    _check(wanted)
    promise = state.promises.make("sample", sampler.session_id)
    promise.line = SampleLine(sampler.id, wanted.seq_id, promise.request_id, wanted.num_samples)
    state.ledger.samples.append(promise.line)
    if wanted.seq_id is None:
        sampler.unnumbered += 1
    else:
        sampler.numbers[wanted.seq_id] = (call.digest, promise)
        sampler.completions_of(wanted.seq_id // CLIENT_NUMBERS).add(promise)
    promise.settle(
        _drawn(state, call, sampler, wanted), due_s=anyio.current_time() + state.settings.sample_s
    )
    return _sample_promised(call, sampler, wanted, promise)


def _check(wanted: SampleRequest) -> None:
    if not 1 <= wanted.num_samples <= 1024:
        raise Refusal(400, f"num_samples must be between 1 and 1024, got {wanted.num_samples}")
    try:
        length = toy_tokens(wanted.prompt).size
    except InvalidInputError as error:
        raise Refusal(400, f"prompt: {error}") from error
    last_n, target = wanted.prompt_logprobs_last_n, wanted.target_prompt_logprobs
    if last_n is not None and not (wanted.prompt_logprobs and 1 <= last_n < length):
        raise Refusal(400, "prompt_logprobs_last_n needs prompt_logprobs, and a part of the prompt")
    if wanted.prompt_alt_tokens_k < 0:
        raise Refusal(400, "prompt_alt_tokens_k must not be negative")
    if target is None:
        return
    shape = target.dense_shape
    if target.dtype != "int64" or len(shape) != 2 or shape[0] != length - 1:
        raise Refusal(400, f"target_prompt_logprobs must be int64 of shape [{length - 1}, K]")
    if target.data.size == 0 or target.data.max() < 0:
        raise Refusal(400, "target_prompt_logprobs names no token")


def _drawn(state: State, call: Call, sampler: Sampler, wanted: SampleRequest) -> Any:
    if isinstance(call.fault, OperationFails):
        return FailedResponse(error=call.fault.error, category=call.fault.category)
    number = -sampler.unnumbered if wanted.seq_id is None else wanted.seq_id
    # Without a seed a sample depends on its sampler and its number: as good as random,
    # and the same in every run.
    words = f"{state.settings.seed}/{sampler.id}/{number}".encode()
    seed = int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")
    drawn = draw(sampler.weights, wanted, seed=seed)
    base_model, tokens = sampler.weights.base_model, sum(len(one.tokens) for one in drawn.sequences)
    prompt = toy_tokens(wanted.prompt).size
    state.account.note_use(sampler.session_id, base_model, "sampling_prefill", prompt)
    state.account.note_use(sampler.session_id, base_model, "sampling_sample", tokens)
    return drawn


def _sample_promised(
    call: Call, sampler: Sampler, wanted: SampleRequest, promise: Promise
) -> Answer:
    call.entry.request_id = promise.request_id
    number = f"u{sampler.unnumbered}" if wanted.seq_id is None else str(wanted.seq_id)
    ids = [f"{sampler.id}:{number}:{index}" for index in range(wanted.num_samples)]
    return json_answer(UntypedAPIFuture(request_id=promise.request_id, sample_sequence_ids=ids))


# Results


async def retrieve_future(state: State, call: Call) -> Answer:
    """Give a result, or say that it takes longer, after having held the request for a while."""
    wanted = call.parse(RetrieveFutureRequest)
    request_id = wanted.request_id
    give_up_s = anyio.current_time() + state.settings.hold_s
    while True:
        promise = state.promise(request_id)
        now = anyio.current_time()
        if promise.computed and state.pause is None and promise.due_s <= now:
            result, most = _result(promise, call), state.settings.inline_bytes
            if wanted.allow_metadata_only and most is not None and len(result.body) > most:
                size = len(result.body)
                return json_answer({"status": "complete_metadata", "response_payload_size": size})
            call.delivers = promise
            return result
        if now >= give_up_s:
            return _not_yet(state, promise)
        next_s = promise.due_s if promise.computed and state.pause is None else give_up_s
        await promise.change(max(0.0, min(next_s, give_up_s) - now))


def _not_yet(state: State, promise: Promise) -> Answer:
    queue_state, reason = state.pause or ("active", None)
    if reason is None and not promise.computed:
        reason = "an earlier request of this model has not arrived yet"
    return json_answer(
        TryAgainResponse(
            request_id=promise.request_id, queue_state=queue_state, queue_state_reason=reason
        )
    )


def _result(promise: Promise, call: Call) -> Answer:
    outcome = promise.outcome
    if isinstance(outcome, FailedResponse) or promise.kind == "json":
        return json_answer(outcome)
    protobuf = PROTOBUF in call.headers.get(b"accept", b"")
    if promise.kind == "sample":
        if protobuf:
            return Answer(200, b"".join(encode_sample_response(outcome)), PROTOBUF)
        return Answer(200, wire_json.sample_response_to_json(outcome))
    if protobuf:
        return Answer(200, b"".join(encode_forward_backward_output(outcome)), PROTOBUF)
    return Answer(200, wire_json.forward_backward_output_to_json(outcome))


def cancel_future(state: State, call: Call) -> Answer:
    """Stop a sample that is not due yet; anything else goes on."""
    promise = state.promise(call.parse(RetrieveFutureRequest).request_id)
    now = anyio.current_time()
    if promise.line is not None:
        promise.line.cancelled += 1
        if promise.due_s > now or state.pause is not None:
            promise.settle(CANCELLED, due_s=now)
    return json_answer({})


ROUTES = (
    Route("create_sampling_session", "POST", "create_sampling_session", create_sampling_session),
    Route("sampler", "GET", "samplers/{}", get_sampler),
    Route("asample", "POST", "asample", asample),
    Route("retrieve_future", "POST", "retrieve_future", retrieve_future),
    Route("cancel_future", "POST", "cancel_future", cancel_future),
)
