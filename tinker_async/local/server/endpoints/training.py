"""Models and what is done with them: create, inspect, forward, backward, step, unload."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tinker_async.data.datum import Datum
from tinker_async.data.params import AdamParams, LoraConfig
from tinker_async.data.results import GetInfoResponse, ModelData
from tinker_async.errors import InvalidInputError
from tinker_async.local.engine.jobs import CreateModel, CustomLoss, ForwardBackward, Job, OptimStep
from tinker_async.local.server.endpoints.routing import Handler, body_of
from tinker_async.local.server.faults import fault_of
from tinker_async.local.server.http import Body, answer, parse
from tinker_async.local.server.lanes import Operation
from tinker_async.local.server.promises import Kind, Promise
from tinker_async.local.server.refusal import Refusal, checked_number
from tinker_async.local.server.service import Model, Service, Session
from tinker_async.local.server.store import now
from tinker_async.loss_graphs import GraphLoss
from tinker_async.wire.messages import (
    CreateCustomLossRequest,
    CreateCustomLossResponse,
    CreateModelRequest,
    CreateModelResponse,
    ForwardBackwardInput,
    ForwardBackwardRequest,
    ForwardRequest,
    ModelRequest,
    UntypedAPIFuture,
)
from tinker_async.wire.protobuf import DecodeError
from tinker_async.wire.training import decode_forward_backward

_MOST_LOSSES = 1000
"""Of one session; each can be large."""


class _OptimStepRequest(msgspec.Struct, frozen=True):
    """As the client's, but with the other names that a family's parameters travel under."""

    model_id: str
    seq_id: int | None = None
    adam_params: AdamParams | None = None
    optim_params: AdamParams | None = None
    optimizer_params: dict[str, Any] | None = None


def promised(promise: Promise) -> Response:
    """Answer with a promise."""
    return answer(UntypedAPIFuture(request_id=promise.request_id, model_id=promise.model_id))


def enqueue(
    service: Service,
    model: Model,
    seq_id: int | None,
    body: Body,
    operation: Operation,
    *,
    kind: Kind = "json",
) -> Promise:
    """Put an operation into a model's lane, or return the promise it got the first time.

    Decides without awaiting, so that two repetitions cannot both be the first.
    """
    known = model.lane.repeated(seq_id, body.digest)
    if known is not None:
        return known
    model.lane.check_room(seq_id, len(body.data))
    model.row.last_request_at = now()
    model.touched = True
    promise = service.promises.make(
        kind, session_id=model.row.session_id, model_id=model.row.run_id
    )
    model.lane.admit(seq_id, body.digest, promise, operation, size_bytes=len(body.data))
    return promise


def begin_model(
    service: Service,
    session: Session,
    model_seq_id: int,
    body: Body,
    *,
    lora: LoraConfig,
    metadata: dict[str, Any] | None,
    first_job: Job,
    result: Any,
) -> Promise:
    """Make a model whose first operation is `first_job`, once per `model_seq_id`.

    Raises:
        Refusal: 409, the number was used for another model.
    """
    known = session.models.get(model_seq_id)
    if known is not None:
        if known[0] != body.digest:
            raise Refusal(
                409, f"model_seq_id {model_seq_id} was used for another model", field="model_seq_id"
            )
        return known[1]
    model = service.open_model(session, model_seq_id, lora, metadata)
    operation = partial(_make, service, model, first_job, result)
    promise = enqueue(service, model, None, body, operation)
    session.models[model_seq_id] = (body.digest, promise)
    return promise


async def _make(service: Service, model: Model, job: Job, result: Any) -> Any:
    try:
        await service.port.run(job)
        await service.store.put_run(model.row)
    except BaseException as error:
        service.close_model(model, f"the model could not be made: {fault_of(error) or error}")
        raise
    return result


async def create_model(service: Service, request: Request) -> Response:
    """Make a model."""
    body = await body_of(service, request)
    wanted = parse(body, CreateModelRequest)
    session = service.session(wanted.session_id)
    checked_number(wanted.model_seq_id, "model_seq_id")
    check_base_model(service, wanted.base_model)
    check_optimizer(wanted.optimizer_config)
    model_id = f"{session.id}:train:{wanted.model_seq_id}"
    lora = wanted.lora_config or LoraConfig()
    promise = begin_model(
        service,
        session,
        wanted.model_seq_id,
        body,
        lora=lora,
        metadata=wanted.user_metadata,
        first_job=CreateModel(model_id, lora),
        result=CreateModelResponse(model_id=model_id),
    )
    return promised(promise)


def check_base_model(service: Service, name: str) -> None:
    """Refuse another base model with 400."""
    if name != service.card.name:
        raise Refusal(
            400,
            f"base model {name!r} is not served here; served: {service.card.name}",
            field="base_model",
        )


def check_optimizer(config: dict[str, Any] | None) -> None:
    """Refuse any optimizer but AdamW with 400."""
    if config is not None and config.get("type", "adamw") != "adamw":
        raise Refusal(
            400,
            f"optimizer {config['type']!r} is not available here; use adamw, which is what a model "
            "has without optimizer_config",
            field="optimizer_config",
        )


async def get_info(service: Service, request: Request) -> Response:
    """Describe a model."""
    wanted = parse(await body_of(service, request), ModelRequest)
    row = service.model(wanted.model_id).row
    return answer(
        GetInfoResponse(
            model_id=row.run_id,
            model_data=ModelData(arch=service.card.architecture, model_name=service.card.name),
            is_lora=True,
            lora_rank=row.lora.rank,
            model_name=service.card.name,
        )
    )


async def unload_model(service: Service, request: Request) -> Response:
    """Free a model after what is ready in its lane."""
    body = await body_of(service, request)
    model = service.model(parse(body, ModelRequest).model_id)
    run = model.row

    async def unload() -> dict[str, str]:
        service.close_model(model, f"the model {run.run_id} was unloaded")
        await service.note_unloaded(run)
        return {"model_id": run.run_id, "type": "unload_model"}

    if model.lane.lost is not None:  # nothing is carried out there any more
        promise = service.promises.make("json", session_id=run.session_id, model_id=run.run_id)
        promise.settle(await unload())
        return promised(promise)
    return promised(enqueue(service, model, None, body, unload))


async def forward_backward(service: Service, request: Request) -> Response:
    """Queue a forward, or forward and backward, from protobuf or JSON."""
    body = await body_of(service, request)
    content_type = request.headers.get("content-type", "")
    if "protobuf" not in content_type:
        wanted = parse(body, ForwardBackwardRequest)
        return _forward(
            service, body, wanted.model_id, wanted.seq_id, wanted.forward_backward_input, only=False
        )
    try:
        sent = decode_forward_backward(body.data)
    except InvalidInputError as error:
        raise Refusal(400, str(error), field=error.field) from error
    except DecodeError as error:
        raise Refusal(400, str(error)) from error
    return _queue_forward(
        service,
        body,
        sent.model_id,
        sent.seq_id,
        data=sent.data,
        loss_fn=sent.loss_fn,
        config=sent.loss_fn_config,
        only=sent.forward_only,
    )


async def forward(service: Service, request: Request) -> Response:
    """Queue a forward, the JSON way of older clients."""
    body = await body_of(service, request)
    wanted = parse(body, ForwardRequest)
    return _forward(service, body, wanted.model_id, wanted.seq_id, wanted.forward_input, only=True)


def _forward(
    service: Service,
    body: Body,
    model_id: str,
    seq_id: int,
    given: ForwardBackwardInput,
    *,
    only: bool,
) -> Response:
    return _queue_forward(
        service,
        body,
        model_id,
        seq_id,
        data=given.data,
        loss_fn=given.loss_fn,
        config=given.loss_fn_config or {},
        only=only,
    )


def _queue_forward(
    service: Service,
    body: Body,
    model_id: str,
    seq_id: int,
    *,
    data: list[Datum],
    loss_fn: str,
    config: dict[str, float | str],
    only: bool,
) -> Response:
    model = service.model(model_id)
    try:
        custom = None
        if loss_fn == "custom":
            custom, config = service.session(model.row.session_id).custom_loss(config), {}
        job = ForwardBackward(model_id, data, loss_fn, config, only, custom)
        operation: Operation = partial(service.port.run, job)
    except InvalidInputError as error:
        operation = _failing(error)
    return promised(enqueue(service, model, seq_id, body, operation, kind="forward_backward"))


def _failing(error: InvalidInputError) -> Operation:
    """Return an operation that fails. A refusal would leave a gap in the model's numbers."""

    async def fail() -> None:
        raise error

    return fail


