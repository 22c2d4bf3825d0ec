"""Copies of checkpoints: in a run of their own, with the files shared. Repeated requests get one."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tinker_async.errors import InvalidInputError
from tinker_async.local.server.endpoints.loading import checkpoint_at
from tinker_async.local.server.endpoints.routing import Handler, body_of
from tinker_async.local.server.folders import link_files
from tinker_async.local.server.http import Body, answer, parse
from tinker_async.local.server.promises import Promise
from tinker_async.local.server.refusal import Refusal, checked_number
from tinker_async.local.server.rows import CheckpointRow, RunRow
from tinker_async.local.server.service import Service, Session
from tinker_async.wire.messages import (
    CopyWeightsRequest,
    CopyWeightsResponse,
    FailedResponse,
)

_REMEMBERED = 1000
"""Copies whose repetitions get the same answer."""


async def copy_weights(service: Service, request: Request) -> Response:
    """Copy a checkpoint of any kind; the copy's run can be sampled and loaded, not trained on.

    An access token for another account's weights is taken and not needed: there is one account.
    """
    body = await body_of(service, request)
    wanted = parse(body, CopyWeightsRequest)
    if wanted.session_id is not None:
        promise = _into_session(service, body, wanted)
    else:
        promise = _into_project(service, request, body, wanted)
    while not promise.settled:
        if service.promises.stopping:
            raise Refusal(503, "the server is stopping", retry_after_s=1)
        await promise.wait()
    outcome = promise.outcome
    if isinstance(outcome, FailedResponse):
        raise Refusal(400 if outcome.category == "user" else 500, outcome.error)
    return answer(outcome)


def _into_session(service: Service, body: Body, wanted: CopyWeightsRequest) -> Promise:
    """Begin a copy as a model of a session, once for its number."""
    if wanted.model_seq_id is None:
        raise Refusal(422, "model_seq_id must be given with session_id", field="model_seq_id")
    session = service.session(str(wanted.session_id))
    number = checked_number(wanted.model_seq_id, "model_seq_id")
    known = session.models.get(number)
    if known is not None:
        if known[0] != body.digest:
            raise Refusal(
                409, f"model_seq_id {number} was used for another model", field="model_seq_id"
            )
        return known[1]
    promise = _begin(service, wanted, session, number)
    session.models[number] = (body.digest, promise)
    return promise


def _into_project(
    service: Service, request: Request, body: Body, wanted: CopyWeightsRequest
) -> Promise:
    """Begin a copy in a new session of a project, once for its idempotency key."""
    if not wanted.destination_project_id:
        raise Refusal(
            422,
            "destination_project_id, or session_id and model_seq_id must be given",
            field="destination_project_id",
        )
    key = request.headers.get("x-idempotency-key")
    known = None if key is None else service.copies.get(key)
    if known is not None:
        if known[0] != body.digest:
            raise Refusal(422, "the idempotency key was used for another copy", field="source_path")
        return known[1]
    promise = _begin(service, wanted, None, 0)
    if key is not None:
        service.copies[key] = (body.digest, promise)
        if len(service.copies) > _REMEMBERED:
            service.copies.popitem(last=False)
    return promise


def _begin(
    service: Service, wanted: CopyWeightsRequest, session: Session | None, number: int
) -> Promise:
    source = checkpoint_at(service, wanted.source_path, field="source_path", purpose="copy")
    service.folders.inside(source.folder)
    expires_at = service.shelf.expiry(wanted.ttl_seconds)
    session_id = "" if session is None else session.id
    promise = Promise("copy", "json", session_id, None)
    copy = msgspec.structs.replace(
        source,
        public=False,
        expires_at=expires_at,
        created_at=service.clock(),
        run_id=f"{session_id}:train:{number}",
    )
    service.start_soon(_copy, service, promise, copy, wanted.destination_project_id)
    return promise


async def _copy(
    service: Service, promise: Promise, copy: CheckpointRow, project_id: str | None
) -> None:
    try:
        promise.settle(CopyWeightsResponse(tinker_path=await _made(service, copy, project_id)))
    except InvalidInputError as error:
        promise.settle(error)
    except Refusal as error:
        promise.settle(InvalidInputError(error.detail, field=error.field or "source_path"))
    except Exception as error:  # noqa: BLE001  # the boundary: it fails this copy, not the service
        promise.settle(error)


async def _made(service: Service, copy: CheckpointRow, project_id: str | None) -> str:
    if not copy.session_id:
        session = await service.record_session(tags=[], project_id=project_id)
        copy = msgspec.structs.replace(copy, run_id=f"{session.session_id}:train:0")
    source = service.folders.inside(copy.folder)

    async def fill(folder: Path) -> int:
        await service.folders.in_thread(partial(link_files, source, folder))
        return copy.size_bytes

    folder, size_bytes = await service.folders.write_checkpoint(
        copy.run_id, copy.kind, copy.name, fill
    )
    run = RunRow(
        run_id=copy.run_id,
        session_id=copy.session_id,
        base_model=copy.base_model,
        lora=copy.lora,
        created_at=copy.created_at,
        last_request_at=copy.created_at,
    )
    await service.store.put_run(run)
    row = msgspec.structs.replace(copy, folder=folder, size_bytes=size_bytes)
    await service.shelf.keep(row, event="copied")
    return row.path


ROUTES: tuple[tuple[str, str, Handler], ...] = (("POST", "/copy_weights", copy_weights),)
