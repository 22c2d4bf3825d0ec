"""Training runs and their checkpoints: listing, publishing, expiry, deletion."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tinker_async.data.paths import CheckpointPath
from tinker_async.local.server.endpoints.routing import Handler, body_of, page
from tinker_async.local.server.http import answer, parse
from tinker_async.local.server.refusal import Refusal
from tinker_async.local.server.service import Service, expiry
from tinker_async.local.server.store import CheckpointRow, RunRow
from tinker_async.wire.messages import CheckpointsResponse, TrainingRunsResponse


class _TtlRequest(msgspec.Struct, frozen=True):
    ttl_seconds: int | None


async def list_runs(service: Service, request: Request) -> Response:
    """List training runs, newest first."""
    newest = list(reversed(service.store.runs.values()))
    rows, cursor = page(request, newest, default_limit=20)
    views = [service.store.view_run(row) for row in rows]
    return answer(TrainingRunsResponse(training_runs=views, cursor=cursor))


async def get_run(service: Service, request: Request) -> Response:
    """Describe a training run."""
    return answer(service.store.view_run(_run(service, request)))


async def list_checkpoints_of_run(service: Service, request: Request) -> Response:
    """List the checkpoints of a run, oldest first."""
    rows = service.store.checkpoints_of(_run(service, request).run_id)
    return answer(CheckpointsResponse(checkpoints=[row.public_view() for row in rows]))


async def list_checkpoints(service: Service, request: Request) -> Response:
    """List all checkpoints, newest first."""
    newest = list(reversed(service.store.checkpoints.values()))
    rows, cursor = page(request, newest, default_limit=100)
    views = [row.public_view() for row in rows]
    return answer(CheckpointsResponse(checkpoints=views, cursor=cursor))


async def delete_checkpoint(service: Service, request: Request) -> Response:
    """Delete a checkpoint. Samplers that have it in memory go on."""
    row = _checkpoint(service, request)
    await service.delete_checkpoint(row)
    return Response(status_code=204)


async def publish(service: Service, request: Request) -> Response:
    """Mark a checkpoint as public (POST) or private (DELETE); nothing else follows from it here."""
    row = _checkpoint(service, request)
    public = request.method == "POST"
    await service.store.put_checkpoint(msgspec.structs.replace(row, public=public))
    return Response(status_code=204)


async def set_ttl(service: Service, request: Request) -> Response:
    """Let a checkpoint expire some seconds from now, or never."""
    wanted = parse(await body_of(service, request), _TtlRequest)
    row = _checkpoint(service, request)
    changed = msgspec.structs.replace(row, expires_at=expiry(wanted.ttl_seconds))
    await service.store.put_checkpoint(changed)
    return Response(status_code=204)


def _run(service: Service, request: Request) -> RunRow:
    run_id = request.path_params["run_id"]
    row = service.store.runs.get(run_id)
    if row is None:
        raise Refusal(404, f"no training run {run_id!r}", field="training_run_id")
    return row


def _checkpoint(service: Service, request: Request) -> CheckpointRow:
    named = request.path_params
    path = str(CheckpointPath(named["run_id"], named["kind"], named["name"]))
    row = service.store.checkpoints.get(path)
    if row is None:
        raise Refusal(404, f"no checkpoint {path}", field="checkpoint_id")
    return row


_ONE = "/training_runs/{run_id}/checkpoints/{kind}/{name}"

ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/training_runs", list_runs),
    ("GET", "/training_runs/{run_id}", get_run),
    ("GET", "/training_runs/{run_id}/checkpoints", list_checkpoints_of_run),
    ("GET", "/checkpoints", list_checkpoints),
    ("DELETE", _ONE, delete_checkpoint),
    ("POST", _ONE + "/publish", publish),
    ("DELETE", _ONE + "/publish", publish),
    ("PUT", _ONE + "/ttl", set_ttl),
)
