"""Training runs and checkpoints: listings, changes, copies, and their files."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import msgspec

from tinker_async.data.paths import CheckpointPath
from tinker_async.data.records import (
    CheckpointsListResponse,
    Cursor,
    ExternalWeightsUrlsResponse,
    TrainingRunsResponse,
)
from tinker_async.testing.account import PROJECTS
from tinker_async.testing.answers import Answer, Refusal, json_answer
from tinker_async.testing.endpoints_training import checkpoint_at
from tinker_async.testing.routing import Call, Route
from tinker_async.testing.state import CheckpointRecord, Run, State
from tinker_async.wire.messages import (
    CheckpointTtlRequest,
    CopyWeightsRequest,
    CopyWeightsResponse,
)

T = TypeVar("T")

_SHORTEST_TTL_S = 3600
_LONGEST_TTL_S = 3653 * 86_400
_ADDRESS_LASTS = timedelta(minutes=15)


def list_runs(state: State, call: Call) -> Answer:
    """List training runs, newest first."""
    project = call.query.get("project_id")
    found = [
        run for run in reversed(state.runs.values()) if project in (None, state.project_of_run(run))
    ]
    rows, cursor = page(call, found, 20)
    views = [state.view_run(run) for run in rows]
    return json_answer(TrainingRunsResponse(training_runs=views, cursor=cursor))


def get_run(state: State, call: Call) -> Answer:
    """Describe a training run."""
    return json_answer(state.view_run(_run(state, call)))


def list_checkpoints_of_run(state: State, call: Call) -> Answer:
    """List the checkpoints of a run, oldest first."""
    run = _run(state, call)
    views = [one.view() for one in state.checkpoints.values() if one.run is run]
    return json_answer(CheckpointsListResponse(checkpoints=views))


def list_checkpoints(state: State, call: Call) -> Answer:
    """List all checkpoints, newest first."""
    rows, cursor = page(call, list(reversed(state.checkpoints.values())), 100)
    views = [record.view() for record in rows]
    return json_answer(CheckpointsListResponse(checkpoints=views, cursor=cursor))


# Changes


def delete_checkpoint(state: State, call: Call) -> Answer:
    """Delete a checkpoint. Samplers that were made from it go on."""
    path = str(_checkpoint(state, call).path)
    del state.checkpoints[path]
    state.account.note_event("checkpoint_delete", tinker_path=path)
    return Answer(204)


def publish(state: State, call: Call) -> Answer:
    """Make a checkpoint public (POST) or private (DELETE); 409 if it is so already."""
    record, public = _checkpoint(state, call), call.method == "POST"
    if record.public == public:
        raise Refusal(409, f"{record.path} is {'public' if public else 'private'} already")
    record.public = public
    event = "checkpoint_publish" if public else "checkpoint_unpublish"
    state.account.note_event(event, tinker_path=str(record.path))
    return Answer(204)


def set_ttl(state: State, call: Call) -> Answer:
    """Show a checkpoint as expiring; it stays all the same."""
    seconds = call.parse(CheckpointTtlRequest).ttl_seconds
    record = _checkpoint(state, call)
    record.expires_at = _expiry(state, seconds)
    state.account.note_event("checkpoint_set_ttl", tinker_path=str(record.path), seconds=seconds)
    return Answer(204)


def _expiry(state: State, seconds: int | None) -> datetime | None:
    if seconds is None:
        return None
    if not _SHORTEST_TTL_S <= seconds <= _LONGEST_TTL_S:
        raise Refusal(400, f"ttl_seconds must be from 3600 to ten years, got {seconds}")
    return state.time() + timedelta(seconds=seconds)


def copy_weights(state: State, call: Call) -> Answer:
    """Copy a checkpoint into a new run. The same idempotency key gives the same copy."""
    wanted = call.parse(CopyWeightsRequest)
    key = call.headers.get(b"x-idempotency-key", b"").decode("latin-1")
    known = state.account.copies.get(key)
    if known is not None:
        if known[0] != call.digest:
            raise Refusal(409, "the idempotency key was used for another copy")
        return json_answer(CopyWeightsResponse(tinker_path=known[1]))
    source = checkpoint_at(state, wanted.source_path)
    project = wanted.destination_project_id
    if project is None and wanted.session_id is not None:
        project = state.session(wanted.session_id).project_id
    if project not in PROJECTS:
        raise Refusal(403, f"no project {project!r} here")
    expires_at = _expiry(state, wanted.ttl_seconds)
    copy = _copied(state, source)
    copy.run.project_id = project
    copy.expires_at = expires_at
    path = str(copy.path)
    state.checkpoints[path] = copy
    if key:
        state.account.copies[key] = (call.digest, path)
    state.account.note_event(
        "checkpoint_copy", tinker_path=path, source=wanted.source_path, project_id=project
    )
    return json_answer(CopyWeightsResponse(tinker_path=path))


def _copied(state: State, source: CheckpointRecord) -> CheckpointRecord:
    number = sum(run_id.startswith("copy") for run_id in state.runs) + 1
    run = Run(f"copy{number}:train:0", source.run.base_model, source.run.lora, state.time())
    state.runs[run.id] = run
    path = CheckpointPath(run.id, source.path.kind, source.path.name)
    copy = CheckpointRecord(path, run, source.state, state.time())
    copy.metadata = source.metadata
    return copy


# Files


def archive(state: State, call: Call) -> Answer:
    """Name the place of a checkpoint's tar archive."""
    if state.settings.archives == "bare":
        raise Refusal(404, "Not Found")
    record = _checkpoint(state, call)
    if state.settings.archives == "file":
        return _found(f"file:///checkpoints/{record.path.training_run_id}/{record.path.name}.tar")
    return _found(_address(call, record, "archive.tar"))


