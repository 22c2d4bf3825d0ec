"""The session poller: one held request for all samples of a client, and clients that join."""

from __future__ import annotations

import anyio
import msgspec

from tinker_async.testing.answers import Answer, json_answer
from tinker_async.testing.promises import Promise
from tinker_async.testing.routing import Call, Route
from tinker_async.testing.state import State
from tinker_async.wire.messages import (
    FailedResponse,
    FutureCompletion,
    JoinSamplingSessionRequest,
    JoinSamplingSessionResponse,
    RetrieveFuturesRequest,
    RetrieveFuturesResponse,
)


def join_sampling_session(state: State, call: Call) -> Answer:
    """Give another client of a sampler a number of its own."""
    sampler = state.sampler(call.parse(JoinSamplingSessionRequest).sampling_session_id)
    sampler.clients += 1
    return json_answer(JoinSamplingSessionResponse(client_counter=sampler.clients))


async def retrieve_futures(state: State, call: Call) -> Answer:
    """Tell which samples are done since a cursor, after having held the request for a while."""
    wanted = call.parse(RetrieveFuturesRequest)
    state.promises.fetched(wanted.retrieved_request_ids)
    given_s = wanted.timeout
    hold_s = state.settings.hold_s if given_s is None or given_s is msgspec.UNSET else given_s
    give_up_s = anyio.current_time() + hold_s
    while True:
        sampler = state.sampler(wanted.target.sampling_session_id)
        told = sampler.completions_of(wanted.target.cloned_sampler_id)
        now = anyio.current_time()
        if state.pause is None:
            told.look(now)
        done = told.after(wanted.prev_cursor)
        if done or now >= give_up_s:
            completions = [_completion(promise) for promise in done]
            return json_answer(RetrieveFuturesResponse(completions, cursor=told.cursor))
        next_s = give_up_s if state.pause else min(give_up_s, told.next_due_s)
        await told.change(max(0.0, next_s - now))


def _completion(promise: Promise) -> FutureCompletion:
    failed = isinstance(promise.outcome, FailedResponse)
    return FutureCompletion(promise.request_id, "failed" if failed else "finished")


ROUTES = (
    Route("join_sampling_session", "POST", "join_sampling_session", join_sampling_session),
    Route("retrieve_futures", "POST", "retrieve_futures", retrieve_futures),
)
