"""Addresses of files that need no key, and what is behind them: weights, archives, traces."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC
from email.utils import format_datetime
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from tinker_async.data.records import ExternalWeightsUrlsResponse
from tinker_async.local.server.credentials import DOWNLOADS, LINK_LIFETIME
from tinker_async.local.server.endpoints.routing import Handler
from tinker_async.local.server.endpoints.runs import ONE, named_checkpoint
from tinker_async.local.server.folders import files_in
from tinker_async.local.server.http import JSON, answer
from tinker_async.local.server.refusal import Refusal
from tinker_async.local.server.rows import CheckpointRow
from tinker_async.local.server.service import Service
from tinker_async.local.server.tarball import Descriptor, TarGz
from tinker_async.local.server.transfer import Source, serve

_ARCHIVE = "checkpoint.tar.gz"
_BYTES = "application/octet-stream"


async def external_weights_urls(service: Service, request: Request) -> Response:
    """Give an address for each file of an external checkpoint."""
    row = named_checkpoint(service, request)
    if row.kind != "external_weights":
        raise Refusal(
            400,
            f"{row.path} is not an external checkpoint: its archive can be downloaded, or it can "
            "be saved with save_weights_external",
            field="checkpoint_id",
        )
    names = await service.readers.run(partial(files_in, service.folders.inside(row.folder)))
    base_url = str(request.base_url)
    expires_at = service.clock() + LINK_LIFETIME
    urls: dict[str, str] = {}
    for name in names:
        link = service.credentials.link(base_url, f"{DOWNLOADS}weights/{_place(row)}/{name}")
        urls[name], expires_at = link.url, link.expires_at
    service.ledger.checkpoint_event("read", row, purpose="download")
    return answer(ExternalWeightsUrlsResponse(urls=urls, expires=expires_at))


async def archive(service: Service, request: Request) -> Response:
    """Send on to the archive of a checkpoint of any kind: the way of older clients."""
    row = named_checkpoint(service, request)
    service.folders.inside(row.folder)
    path = f"{DOWNLOADS}archives/{_place(row)}/{_ARCHIVE}"
    link = service.credentials.link(str(request.base_url), path)
    service.ledger.checkpoint_event("read", row, purpose="download")
    headers = {
        "location": link.url,
        "expires": format_datetime(link.expires_at.astimezone(UTC), usegmt=True),
    }
    return Response(status_code=302, headers=headers)


def _place(row: CheckpointRow) -> str:
    return f"{row.run_id}/{row.kind}/{row.name}"


async def download_weights(service: Service, request: Request) -> Response:
    """Send a file of a checkpoint."""
    _check(service, request)
    row = named_checkpoint(service, request)
    folder = service.folders.inside(row.folder)
    name = request.path_params["file"]
    if name not in await service.readers.run(partial(files_in, folder)):
        raise Refusal(404, f"{row.path} has no file {name!r}", field="file")
    open_file = partial(Descriptor, folder / name)
    return await _send(service, request, row, open_file, name, _BYTES)


async def download_archive(service: Service, request: Request) -> Response:
    """Send a checkpoint as one archive, which is made on the way."""
    _check(service, request)
    row = named_checkpoint(service, request)
    folder = service.folders.inside(row.folder)
    mtime = int(row.created_at.timestamp())

    def open_archive() -> TarGz:
        return TarGz(folder, files_in(folder), mtime=mtime)

    return await _send(service, request, row, open_archive, _ARCHIVE, "application/gzip")


async def _send(
    service: Service,
    request: Request,
    row: CheckpointRow,
    open_source: Callable[[], Source],
    name: str,
    media_type: str,
) -> Response:
    # A folder is written once; overwriting a checkpoint makes another folder.
    content = f"{row.folder}\n{row.created_at.isoformat()}\n{name}"
    return await serve(
        request,
        service.readers,
        open_source,
        tag=hashlib.sha256(content.encode()).hexdigest()[:32],
        media_type=media_type,
        filename=name.rpartition("/")[2],
    )


async def download_trace(service: Service, request: Request) -> Response:
    """Send the trace of a session as it is now."""
    _check(service, request)
    content = service.meter.export(request.path_params["session_id"])
    if content is None:
        raise Refusal(404, "the trace has left the memory", field="session_id")
    return Response(content, media_type=JSON)


def _check(service: Service, request: Request) -> None:
    query = request.query_params
    service.credentials.check_link(
        request.url.path, query.get("expires", ""), query.get("signature", "")
    )


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", ONE + "/external_weights_urls", external_weights_urls),
    ("GET", ONE + "/archive", archive),
    ("GET", "/downloads/weights/{run_id}/{kind}/{name}/{file:path}", download_weights),
    ("GET", "/downloads/archives/{run_id}/{kind}/{name}/" + _ARCHIVE, download_archive),
    ("GET", "/downloads/traces/{session_id}.json", download_trace),
)