def bare_archive(state: State, call: Call) -> Answer:
    """Name the place of a sampler's archive, by its bare name: of some servers alone."""
    record = _bare(state, call)
    run_id, name = record.path.training_run_id, record.path.name
    return _found(f"{_origin(call)}training_runs/{run_id}/checkpoints/{name}/download")


def bare_download(state: State, call: Call) -> Answer:
    """Send a sampler's archive as a whole."""
    return Answer(200, _tar(_files(_bare(state, call))), b"application/octet-stream")


def _bare(state: State, call: Call) -> CheckpointRecord:
    if state.settings.archives != "bare":
        raise Refusal(404, "Not Found")
    run_id, name = call.ids
    return state.checkpoint(str(CheckpointPath(run_id, "sampler_weights", name)))


def _found(place: str) -> Answer:
    expires = datetime.now(UTC) + _ADDRESS_LASTS
    headers = (
        (b"location", place.encode()),
        (b"expires", expires.strftime("%a, %d %b %Y %H:%M:%S GMT").encode()),
    )
    return Answer(302, headers=headers)


def external_weights_urls(state: State, call: Call) -> Answer:
    """Name the places of an external checkpoint's files."""
    record = _checkpoint(state, call)
    if record.path.kind != "external_weights":
        raise Refusal(400, f"{record.path} is no external checkpoint")
    urls = {name: _address(call, record, name) for name in _files(record)}
    expires = datetime.now(UTC) + _ADDRESS_LASTS
    return json_answer(ExternalWeightsUrlsResponse(urls=urls, expires=expires))


def file(state: State, call: Call) -> Answer:
    """Send a file of a checkpoint, or a part of it, to whoever has its address."""
    run_id, kind, checkpoint, name = call.ids
    record = state.checkpoint(str(CheckpointPath(run_id, kind, checkpoint)))
    files = _files(record)
    if name == "archive.tar":
        return _content(call, _tar(files), b"application/x-tar")
    if name not in files:
        raise Refusal(404, f"{record.path} has no file {name!r}")
    return _content(call, files[name], b"application/octet-stream")


