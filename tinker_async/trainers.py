"""The training clients of one session: makes them, numbers them, and keeps their lanes.

One deadline covers all the requests that a client's making takes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import anyio.abc

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller, Endpoint, decode_json
from tinker_async.api.capabilities import PATIENCE_S, ContextLengths
from tinker_async.api.progress import Progress, Timeout, within
from tinker_async.api.promises import RETRIEVE_JSON, retrieve
from tinker_async.api.retry import RetryPolicy
from tinker_async.background.compression import compression_if
from tinker_async.background.deadlines import Deadlines
from tinker_async.background.training_queue import Lane
from tinker_async.data.params import LoraConfig
from tinker_async.data.paths import parse_path
from tinker_async.data.results import LoadWeightsResponse, WeightsInfoResponse
from tinker_async.errors import (
    APIStatusError,
    BadRequestError,
    InvalidInputError,
    TinkerError,
    UnprocessableEntityError,
)
from tinker_async.futures import APIFuture
from tinker_async.logs import log
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
        self._next = 0

    async def create(
        self,
        base_model: str,
        lora: LoraConfig,
        metadata: dict[str, str] | None,
        *,
        timeout: Timeout,  # noqa: ASYNC109  # the public methods' argument, as it is
        retry: RetryPolicy | None,
    ) -> TrainingClient:
        """As `Session.create_lora_training_client`."""
        if not base_model:
            raise InvalidInputError("base_model is empty", field="base_model")
        call = _Call("create_lora_training_client", retry)

        async def work() -> TrainingClient:
            return self._opened(*await self._create(call, base_model, lora, metadata))

        return await within(self._caller.limit_of(timeout), call.progress, work, hint=_HINT)

    async def create_from_state(
        self,
        path: str,
        metadata: dict[str, str] | None,
        *,
        optimizer: bool,
        timeout: Timeout,  # noqa: ASYNC109  # the public methods' argument, as it is
        retry: RetryPolicy | None,
    ) -> TrainingClient:
        """As `Session.create_training_client_from_state`, with its optimizer or without."""
        if self._context_lengths is not None:
            parse_path(path, expect="training")
        way = "_with_optimizer" if optimizer else ""
        call = _Call(f"create_training_client_from_state{way}", retry)
        work = partial(self._from_state, call, path, metadata, optimizer=optimizer)
        return await within(self._caller.limit_of(timeout), call.progress, work, hint=_HINT)

    async def _create(
        self, call: _Call, base_model: str, lora: LoraConfig, metadata: dict[str, str] | None
    ) -> tuple[Lane, TrainingClient]:
        request = CreateModelRequest(
            session_id=self._session_id,
            model_seq_id=self._next_number(),
            base_model=base_model,
            lora_config=lora,
            user_metadata=metadata,
        )
        created = await self._promised(call, endpoints.CREATE_MODEL, request, CreateModelResponse)
        lane, client = self._client(created.model_id)
        if self._context_lengths is not None:
            client.context_length = await self._context_lengths.of(base_model)
        return lane, client

    async def _from_state(
        self, call: _Call, path: str, metadata: dict[str, str] | None, *, optimizer: bool
    ) -> TrainingClient:
        number = self._next_number()
        request = LoadWeightsRequest(
            path=path,
            optimizer=optimizer,
            session_id=self._session_id,
            model_seq_id=number,
            user_metadata=metadata,
        )
        try:
            promise = await self._send(call, endpoints.LOAD_WEIGHTS, request)
        except (BadRequestError, UnprocessableEntityError) as error:
            older = await self._create_then_load(call, path, metadata, optimizer=optimizer)
            if older is None:
                raise
            log.info("created_then_loaded", reason=error.detail)
            return older
        loaded = await self._result(call, promise, LoadWeightsResponse)
        lane, client = self._client(loaded.model_id or f"{self._session_id}:train:{number}")
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

    async def _create_then_load(
        self, call: _Call, path: str, metadata: dict[str, str] | None, *, optimizer: bool
    ) -> TrainingClient | None:
        """The older way: look the checkpoint up, create a model, load into it.

        Returns:
            None where the server does not have this way (or this checkpoint) either.
        """
        try:
            info = await self._caller.call_json(
                endpoints.WEIGHTS_INFO,
                WeightsInfoRequest(tinker_path=path),
                answer=WeightsInfoResponse,
                policy=call.policy,
                progress=call.progress,
            )
        except APIStatusError:
            return None
        switches = {
            name: value
            for name in ("train_mlp", "train_attn", "train_unembed")
            if (value := getattr(info, name)) is not None
        }
        lora = LoraConfig(rank=info.lora_rank or 32, **switches)
        lane, client = await self._create(call, info.base_model, lora, metadata)
        request = LoadWeightsRequest(
            path=path, optimizer=optimizer, model_id=client.model_id, seq_id=1
        )
        await self._promised(call, endpoints.LOAD_WEIGHTS, request, LoadWeightsResponse)
        lane.use_number()
        return self._opened(lane, client)

    async def _promised(
        self, call: _Call, endpoint: Endpoint, body: object, answer: type[Any]
    ) -> Any:
        return await self._result(call, await self._send(call, endpoint, body), answer)

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

    def _client(self, model_id: str) -> tuple[Lane, TrainingClient]:
        """Make a client whose lane does not run yet."""
        lane = Lane(
            model_id,
            self._caller,
            on_settled=self._on_settled,
            deadlines=self._deadlines,
            compression=self._compression,
        )
        client = TrainingClient(
            lane,
            caller=self._caller,
            limits=self._limits,
            next_sampler=self._samplers.next_number,
            make_sampler=self._samplers.client,
            check_inputs=self._context_lengths is not None,
        )
        return lane, client

    def _opened(self, lane: Lane, client: TrainingClient) -> TrainingClient:
        """Let a client's lane run. The last step of its making: a call cut short leaves no lane."""
        self.lanes[lane.model_id] = lane
        self._tasks.start_soon(lane.run)
        return client
