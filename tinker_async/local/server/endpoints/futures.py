"""Fetching results: held polls, protobuf or JSON, as often as the client likes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import Response

from tinker_async.local.server.endpoints.routing import Handler, body_of
from tinker_async.local.server.http import JSON, PROTOBUF, answer, parse
from tinker_async.local.server.promises import Promise
from tinker_async.local.server.refusal import Refusal
from tinker_async.local.server.service import Service
from tinker_async.wire import json as wire_json
from tinker_async.wire.messages import FailedResponse, RetrieveFutureRequest, TryAgainResponse
from tinker_async.wire.sampling import encode_sample_response
from tinker_async.wire.training import encode_forward_backward_output


async def retrieve_future(service: Service, request: Request) -> Response:
    """Give a result, or `try_again` after holding the request for a while."""
    wanted = parse(await body_of(service, request), RetrieveFutureRequest)
    promise = service.promises.get(wanted.request_id)
    if not promise.settled:
        await _hold(service, promise)
    if promise.settled:
        return _deliver(service, promise, request, sized=wanted.allow_metadata_only)
    if service.promises.stopping:
        raise Refusal(503, "the server is stopping", retry_after_s=1)
    state, reason = _queue(service, promise)
    return answer(TryAgainResponse(promise.request_id, state, reason))


def _queue(service: Service, promise: Promise) -> tuple[str, str | None]:
    """What a request waits for that is not done: its turn, room in the engine, or only time.

    Nothing here limits a rate, so that `paused_rate_limit` is never so.
    """
    if promise.waits_for is not None:
        return "active", promise.waits_for
    name = promise.request_id if promise.kind == "sample" else promise.model_id
    reason = None if name is None else service.port.waits_for_room(name)
    return ("active" if reason is None else "paused_capacity"), reason


async def _hold(service: Service, promise: Promise) -> None:
    """Wait for a result, as long as a poll is held."""
    with held_poll(service), anyio.move_on_after(service.limits.hold_s):
        while not (promise.settled or service.promises.stopping):
            await promise.wait()


@contextmanager
def held_poll(service: Service) -> Iterator[None]:
    """Count a poll that is held.

    Raises:
        Refusal: 429, too many are.
    """
    if service.held_polls >= service.limits.held_polls:
        raise Refusal(429, f"{service.held_polls} polls are held already", retry_after_s=1)
    service.held_polls += 1
    try:
        yield
    finally:
        service.held_polls -= 1


def _deliver(service: Service, promise: Promise, request: Request, *, sized: bool) -> Response:
    outcome = promise.outcome
    protobuf = (
        promise.kind != "json"
        and not isinstance(outcome, FailedResponse)
        and PROTOBUF in request.headers.get("accept", "")
    )
    content = b"".join(_protobuf(promise, outcome)) if protobuf else _json(promise, outcome)
    if sized and len(content) > service.limits.inline_bytes:
        return answer({"status": "complete_metadata", "response_payload_size": len(content)})
    service.promises.delivered(promise, len(content))
    return Response(content, media_type=PROTOBUF if protobuf else JSON)


def _protobuf(promise: Promise, outcome: Any) -> Any:
    if promise.kind == "sample":
        return encode_sample_response(outcome)
    return encode_forward_backward_output(outcome)


def _json(promise: Promise, outcome: Any) -> bytes:
    if isinstance(outcome, FailedResponse) or promise.kind == "json":
        return wire_json.encode(outcome)
    if promise.kind == "sample":
        return wire_json.sample_response_to_json(outcome)
    return wire_json.forward_backward_output_to_json(outcome)


async def cancel_future(service: Service, request: Request) -> Response:
    """Stop a sample; anything else goes on, since later requests of a model build on it."""
    wanted = parse(await body_of(service, request), RetrieveFutureRequest)
    promise = service.promises.get(wanted.request_id)
    if promise.kind == "sample" and not promise.settled:
        promise.settle(FailedResponse(error="the sample was cancelled", category="user"))
        service.port.cancel_sample(promise.request_id)
        service.promises.delivered(promise, 0)  # nobody need fetch it
    return answer({})


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/retrieve_future", retrieve_future),
    ("POST", "/cancel_future", cancel_future),
)
