"""Models, what is done with them, and their weights. Parse, ask the state, answer."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec

from tinker_async.data.datum import Datum
from tinker_async.data.optimizers import DimuonParams
from tinker_async.data.params import AdamParams, LoraConfig
from tinker_async.data.paths import parse_path
from tinker_async.data.records import WeightsInfoResponse
from tinker_async.data.results import GetInfoResponse, ModelData, OptimStepResponse
from tinker_async.errors import InvalidInputError
from tinker_async.testing.answers import Answer, Refusal, json_answer
from tinker_async.testing.endpoints_losses import loss_of
from tinker_async.testing.promises import Promise
from tinker_async.testing.routing import Call, Route
from tinker_async.testing.state import CheckpointRecord, Model, Sampler, SessionRecord, State
from tinker_async.testing.toy_inputs import toy_tokens
from tinker_async.testing.toy_model import ToyState
from tinker_async.wire.messages import (
    CreateModelRequest,
    CreateModelResponse,
    ForwardBackwardRequest,
    ForwardRequest,
    LoadWeightsRequest,
    ModelRequest,
    SaveWeightsExternalRequest,
    SaveWeightsForSamplerRequest,
    SaveWeightsForSamplerResult,
    SaveWeightsRequest,
    UntypedAPIFuture,
    WeightsInfoRequest,
)
from tinker_async.wire.protobuf import DecodeError
from tinker_async.wire.training import decode_forward_backward

ADAM: dict[str, Any] = {"type": "adamw"}


class _OptimStepRequest(msgspec.Struct, frozen=True):
    """With the other names under which clients send the parameters."""

    model_id: str
    seq_id: int | None = None
    adam_params: AdamParams | None = None
    optim_params: AdamParams | None = None
    optimizer_params: dict[str, Any] | None = None


def _promised(promise: Promise, call: Call) -> Answer:
    call.entry.request_id = promise.request_id
    return json_answer(UntypedAPIFuture(request_id=promise.request_id, model_id=promise.model_id))


def create_model(state: State, call: Call) -> Answer:
    """Make a model."""
    wanted = call.parse(CreateModelRequest)
    session = state.session(wanted.session_id)
    check_base_model(state, wanted.base_model)
    _check_optimizer(wanted.optimizer_config)
    lora = wanted.lora_config or LoraConfig()

    def make() -> tuple[Model, Callable[[], Any]]:
        model = state.open_model(session, wanted.model_seq_id, wanted.base_model, lora)
        model.run.metadata = wanted.user_metadata
        model.run.optimizer = wanted.optimizer_config or ADAM
        return model, lambda: CreateModelResponse(model_id=model.id)

    return _begun(state, call, session, wanted.model_seq_id, make)


def check_base_model(state: State, name: str) -> None:
    """Refuse a base model that is not served with 400."""
    if name not in state.settings.base_models:
        served = ", ".join(state.settings.base_models)
        raise Refusal(400, f"base model {name!r} is not served here; served: {served}")


def _check_optimizer(config: dict[str, Any] | None) -> None:
    family = (config or ADAM).get("type")
    if family not in ("adamw", "dimuon"):
        raise Refusal(400, f"the toy model has no optimizer {family!r}, only adamw and dimuon")


def _begun(
    state: State,
    call: Call,
    session: SessionRecord,
    number: int,
    make: Callable[[], tuple[Model, Callable[[], Any]]],
) -> Answer:
    known = session.models.get(number)
    if known is None:
        model, operation = make()
        promise = state.enqueue(
            model, call.entry.endpoint, None, call.digest, operation, fault=call.fault
        )
        known = session.models[number] = (call.digest, promise)
    if known[0] != call.digest:
        raise Refusal(409, f"model_seq_id {number} was used for another model")
    return _promised(known[1], call)


def get_info(state: State, call: Call) -> Answer:
    """Describe a model."""
    run = state.model(call.parse(ModelRequest).model_id).run
    return json_answer(
        GetInfoResponse(
            model_id=run.id,
            model_data=ModelData(arch="toy", model_name=run.base_model),
            is_lora=True,
            lora_rank=run.lora.rank,
            model_name=run.base_model,
            optimizer_config=run.optimizer,
        )
    )


def unload_model(state: State, call: Call) -> Answer:
    """Free a model."""
    model = state.model(call.parse(ModelRequest).model_id)

    def unload() -> dict[str, str]:
        state.models.pop(model.id, None)
        return {"model_id": model.id, "type": "unload_model"}

    promise = state.enqueue(model, "unload_model", None, call.digest, unload, fault=call.fault)
    return _promised(promise, call)


def forward_backward(state: State, call: Call) -> Answer:
    """Run a loss forward and backward, from protobuf or JSON."""
    if b"protobuf" not in call.headers.get(b"content-type", b""):
        wanted = call.parse(ForwardBackwardRequest)
        given = wanted.forward_backward_input
        return _forward(
            state, call, wanted, given.data, given.loss_fn, given.loss_fn_config or {}, only=False
        )
    try:
        sent = decode_forward_backward(call.body)
    except (DecodeError, InvalidInputError) as error:
        raise Refusal(400, str(error)) from error
    return _forward(
        state, call, sent, sent.data, sent.loss_fn, sent.loss_fn_config, only=sent.forward_only
    )


def forward(state: State, call: Call) -> Answer:
    """Run a loss forward, the JSON way of older clients."""
    wanted = call.parse(ForwardRequest)
    given = wanted.forward_input
    return _forward(
        state, call, wanted, given.data, given.loss_fn, given.loss_fn_config or {}, only=True
    )


def _forward(
    state: State,
    call: Call,
    who: Any,
    data: list[Datum],
    loss_fn: str,
    config: dict[str, float | str],
    *,
    only: bool,
) -> Answer:
    model = state.model(who.model_id)

    def operation() -> Any:
        loss = loss_of(state.session(model.session_id), loss_fn, config)
        output = model.toy.forward_backward(data, loss, forward_only=only)
        tokens = sum(toy_tokens(datum.model_input).size for datum in data)
        state.account.note_use(model.session_id, model.run.base_model, "training", tokens)
        return output

    name = "forward" if only else "forward_backward"
    promise = state.enqueue(
        model,
        name,
        who.seq_id,
        call.digest,
        operation,
        fault=call.fault,
        kind="forward_backward",
    )
    return _promised(promise, call)


def optim_step(state: State, call: Call) -> Answer:
    """Apply a step of the model's optimizer."""
    wanted = call.parse(_OptimStepRequest)
    model = state.model(wanted.model_id)
    adam = wanted.adam_params or wanted.optim_params
    params = adam or _dimuon(wanted.optimizer_params)
    promise = state.enqueue(
        model,
        "optim_step",
        wanted.seq_id,
        call.digest,
        lambda: _step(model, params),
        fault=call.fault,
    )
    return _promised(promise, call)


