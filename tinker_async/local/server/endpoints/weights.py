"""Saving and loading: checkpoints of both kinds, and snapshots for sampling."""

from __future__ import annotations

import sqlite3
from datetime import datetime
from functools import partial
from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tinker_async.data.paths import CheckpointPath, CheckpointType, parse_path
from tinker_async.data.results import WeightsInfoResponse
from tinker_async.errors import InvalidInputError
from tinker_async.local.engine.jobs import LoadModel, SaveSampler, SaveTraining, TakeSnapshot
from tinker_async.local.server.endpoints.routing import Handler, body_of
from tinker_async.local.server.endpoints.training import (
    begin_model,
    check_base_model,
    check_optimizer,
    enqueue,
    promised,
)
from tinker_async.local.server.folders import check_name
from tinker_async.local.server.http import Body, answer, parse
from tinker_async.local.server.refusal import Refusal, checked_number
from tinker_async.local.server.service import Model, Sampler, Service, expiry
from tinker_async.local.server.store import CheckpointRow, now
from tinker_async.wire.messages import (
    LoadWeightsRequest,
    SaveWeightsForSamplerRequest,
    SaveWeightsForSamplerResult,
    SaveWeightsRequest,
    WeightsInfoRequest,
)


class _Save(msgspec.Struct, frozen=True):
    """A named save, checked."""

    kind: str
    name: str
    overwrite: bool
    expires_at: datetime | None
    user_metadata: dict[str, str] | None


async def save_weights(service: Service, request: Request) -> Response:
    """Queue a checkpoint for training."""
    body = await body_of(service, request)
    wanted = parse(body, SaveWeightsRequest)
    model = service.model(wanted.model_id)
    save = _Save(
        "weights",
        _name(wanted.path, wanted.seq_id),
        wanted.overwrite,
        expiry(wanted.ttl_seconds),
        wanted.user_metadata,
    )

    async def operation() -> dict[str, str]:
        return {"path": await _save(service, model, save), "type": "save_weights"}

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
    save = _Save(
        "sampler_weights",
        _name(wanted.path, wanted.seq_id),
        overwrite=False,
        expires_at=expiry(wanted.ttl_seconds),
        user_metadata=wanted.user_metadata,
    )

    async def operation() -> SaveWeightsForSamplerResult:
        return SaveWeightsForSamplerResult(path=await _save(service, model, save))

    return promised(enqueue(service, model, wanted.seq_id, body, operation))


def _name(name: str | None, seq_id: int | None) -> str:
    return check_name(name) if name is not None else f"checkpoint-{seq_id or 0:06d}"


async def _save(service: Service, model: Model, save: _Save) -> str:
    run = model.row
    path = str(CheckpointPath(run.run_id, save.kind, save.name))
    old = service.store.checkpoints.get(path)
    if old is not None and not save.overwrite:
        raise InvalidInputError(
            f"{path} exists already", field="path", hint="give another name, or overwrite=True"
        )
    job = SaveTraining if save.kind == "weights" else SaveSampler

    async def fill(folder: Path) -> int:
        size_bytes: int = await service.port.run(job(run.run_id, folder))
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
        created_at=now(),
        size_bytes=size_bytes,
        expires_at=save.expires_at,
        user_metadata=save.user_metadata,
    )
    try:
        if old is not None:
            await service.folders.doom(old.folder)
        await service.store.put_checkpoint(row)
    except sqlite3.Error:
        await service.folders.remove(folder)
        raise
    await service.folders.keep(folder)
    if old is not None:
        await service.folders.remove(old.folder)
    return path


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


async def load_weights(service: Service, request: Request) -> Response:
    """Queue loading a checkpoint: into a new model, or (older clients) an existing one."""
    body = await body_of(service, request)
    wanted = parse(body, LoadWeightsRequest)
    row = checkpoint_at(service, wanted.path, expect="training")
    check_base_model(service, row.base_model)
    check_optimizer(wanted.optimizer_config)
    # Clients of the 0.4 era do not send the field and expect everything back.
    optimizer = True if wanted.optimizer is None else wanted.optimizer
    load = partial(LoadModel, folder=service.folders.inside(row.folder), optimizer=optimizer)
    if wanted.model_id is not None:
        return _load_into(service, wanted, body, load(wanted.model_id))
    if wanted.session_id is None or wanted.model_seq_id is None:
        raise Refusal(
            422, "either model_id, or session_id and model_seq_id must be given", field="model_id"
        )
    if wanted.base_model is not None:
        check_base_model(service, wanted.base_model)
    session = service.session(wanted.session_id)
    checked_number(wanted.model_seq_id, "model_seq_id")
    model_id = f"{session.id}:train:{wanted.model_seq_id}"
    promise = begin_model(
        service,
        session,
        wanted.model_seq_id,
        body,
        lora=row.lora,
        metadata=wanted.user_metadata,
        first_job=load(model_id),
        result=_loaded(wanted.path, model_id),
    )
    return promised(promise)


def _load_into(
    service: Service, wanted: LoadWeightsRequest, body: Body, job: LoadModel
) -> Response:
    async def operation() -> dict[str, str]:
        await service.port.run(job)
        return _loaded(wanted.path, job.model_id)

    model = service.model(job.model_id)
    return promised(enqueue(service, model, wanted.seq_id, body, operation))


def _loaded(path: str, model_id: str) -> dict[str, str]:
    return {"path": path, "model_id": model_id, "type": "load_weights"}


def checkpoint_at(
    service: Service, path: str, *, expect: CheckpointType | None = None, field: str = "path"
) -> CheckpointRow:
    """Return a checkpoint by its path.

    Raises:
        Refusal: 400 not such a path or of the wrong kind, 404 no such checkpoint.
    """
    try:
        parse_path(path, expect=expect, field=field)
    except InvalidInputError as error:
        raise Refusal(400, str(error), field=field) from error
    row = service.store.checkpoints.get(path)
    if row is None:
        raise Refusal(404, f"no checkpoint {path}", field=field)
    return row


async def weights_info(service: Service, request: Request) -> Response:
    """Tell what a checkpoint was trained on and how."""
    wanted = parse(await body_of(service, request), WeightsInfoRequest)
    row = checkpoint_at(service, wanted.tinker_path, field="tinker_path")
    return answer(
        WeightsInfoResponse(
            base_model=row.base_model,
            is_lora=True,
            lora_rank=row.lora.rank,
            train_unembed=row.lora.train_unembed,
            train_mlp=row.lora.train_mlp,
            train_attn=row.lora.train_attn,
        )
    )


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/save_weights", save_weights),
    ("POST", "/save_weights_for_sampler", save_weights_for_sampler),
    ("POST", "/load_weights", load_weights),
    ("POST", "/weights_info", weights_info),
)
