"""The training clients of one session: makes them, numbers them, and keeps their lanes.

One deadline covers all the requests that a client's making takes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import anyio.abc
import msgspec

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller, Endpoint, decode_json
from tinker_async.api.capabilities import PATIENCE_S, ContextLengths
from tinker_async.api.features import Feature, says_no_endpoint
from tinker_async.api.progress import Progress, Timeout, within
from tinker_async.api.promises import RETRIEVE_JSON, retrieve
from tinker_async.api.retry import RetryPolicy
from tinker_async.background.compression import compression_if
from tinker_async.background.deadlines import Deadlines
from tinker_async.background.training_queue import Lane
from tinker_async.data import given
from tinker_async.data.optimizers import OptimizerConfig, config_to_send, family_of
from tinker_async.data.params import LoraConfig
from tinker_async.data.paths import parse_path
from tinker_async.data.records import TrainingRun, WeightsInfoResponse
from tinker_async.data.results import LoadWeightsResponse
from tinker_async.errors import (
    APIStatusError,
    BadRequestError,
    ResponseError,
    SessionClosedError,
    TinkerError,
    UnprocessableEntityError,
    UnsupportedByServerError,
)
from tinker_async.futures import APIFuture
from tinker_async.logs import log
from tinker_async.plan.checks import check_base_model
from tinker_async.samplers import Samplers
from tinker_async.training import TrainingClient
from tinker_async.wire.messages import (
    ClientConfigResponse,
    CreateModelRequest,
    CreateModelResponse,
    LoadWeightsRequest,
    UntypedAPIFuture,
    WeightsInfoRequest,
)

_HINT = "the model may have been made all the same; wait longer, or look at session.health()"


class FromState(msgspec.Struct, frozen=True, kw_only=True):
    """What a client is made from a checkpoint with."""

    path: str
    with_optimizer: bool
    """Whether the optimizer's state is restored."""
    metadata: dict[str, str] | None = None
    base_model: str | None = None
    """In place of the checkpoint's."""
    optimizer: OptimizerConfig | None = None
    """Where none is restored."""
    access_token: str | None = None

    @property
    def family(self) -> str | None:
        """The family of the new model's optimizer; None where it is the checkpoint's."""
        return None if self.with_optimizer else family_of(self.optimizer)


class _Call:
    """What all requests of one call share."""

    def __init__(self, operation: str, policy: RetryPolicy | None) -> None:
        self.progress = Progress(operation)
        self.policy = policy