def _dimuon(given: dict[str, Any] | None) -> DimuonParams:
    if given is None:
        raise Refusal(422, "adam_params is missing, and so is optimizer_params")
    try:
        return msgspec.convert(given, DimuonParams)
    except msgspec.ValidationError as error:
        raise Refusal(422, f"optimizer_params: {error}") from error


def _step(model: Model, params: AdamParams | DimuonParams) -> OptimStepResponse:
    wanted, has = "adamw" if isinstance(params, AdamParams) else "dimuon", model.run.optimizer
    if has["type"] != wanted:
        raise InvalidInputError(
            f"the model's optimizer is {has['type']}, not {wanted}", field="optim_params"
        )
    if isinstance(params, AdamParams):
        return model.toy.optim_step(params)
    return model.toy.dimuon_step(params)


# Weights


def save_weights(state: State, call: Call) -> Answer:
    """Make a checkpoint for training."""
    wanted = call.parse(SaveWeightsRequest)
    model = state.model(wanted.model_id)
    name = wanted.path or f"checkpoint-{wanted.seq_id or 0:06d}"

    def operation() -> dict[str, str]:
        record = state.save(model, "weights", name, overwrite=wanted.overwrite)
        record.metadata = wanted.user_metadata
        _expires(state, record, wanted.ttl_seconds)
        return {"path": str(record.path), "type": "save_weights"}

    promise = state.enqueue(
        model, "save_weights", wanted.seq_id, call.digest, operation, fault=call.fault
    )
    return _promised(promise, call)


def save_weights_for_sampler(state: State, call: Call) -> Answer:
    """Make a checkpoint for sampling, or a sampling session with the weights as they are now."""
    wanted = call.parse(SaveWeightsForSamplerRequest)
    model = state.model(wanted.model_id)
    number = wanted.sampling_session_seq_id

    def named() -> SaveWeightsForSamplerResult:
        name = wanted.path or f"checkpoint-{wanted.seq_id or 0:06d}"
        record = state.save(model, "sampler_weights", name, overwrite=False)
        record.metadata = wanted.user_metadata
        _expires(state, record, wanted.ttl_seconds)
        return SaveWeightsForSamplerResult(path=str(record.path))

    def ephemeral() -> SaveWeightsForSamplerResult:
        sampler_id = state.session(model.session_id).samplers[number or 0][1]
        sampler = Sampler(sampler_id, model.session_id, model.toy.weights, None)
        state.samplers[sampler_id] = sampler
        if wanted.kind == "inflight":
            model.inflight.append(sampler)
            for one in model.inflight:
                one.weights = model.toy.weights
        return SaveWeightsForSamplerResult(sampling_session_id=sampler_id)

    if wanted.kind not in ("snapshot", "inflight"):
        raise Refusal(422, f"kind must be snapshot or inflight, got {wanted.kind!r}")
    if number is not None:
        if wanted.path is not None:
            raise Refusal(400, "path and sampling_session_seq_id exclude each other")
        claim_sampler(state, state.session(model.session_id), number, call.digest)
    promise = state.enqueue(
        model,
        "save_weights_for_sampler",
        wanted.seq_id,
        call.digest,
        named if number is None else ephemeral,
        fault=call.fault,
    )
    return _promised(promise, call)