def _content(call: Call, body: bytes, content_type: bytes) -> Answer:
    """Answer with a content, or with what `Range` asks for of it: bytes from one on."""
    tag = b'"' + hashlib.blake2b(body, digest_size=16).hexdigest().encode() + b'"'
    headers = ((b"etag", tag), (b"accept-ranges", b"bytes"))
    wanted = re.fullmatch(rb"bytes=(\d{1,18})-(\d{0,18})", call.headers.get(b"range", b""))
    if wanted is None or call.headers.get(b"if-range", tag) != tag:
        return Answer(200, body, content_type, headers)
    start, size = int(wanted[1]), len(body)
    stop = min(int(wanted[2] or size) + 1, size)
    if start >= stop:
        return Answer(416, b"", content_type, (*headers, (b"content-range", b"bytes */%d" % size)))
    place = b"bytes %d-%d/%d" % (start, stop - 1, size)
    return Answer(206, body[start:stop], content_type, (*headers, (b"content-range", place)))


def _files(record: CheckpointRecord) -> dict[str, bytes]:
    """What a checkpoint consists of, the same in every run."""
    config = {"base_model": record.run.base_model, "r": record.run.lora.rank}
    rows = record.state.weights.rows
    return {
        "adapter_config.json": msgspec.json.encode(config),
        "toy_weights.bin": b"".join(
            bytes([token]) + rows[token].tobytes() for token in sorted(rows)
        ),
    }


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _address(call: Call, record: CheckpointRecord, name: str) -> str:
    path = record.path
    return f"{_origin(call)}files/{path.training_run_id}/{path.kind}/{path.name}/{name}"


def _origin(call: Call) -> str:
    host = call.headers.get(b"host") or call.headers.get(b":authority") or b"fake.invalid"
    return f"http://{host.decode('latin-1')}/api/v1/"


def _run(state: State, call: Call) -> Run:
    run = state.runs.get(call.ids[0])
    if run is None:
        raise Refusal(404, f"no training run {call.ids[0]!r}")
    return run


def _checkpoint(state: State, call: Call) -> CheckpointRecord:
    return state.checkpoint(str(CheckpointPath(*call.ids[:3])))


def page(call: Call, rows: Sequence[T], limit: int) -> tuple[Sequence[T], Cursor]:
    """Return the part of a listing that a request asks for, and its place."""
    limit, offset = call.number("limit", limit), call.number("offset", 0)
    cursor = Cursor(offset=offset, limit=limit, total_count=len(rows))
    return rows[offset : offset + limit], cursor


_ONE = "training_runs/{}/checkpoints/{}/{}"

ROUTES = (
    Route("training_runs", "GET", "training_runs", list_runs),
    Route("training_run", "GET", "training_runs/{}", get_run),
    Route("run_checkpoints", "GET", "training_runs/{}/checkpoints", list_checkpoints_of_run),
    Route("checkpoints", "GET", "checkpoints", list_checkpoints),
    Route("delete_checkpoint", "DELETE", _ONE, delete_checkpoint),
    Route("publish", "POST", _ONE + "/publish", publish),
    Route("publish", "DELETE", _ONE + "/publish", publish),
    Route("ttl", "PUT", _ONE + "/ttl", set_ttl),
    Route("archive", "GET", _ONE + "/archive", archive),
    Route("bare_archive", "GET", "training_runs/{}/checkpoints/{}/archive", bare_archive),
    Route("bare_download", "GET", "training_runs/{}/checkpoints/{}/download", bare_download),
    Route("external_weights_urls", "GET", _ONE + "/external_weights_urls", external_weights_urls),
    Route("copy_weights", "POST", "copy_weights", copy_weights),
    Route("file", "GET", "files/{}/{}/{}/{}", file),
)