class Trainers:
    """Makes the training clients of one session."""

    def __init__(
        self,
        session_id: str,
        *,
        caller: Caller,
        limits: ClientConfigResponse,
        samplers: Samplers,
        tasks: anyio.abc.TaskGroup,
        on_settled: Callable[[APIFuture[Any]], None],
        context_lengths: ContextLengths | None,
    ) -> None:
        self._session_id = session_id
        self._caller = caller
        self._limits = limits
        self._samplers = samplers
        self._tasks = tasks
        self._on_settled = on_settled
        self._context_lengths = context_lengths
        self._compression = compression_if(limits.proto_compress_fwdbwd)
        self._deadlines = Deadlines(tasks)
        self.lanes: dict[str, Lane] = {}
        """By model id."""
        self._closed: SessionClosedError | None = None
        self._next = 0

    async def create(
        self,
        base_model: str,
        lora: LoraConfig,
        metadata: dict[str, str] | None,
        *,
        optimizer: OptimizerConfig | None,
        timeout: Timeout,  # noqa: ASYNC109  # the public methods' argument, as it is
        retry: RetryPolicy | None,
    ) -> TrainingClient:
        """As `Session.create_lora_training_client`."""
        check_base_model(base_model)
        config_to_send(optimizer)  # wrong ones raise here
        call = _Call("create_lora_training_client", retry)

        async def work() -> TrainingClient:
            return self._opened(*await self._create(call, base_model, lora, metadata, optimizer))

        return await within(self._caller.limit_of(timeout, retry), call.progress, work, hint=_HINT)

    async def create_from_state(
        self,
        wanted: FromState,
        *,
        timeout: Timeout,  # noqa: ASYNC109  # the public methods' argument, as it is
        retry: RetryPolicy | None,
    ) -> TrainingClient:
        """As `Session.create_training_client_from_state`, with its optimizer or without."""
        if self._context_lengths is not None:
            parse_path(wanted.path, expect="training")
        if wanted.base_model is not None:
            check_base_model(wanted.base_model)
        if wanted.access_token is not None:
            given.secret_text(wanted.access_token, "weights_access_token")
        config_to_send(wanted.optimizer)  # wrong ones raise here
        way = "_with_optimizer" if wanted.with_optimizer else ""
        call = _Call(f"create_training_client_from_state{way}", retry)
        work = partial(self._from_state, call, wanted)
        return await within(self._caller.limit_of(timeout, retry), call.progress, work, hint=_HINT)

    async def _create(
        self,
        call: _Call,
        base_model: str,
        lora: LoraConfig,
        metadata: dict[str, str] | None,
        optimizer: OptimizerConfig | None,
    ) -> tuple[Lane, TrainingClient]:
        if config_to_send(optimizer) is not None:
            self._caller.features.require(Feature.OTHER_OPTIMIZERS)
        request = CreateModelRequest(
            session_id=self._session_id,
            model_seq_id=self._next_number(),
            base_model=base_model,
            lora_config=lora,
            user_metadata=metadata,
            optimizer_config=config_to_send(optimizer),
        )
        promise = await self._send(call, endpoints.CREATE_MODEL, request)
        created = await self._result(call, promise, CreateModelResponse)
        model_id = created.model_id or promise.model_id
        if model_id is None:
            raise ResponseError(
                "the server made a model and did not name it", endpoint=RETRIEVE_JSON.path
            )
        lane, client = self._client(model_id, family_of(optimizer))
        if self._context_lengths is not None:
            client.context_length = await self._context_lengths.of(base_model)
        return lane, client

    async def _from_state(self, call: _Call, wanted: FromState) -> TrainingClient:
        features = self._caller.features
        if wanted.access_token is not None:
            features.require(Feature.ACCESS_TOKENS)
        if Feature.CREATE_BY_LOAD in features.missing:
            older = await self._create_then_load(call, wanted)
            if older is not None:
                return older
        number = self._next_number()
        request = LoadWeightsRequest(
            path=wanted.path,
            optimizer=wanted.with_optimizer,
            session_id=self._session_id,
            model_seq_id=number,
            base_model=wanted.base_model,
            user_metadata=wanted.metadata,
            optimizer_config=config_to_send(wanted.optimizer),
            weights_access_token=wanted.access_token,
        )
        try:
            promise = await self._send(call, endpoints.LOAD_WEIGHTS, request)
        except (BadRequestError, UnprocessableEntityError, UnsupportedByServerError) as error:
            if (
                isinstance(error, UnsupportedByServerError)
                and error.feature != Feature.WEIGHTS_ONLY_LOADING
            ):
                raise
            older = await self._create_then_load(call, wanted)
            if older is None:
                raise
            features.learn(Feature.CREATE_BY_LOAD, False, detail=error.message)
            log.info("created_then_loaded", reason=error.message)
            return older
        features.learn(Feature.CREATE_BY_LOAD, True)
        loaded = await self._result(call, promise, LoadWeightsResponse)
        model_id = loaded.model_id or promise.model_id or f"{self._session_id}:train:{number}"
        lane, client = self._client(model_id, wanted.family)
        if self._context_lengths is not None and await self._context_lengths.any_known():
            await self._learn_context_length(client, self._context_lengths, call)
        return self._opened(lane, client)

    async def _learn_context_length(
        self, client: TrainingClient, lengths: ContextLengths, call: _Call
    ) -> None:
        """Which model a checkpoint is of, only the server knows; it is remembered."""
        try:
            info = await client.get_info(timeout=PATIENCE_S, retry=call.policy)
        except TinkerError as error:
            log.info("context_length_not_known", error=type(error).__name__)
        else:
            client.context_length = await lengths.of(info.model_data.model_name)

    async def _create_then_load(self, call: _Call, wanted: FromState) -> TrainingClient | None:
        """The older way: look the checkpoint up, create a model, load into it.

        Returns:
            None where the server does not have this way (or this checkpoint) either.
        """
        if not wanted.with_optimizer:
            self._caller.features.require(Feature.WEIGHTS_ONLY_LOADING)
        info = await self._described(call, wanted.path)
        if info is None:
            return None
        switches = {
            name: value
            for name in ("train_mlp", "train_attn", "train_unembed")
            if (value := getattr(info, name)) is not None
        }
        lora = LoraConfig(rank=info.lora_rank or 32, **switches)
        lane, client = await self._create(
            call, wanted.base_model or info.base_model, lora, wanted.metadata, wanted.optimizer
        )
        request = LoadWeightsRequest(
            path=wanted.path,
            optimizer=wanted.with_optimizer,
            model_id=client.model_id,
            seq_id=1,
            weights_access_token=wanted.access_token,
        )
        await self._load(call, request)
        lane.use_number()
        return self._opened(lane, client)

    async def _described(self, call: _Call, path: str) -> WeightsInfoResponse | None:
        """Return what a checkpoint is of, or its run, for the oldest servers; None if unknown."""
        request = WeightsInfoRequest(tinker_path=path)
        try:
            return await self._caller.call_json(
                endpoints.WEIGHTS_INFO,
                request,
                answer=WeightsInfoResponse,
                policy=call.policy,
                progress=call.progress,
            )
        except APIStatusError as error:
            if not says_no_endpoint(error):
                return None
        run_id = parse_path(path).training_run_id
        try:
            run = await self._caller.call_json(
                endpoints.training_run(run_id),
                answer=TrainingRun,
                policy=call.policy,
                progress=call.progress,
            )
        except APIStatusError:
            return None
        return WeightsInfoResponse(
            base_model=run.base_model, is_lora=run.is_lora, lora_rank=run.lora_rank
        )

    async def _load(self, call: _Call, request: LoadWeightsRequest) -> None:
        """Load; servers that always restore the optimizer may not know the field."""
        try:
            promise = await self._send(call, endpoints.LOAD_WEIGHTS, request)
        except UnsupportedByServerError as error:
            if error.feature != Feature.WEIGHTS_ONLY_LOADING or not request.optimizer:
                raise
            plain = msgspec.structs.replace(request, optimizer=None)
            promise = await self._send(call, endpoints.LOAD_WEIGHTS, plain)
        await self._result(call, promise, LoadWeightsResponse)

    async def _send(self, call: _Call, endpoint: Endpoint, body: object) -> UntypedAPIFuture:
        promise = await self._caller.call_json(
            endpoint, body, answer=UntypedAPIFuture, policy=call.policy, progress=call.progress
        )
        call.progress.request_id = promise.request_id
        return promise

    async def _result(self, call: _Call, promise: UntypedAPIFuture, answer: type[Any]) -> Any:
        result = await retrieve(
            self._caller,
            promise.request_id,
            endpoint=RETRIEVE_JSON,
            policy=call.policy,
            progress=call.progress,
        )
        return decode_json(result.body, answer, RETRIEVE_JSON.path, call.progress)

    def _next_number(self) -> int:
        number, self._next = self._next, self._next + 1
        return number

    def _client(self, model_id: str, optimizer: str | None) -> tuple[Lane, TrainingClient]:
        """Make a client whose lane does not run yet; `optimizer` is its family, if known."""
        lane = Lane(
            model_id,
            self._caller,
            on_settled=self._on_settled,
            deadlines=self._deadlines,
            compression=self._compression,
            room=self._samplers.pool.room,
        )
        client = TrainingClient(
            lane,
            caller=self._caller,
            session_id=self._session_id,
            limits=self._limits,
            next_sampler=self._samplers.next_number,
            make_sampler=self._samplers.client,
            create_sampler=self._samplers.create,
            optimizer=optimizer,
            check_inputs=self._context_lengths is not None,
        )
        return lane, client

    def _opened(self, lane: Lane, client: TrainingClient) -> TrainingClient:
        """Let a client's lane run. The last step of its making: a call cut short leaves no lane."""
        if self._closed is not None:
            raise self._closed
        self.lanes[lane.model_id] = lane
        self._tasks.start_soon(lane.run)
        return client

    def close(self, reason: SessionClosedError) -> None:
        """Refuse new operations and clients, and fail what is not settled."""
        self._closed = reason
        for lane in self.lanes.values():
            lane.close(reason)
