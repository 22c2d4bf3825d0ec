"""Saving: checkpoints of all kinds, and snapshots for sampling."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tinker_async.data.paths import CheckpointPath
from tinker_async.errors import InvalidInputError
from tinker_async.local.engine.jobs import SaveSampler, SaveTraining, TakeSnapshot
from tinker_async.local.server.endpoints.loading import numbered
from tinker_async.local.server.endpoints.routing import Handler, body_of
from tinker_async.local.server.endpoints.training import (
    enqueue,
    promised,
)
from tinker_async.local.server.folders import check_name
from tinker_async.local.server.http import Body, parse
from tinker_async.local.server.refusal import Refusal, checked_number
from tinker_async.local.server.rows import CheckpointRow
from tinker_async.local.server.service import Model, Sampler, Service
from tinker_async.wire.messages import (
    SaveWeightsForSamplerRequest,
    SaveWeightsForSamplerResult,
    SaveWeightsRequest,
)


class _Save(msgspec.Struct, frozen=True):
    """A named save, checked."""

    job: type[SaveTraining | SaveSampler]
    kind: str
    name: str
    overwrite: bool
    expires_at: datetime | None
    user_metadata: dict[str, str] | None


class _SaveExternalRequest(msgspec.Struct, frozen=True):
    model_id: str
    path: str
    seq_id: int | None = None
    ttl_seconds: int | None = None
    age_encryption_recipients: list[str] | None = None


async def save_weights(service: Service, request: Request) -> Response:
    """Queue a checkpoint for training."""
    body = await body_of(service, request)
    wanted = parse(body, SaveWeightsRequest)
    model = service.model(wanted.model_id)
    with numbered(model, wanted.seq_id):
        save = _Save(
            SaveTraining,
            "weights",
            _name(wanted.path, wanted.seq_id),
            wanted.overwrite,
            service.shelf.expiry(wanted.ttl_seconds),
            wanted.user_metadata,
        )

    async def operation() -> dict[str, str]:
        return {"path": (await _save(service, model, save)).path, "type": "save_weights"}

    return promised(enqueue(service, model, wanted.seq_id, body, operation))


async def save_weights_for_sampler(service: Service, request: Request) -> Response:
    """Queue a checkpoint for sampling (named), or a sampling session with these weights."""
    body = await body_of(service, request)
    wanted = parse(body, SaveWeightsForSamplerRequest)
    model = service.model(wanted.model_id)
    if wanted.sampling_session_seq_id is not None:
        if wanted.path is not None:
            raise Refusal(400, "path and sampling_session_seq_id exclude each other", field="path")
        number = checked_number(wanted.sampling_session_seq_id, "sampling_session_seq_id")
        return _save_ephemeral(service, model, wanted, number, body)
    with numbered(model, wanted.seq_id):
        save = _Save(
            SaveSampler,
            "sampler_weights",
            _name(wanted.path, wanted.seq_id),
            overwrite=False,
            expires_at=service.shelf.expiry(wanted.ttl_seconds),
            user_metadata=wanted.user_metadata,
        )

    async def operation() -> SaveWeightsForSamplerResult:
        return SaveWeightsForSamplerResult(path=(await _save(service, model, save)).path)

    return promised(enqueue(service, model, wanted.seq_id, body, operation))


async def save_weights_external(service: Service, request: Request) -> Response:
    """Queue a checkpoint in the layout that other programs load: peft's."""
    body = await body_of(service, request)
    wanted = parse(body, _SaveExternalRequest)
    model = service.model(wanted.model_id)
    with numbered(model, wanted.seq_id):
        if wanted.age_encryption_recipients:
            raise Refusal(
                400,
                "this server does not encrypt: leave age_encryption_recipients out and encrypt "
                "the downloaded files with age",
                field="age_encryption_recipients",
            )
        save = _Save(
            SaveSampler,
            "external_weights",
            check_name(wanted.path),
            overwrite=False,
            expires_at=service.shelf.expiry(wanted.ttl_seconds),
            user_metadata=None,
        )

    async def operation() -> dict[str, Any]:
        row = await _save(service, model, save)
        return {"path": row.path, "size_bytes": row.size_bytes, "type": "save_weights_external"}

    return promised(enqueue(service, model, wanted.seq_id, body, operation))


def _name(name: str | None, seq_id: int | None) -> str:
    return check_name(name) if name is not None else f"checkpoint-{seq_id or 0:06d}"


async def _save(service: Service, model: Model, save: _Save) -> CheckpointRow:
    run = model.row
    path = str(CheckpointPath(run.run_id, save.kind, save.name))
    if not save.overwrite and service.shelf.get(path) is not None:
        raise InvalidInputError(
            f"{path} exists already", field="path", hint="give another name, or overwrite=True"
        )

    async def fill(folder: Path) -> int:
        size_bytes: int = await service.port.run(save.job(run.run_id, folder))
        return size_bytes

    folder, size_bytes = await service.folders.write_checkpoint(
        run.run_id, save.kind, save.name, fill
    )
    row = CheckpointRow(
        run_id=run.run_id,
        kind=save.kind,
        name=save.name,
        folder=folder,
        base_model=run.base_model,
        lora=run.lora,
        created_at=service.clock(),
        size_bytes=size_bytes,
        expires_at=save.expires_at,
        user_metadata=save.user_metadata,
    )
    await service.shelf.keep(row)
    return row


def _save_ephemeral(
    service: Service,
    model: Model,
    wanted: SaveWeightsForSamplerRequest,
    sampler_seq_id: int,
    body: Body,
) -> Response:
    known = model.lane.repeated(wanted.seq_id, body.digest)
    if known is not None:
        return promised(known)
    session = service.session(model.row.session_id)
    if sampler_seq_id in session.samplers:
        raise Refusal(
            409,
            f"sampling_session_seq_id {sampler_seq_id} was used for another sampler",
            field="sampling_session_seq_id",
        )
    sampler_id = f"{session.id}:sample:{sampler_seq_id}"
    operation = partial(_take_snapshot, service, model, sampler_id)
    promise = enqueue(service, model, wanted.seq_id, body, operation)
    session.samplers[sampler_seq_id] = (body.digest, sampler_id)
    return promised(promise)


async def _take_snapshot(
    service: Service, model: Model, sampler_id: str
) -> SaveWeightsForSamplerResult:
    model_id = model.row.run_id
    # Both copies are of the same weights: nothing else of this model runs in between.
    # The one on disk is what the snapshot comes back from when memory was short.
    folder = service.folders.snapshot_folder(sampler_id)
    try:
        await service.port.run(SaveSampler(model_id, folder))
        await service.port.run(TakeSnapshot(model_id, sampler_id))
    except BaseException:
        await service.folders.remove(folder)
        raise
    await service.snapshots.adopt(sampler_id, folder)
    if not service.is_live(model.row.session_id):  # it ended meanwhile, and freed what it had
        await service.snapshots.forget(sampler_id)
        raise InvalidInputError("the session is over", field="model_id")
    service.add_sampler(Sampler(sampler_id, model.row.session_id, sampler_id, None))
    return SaveWeightsForSamplerResult(sampling_session_id=sampler_id)


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/save_weights", save_weights),
    ("POST", "/save_weights_for_sampler", save_weights_for_sampler),
    ("POST", "/save_weights_external", save_weights_external),
)