def _expires(state: State, record: CheckpointRecord, ttl_seconds: int | None) -> None:
    """Show a checkpoint as expiring; it stays all the same."""
    if ttl_seconds is not None:
        record.expires_at = state.time() + timedelta(seconds=ttl_seconds)


def save_weights_external(state: State, call: Call) -> Answer:
    """Make a checkpoint for other programs."""
    wanted = call.parse(SaveWeightsExternalRequest)
    model = state.model(wanted.model_id)
    if len(wanted.age_encryption_recipients or ()) > 10:
        raise Refusal(422, "age_encryption_recipients: 10 are the most")

    def operation() -> dict[str, Any]:
        record = state.save(model, "external_weights", wanted.path, overwrite=False)
        _expires(state, record, wanted.ttl_seconds)
        return {
            "path": str(record.path),
            "size_bytes": record.view().size_bytes,
            "type": "save_weights_external",
        }

    promise = state.enqueue(
        model, "save_weights_external", wanted.seq_id, call.digest, operation, fault=call.fault
    )
    return _promised(promise, call)


def claim_sampler(state: State, session: SessionRecord, number: int, digest: bytes) -> None:
    """Note that a sampler has a number; a repetition of the same request is fine.

    Raises:
        Refusal: 409, the number was used for another sampler.
    """
    usual = f"{session.id}:sample:{number}"
    sampler_id = state.settings.make_id("sampler", usual, session.id, number)
    known = session.samplers.setdefault(number, (digest, sampler_id))
    if known[0] != digest:
        raise Refusal(409, f"sampling_session_seq_id {number} was used for another sampler")


def load_weights(state: State, call: Call) -> Answer:
    """Load a checkpoint: into a new model, or (older clients) an existing one."""
    wanted = call.parse(LoadWeightsRequest)
    record = checkpoint_at(state, wanted.path, training=True)
    # Clients of the 0.4 era do not send the field and expect everything back.
    optimizer = True if wanted.optimizer is None else wanted.optimizer
    if wanted.model_id is not None:
        model = state.model(wanted.model_id)
        operation = _loading(model, record.state, wanted.path, optimizer=optimizer)
        promise = state.enqueue(
            model, "load_weights", wanted.seq_id, call.digest, operation, fault=call.fault
        )
        return _promised(promise, call)
    if wanted.session_id is None or wanted.model_seq_id is None:
        raise Refusal(422, "either model_id, or session_id and model_seq_id must be given")
    session, number = state.session(wanted.session_id), wanted.model_seq_id

    _check_optimizer(wanted.optimizer_config)
    base_model = wanted.base_model or record.run.base_model
    check_base_model(state, base_model)

    def make() -> tuple[Model, Callable[[], Any]]:
        model = state.open_model(session, number, base_model, record.run.lora)
        model.run.metadata = wanted.user_metadata
        model.run.optimizer = record.run.optimizer if optimizer else wanted.optimizer_config or ADAM
        return model, _loading(model, record.state, wanted.path, optimizer=optimizer)

    return _begun(state, call, session, number, make)


def _loading(
    model: Model, saved: ToyState, path: str, *, optimizer: bool
) -> Callable[[], dict[str, str]]:
    def load() -> dict[str, str]:
        model.toy.restore(saved, optimizer=optimizer)
        return {"path": path, "model_id": model.id, "type": "load_weights"}

    return load


def checkpoint_at(state: State, path: str, *, training: bool = False) -> CheckpointRecord:
    """Return a checkpoint by its path.

    Raises:
        Refusal: 400 not such a path or of the wrong kind, 404 no such checkpoint.
    """
    try:
        parse_path(path, expect="training" if training else None)
    except InvalidInputError as error:
        raise Refusal(400, str(error)) from error
    return state.checkpoint(path)


def weights_info(state: State, call: Call) -> Answer:
    """Tell what a checkpoint was trained on and how."""
    run = checkpoint_at(state, call.parse(WeightsInfoRequest).tinker_path).run
    return json_answer(
        WeightsInfoResponse(
            base_model=run.base_model,
            is_lora=True,
            lora_rank=run.lora.rank,
            train_unembed=run.lora.train_unembed,
            train_mlp=run.lora.train_mlp,
            train_attn=run.lora.train_attn,
            optimizer_config=run.optimizer,
        )
    )


ROUTES = tuple(
    Route(name, "POST", name, handler)
    for name, handler in {
        "create_model": create_model,
        "get_info": get_info,
        "unload_model": unload_model,
        "forward_backward": forward_backward,
        "forward": forward,
        "optim_step": optim_step,
        "save_weights": save_weights,
        "save_weights_for_sampler": save_weights_for_sampler,
        "save_weights_external": save_weights_external,
        "load_weights": load_weights,
        "weights_info": weights_info,
    }.items()
)
