"""Loading: a checkpoint becomes a model, or goes into one; and what is known of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from tinker_async.data.paths import CheckpointType, parse_path
from tinker_async.data.records import WeightsInfoResponse
from tinker_async.errors import InvalidInputError
from tinker_async.local.engine.jobs import LoadModel
from tinker_async.local.server.endpoints.routing import Handler, body_of
from tinker_async.local.server.endpoints.training import (
    begin_model,
    check_base_model,
    check_optimizer,
    enqueue,
    promised,
)
from tinker_async.local.server.http import Body, answer, parse
from tinker_async.local.server.refusal import Refusal, checked_number
from tinker_async.local.server.rows import CheckpointRow
from tinker_async.local.server.service import Model, Service
from tinker_async.local.server.shelf import no_checkpoint
from tinker_async.wire.messages import LoadWeightsRequest, WeightsInfoRequest


@contextmanager
def numbered(model: Model, seq_id: int | None) -> Iterator[None]:
    """Check a request of a model: when it is refused its number is not waited for."""
    try:
        yield
    except Refusal:
        model.lane.pass_over(seq_id)
        raise


async def load_weights(service: Service, request: Request) -> Response:
    """Queue loading a checkpoint: into a new model, or (older clients) an existing one."""
    body = await body_of(service, request)
    wanted = parse(body, LoadWeightsRequest)
    if wanted.model_id is not None:
        model = service.model(wanted.model_id)
        with numbered(model, wanted.seq_id):
            _, load = _checked(service, wanted)
        return _load_into(service, wanted, body, model, load(model.row.run_id))
    row, load = _checked(service, wanted)
    if wanted.session_id is None or wanted.model_seq_id is None:
        raise Refusal(
            422, "either model_id, or session_id and model_seq_id must be given", field="model_id"
        )
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


def _checked(
    service: Service, wanted: LoadWeightsRequest
) -> tuple[CheckpointRow, Callable[[str], LoadModel]]:
    row = checkpoint_at(service, wanted.path, expect="training", purpose="load")
    check_base_model(service, row.base_model)
    if wanted.base_model is not None:
        check_base_model(service, wanted.base_model)
    check_optimizer(wanted.optimizer_config)
    # Clients of the 0.4 era do not send the field and expect everything back.
    optimizer = True if wanted.optimizer is None else wanted.optimizer
    folder = service.folders.inside(row.folder)
    return row, partial(LoadModel, folder=folder, optimizer=optimizer)


def _load_into(
    service: Service, wanted: LoadWeightsRequest, body: Body, model: Model, job: LoadModel
) -> Response:
    async def operation() -> dict[str, str]:
        await service.port.run(job)
        return _loaded(wanted.path, job.model_id)

    return promised(enqueue(service, model, wanted.seq_id, body, operation))


def _loaded(path: str, model_id: str) -> dict[str, str]:
    return {"path": path, "model_id": model_id, "type": "load_weights"}


def checkpoint_at(
    service: Service,
    path: str,
    *,
    expect: CheckpointType | None = None,
    field: str = "path",
    purpose: str | None = None,
) -> CheckpointRow:
    """Return a checkpoint by its path.

    Args:
        service: Where it is.
        path: `tinker://...`
        expect: Refuse another kind.
        field: Where the path stands in the request.
        purpose: What its weights are read for, if they are; it goes into the audit log.

    Raises:
        Refusal: 400 not such a path or of the wrong kind, 404 no such checkpoint.
    """
    try:
        parse_path(path, expect=expect, field=field)
    except InvalidInputError as error:
        raise Refusal(400, str(error), field=field) from error
    row = service.shelf.get(path)
    if row is None:
        raise no_checkpoint(path, field=field)
    if purpose is not None:
        service.ledger.checkpoint_event("read", row, purpose=purpose)
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
    ("POST", "/load_weights", load_weights),
    ("POST", "/weights_info", weights_info),
)