async def optim_step(service: Service, request: Request) -> Response:
    """Queue an AdamW step; a step of another optimizer fails in its turn."""
    body = await body_of(service, request)
    wanted = parse(body, _OptimStepRequest)
    model = service.model(wanted.model_id)
    adam = wanted.adam_params or wanted.optim_params
    if adam is None:
        if wanted.optimizer_params is None:
            model.lane.pass_over(wanted.seq_id)
            raise Refusal(422, "adam_params is missing", field="adam_params")
        kind = wanted.optimizer_params.get("type")
        error = InvalidInputError(
            f"optimizer_params: {kind!r} is not available here; use AdamW: give adam_params",
            field="optimizer_params",
        )
        return promised(enqueue(service, model, wanted.seq_id, body, _failing(error)))
    operation = partial(service.port.run, OptimStep(wanted.model_id, adam))
    return promised(enqueue(service, model, wanted.seq_id, body, operation))


async def create_custom_loss(service: Service, request: Request) -> Response:
    """Take a custom loss; its id names it in `forward_backward`. A repetition gets the same."""
    body = await body_of(service, request)
    wanted = parse(body, CreateCustomLossRequest)
    session = service.session(wanted.session_id)
    number = checked_number(wanted.custom_loss_seq_id, "custom_loss_seq_id")
    known = session.losses.get(number)
    if known is None:
        if len(session.losses) >= _MOST_LOSSES:
            raise Refusal(400, f"a session has at most {_MOST_LOSSES} custom losses")
        known = session.losses[number] = (body.digest, _made(service, session, wanted))
    if known[0] != body.digest:
        raise Refusal(
            409,
            f"custom_loss_seq_id {number} was used for another loss",
            field="custom_loss_seq_id",
        )
    return promised(known[1])


def _made(service: Service, session: Session, wanted: CreateCustomLossRequest) -> Promise:
    promise = service.promises.make("json", session_id=session.id)
    try:
        GraphLoss(wanted.inputs, wanted.graph)
    except InvalidInputError as error:
        promise.settle(error)
    else:
        loss_id = f"{session.id}:loss:{wanted.custom_loss_seq_id}"
        session.graphs[loss_id] = CustomLoss(wanted.inputs, wanted.graph)
        promise.settle(CreateCustomLossResponse(loss_id=loss_id))
    return promise


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/create_model", create_model),
    ("POST", "/get_info", get_info),
    ("POST", "/unload_model", unload_model),
    ("POST", "/forward_backward", forward_backward),
    ("POST", "/forward", forward),
    ("POST", "/optim_step", optim_step),
    ("POST", "/create_custom_loss", create_custom_loss),
)
