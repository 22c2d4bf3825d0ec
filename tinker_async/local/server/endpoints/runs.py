"""Training runs and their checkpoints: listing, publishing, expiry, deletion."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tinker_async.data.paths import CheckpointPath
from tinker_async.data.records import CheckpointsListResponse, TrainingRunsResponse
from tinker_async.local.server.endpoints.routing import Handler, body_of, check_scope, page
from tinker_async.local.server.http import answer, parse
from tinker_async.local.server.refusal import Refusal
from tinker_async.local.server.rows import CheckpointRow, RunRow, view_run
from tinker_async.local.server.service import Service
from tinker_async.local.server.shelf import no_checkpoint
from tinker_async.wire.messages import CheckpointTtlRequest


async def list_runs(service: Service, request: Request) -> Response:
    """List training runs, newest first; `project_id` leaves those of other projects out."""
    check_scope(request)
    newest = list(reversed(service.store.runs.values()))
    project = request.query_params.get("project_id")
    if project:
        newest = [row for row in newest if service.project_of(row.session_id) == project]
    rows, cursor = page(request, newest, default_limit=20)
    checkpoints = service.shelf.by_run()
    views = [view_run(row, checkpoints.get(row.run_id, [])) for row in rows]
    return answer(TrainingRunsResponse(training_runs=views, cursor=cursor))


async def get_run(service: Service, request: Request) -> Response:
    """Describe a training run."""
    check_scope(request)
    row = _run(service, request)
    return answer(view_run(row, service.shelf.of_run(row.run_id)))


async def list_checkpoints_of_run(service: Service, request: Request) -> Response:
    """List the checkpoints of a run, newest first."""
    rows = service.shelf.of_run(_run(service, request).run_id)
    return answer(CheckpointsListResponse(checkpoints=[row.public_view() for row in rows]))


async def list_checkpoints(service: Service, request: Request) -> Response:
    """List all checkpoints, newest first."""
    rows, cursor = page(request, service.shelf.all(), default_limit=100)
    views = [row.public_view() for row in rows]
    return answer(CheckpointsListResponse(checkpoints=views, cursor=cursor))


async def delete_checkpoint(service: Service, request: Request) -> Response:
    """Delete a checkpoint. Samplers that have it in memory go on."""
    await body_of(service, request)
    await service.shelf.delete(named_checkpoint(service, request))
    return Response(status_code=204)


async def publish(service: Service, request: Request) -> Response:
    """Mark a checkpoint as public (POST) or private (DELETE); 409 when it is so already."""
    await body_of(service, request)
    public = request.method == "POST"

    def decide(row: CheckpointRow) -> dict[str, Any]:
        if row.public == public:
            raise Refusal(
                409,
                f"{row.path} is {'public' if public else 'private'} already",
                field="checkpoint_id",
            )
        return {"public": public}

    event = "published" if public else "unpublished"
    await service.shelf.change(named_checkpoint(service, request), event, decide)
    return Response(status_code=204)


async def set_ttl(service: Service, request: Request) -> Response:
    """Let a checkpoint expire some seconds from now, or never."""
    wanted = parse(await body_of(service, request), CheckpointTtlRequest)
    row = named_checkpoint(service, request)
    expires_at = service.shelf.expiry(wanted.ttl_seconds)
    await service.shelf.change(row, "ttl_set", lambda _row: {"expires_at": expires_at})
    return Response(status_code=204)


def _run(service: Service, request: Request) -> RunRow:
    run_id = request.path_params["run_id"]
    row = service.store.runs.get(run_id)
    if row is None:
        raise Refusal(404, f"no training run {run_id!r}", field="training_run_id")
    return row


def named_checkpoint(service: Service, request: Request) -> CheckpointRow:
    """Return the checkpoint that the request's path names.

    Raises:
        Refusal: 404, there is none.
    """
    named = request.path_params
    path = str(CheckpointPath(named["run_id"], named["kind"], named["name"]))
    row = service.shelf.get(path)
    if row is None:
        raise no_checkpoint(path)
    return row


ONE = "/training_runs/{run_id}/checkpoints/{kind}/{name}"
"""Where one checkpoint is."""

ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/training_runs", list_runs),
    ("GET", "/training_runs/{run_id}", get_run),
    ("GET", "/training_runs/{run_id}/checkpoints", list_checkpoints_of_run),
    ("GET", "/checkpoints", list_checkpoints),
    ("DELETE", ONE, delete_checkpoint),
    ("POST", ONE + "/publish", publish),
    ("DELETE", ONE + "/publish", publish),
    ("PUT", ONE + "/ttl", set_ttl),
)
