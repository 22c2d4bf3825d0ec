"""The session poller: one held request tells of all samples of a sampler that are done."""

from __future__ import annotations

import anyio
import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tinker_async.local.server.completions import Completion, Completions
from tinker_async.local.server.endpoints.futures import held_poll
from tinker_async.local.server.endpoints.routing import Handler, body_of
from tinker_async.local.server.http import answer, parse
from tinker_async.local.server.refusal import Refusal, checked_number
from tinker_async.local.server.service import Sampler, Service
from tinker_async.wire.messages import JoinSamplingSessionRequest, JoinSamplingSessionResponse


class _Target(msgspec.Struct, frozen=True):
    sampling_session_id: str
    type: str = "sampling_session"
    cloned_sampler_id: int = 0


class _RetrieveFuturesRequest(msgspec.Struct, frozen=True):
    target: _Target
    prev_cursor: int = 0
    timeout: float | None = None
    retrieved_request_ids: list[str] = []


class _RetrieveFuturesResponse(msgspec.Struct, frozen=True):
    completions: list[Completion]
    cursor: int


async def retrieve_futures(service: Service, request: Request) -> Response:
    """Give what is done since the last cursor, after holding the request until there is something.

    What the client says it has fetched is freed; what its cursor has passed is forgotten.
    """
    wanted = parse(await body_of(service, request), _RetrieveFuturesRequest)
    if wanted.target.type != "sampling_session":
        raise Refusal(400, f"cannot watch a {wanted.target.type!r}", field="target.type")
    sampler = service.sampler(wanted.target.sampling_session_id)
    clone = checked_number(wanted.target.cloned_sampler_id, "target.cloned_sampler_id")
    done = sampler.completions_of(clone)
    if not 0 <= wanted.prev_cursor <= done.last:
        raise Refusal(
            400, f"no cursor {wanted.prev_cursor} has been given here", field="prev_cursor"
        )
    done.trim(wanted.prev_cursor)
    _free(service, sampler, done, wanted.retrieved_request_ids)
    timeout_s = service.limits.hold_s if wanted.timeout is None else wanted.timeout
    if timeout_s > 0 and not done.after(wanted.prev_cursor):
        await _hold(service, done, wanted.prev_cursor, min(timeout_s, service.limits.hold_s))
    found = done.after(wanted.prev_cursor)
    if service.promises.stopping and not found:
        raise Refusal(503, "the server is stopping", retry_after_s=1)
    return answer(_RetrieveFuturesResponse(completions=found, cursor=done.last))


def _free(service: Service, sampler: Sampler, done: Completions, request_ids: list[str]) -> None:
    for request_id in request_ids:
        done.forget(request_id)
        service.promises.fetched(request_id, sampler.session_id)


async def _hold(service: Service, done: Completions, cursor: int, timeout_s: float) -> None:
    with (
        held_poll(service),
        service.promises.waiting_for(done),
        anyio.move_on_after(timeout_s),
    ):
        while not (done.after(cursor) or service.promises.stopping):
            await done.wait()


async def join_sampling_session(service: Service, request: Request) -> Response:
    """Give a clone of a sampler a number of its own."""
    wanted = parse(await body_of(service, request), JoinSamplingSessionRequest)
    sampler = service.sampler(wanted.sampling_session_id)
    sampler.clients += 1
    return answer(JoinSamplingSessionResponse(client_counter=sampler.clients))


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/retrieve_futures", retrieve_futures),
    ("POST", "/join_sampling_session", join_sampling_session),
)
