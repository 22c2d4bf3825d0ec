"""`Session`: one connection to a Tinker server, alive for exactly one `async with` block.

The session is the only owner of long-lived tasks. Nested blocks give the order of the
end: the user's block, then the queues, then the word to the server, then the sockets,
then (for `Session.local`) the engine's process.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.abc
import msgspec

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller, decode_json
from tinker_async.api.handshake import ask_limits, ask_switches, open_session
from tinker_async.api.promises import RETRIEVE_JSON, retrieve
from tinker_async.api.retry import RetryPolicy
from tinker_async.background.compression import compression_if
from tinker_async.background.heartbeat import Heartbeat
from tinker_async.background.sampling_pool import SamplingPool, SamplingStatistics
from tinker_async.background.training_queue import Lane
from tinker_async.config import SDK_VERSION, Config, resolve_config
from tinker_async.data.params import LoraConfig
from tinker_async.data.paths import PREFIX, parse_path
from tinker_async.data.results import (
    GetServerCapabilitiesResponse,
    LoadWeightsResponse,
    WeightsInfoResponse,
)
from tinker_async.errors import (
    APIStatusError,
    BadRequestError,
    ConfigError,
    InvalidInputError,
    SessionClosedError,
    SessionLostError,
    TinkerError,
    UnprocessableEntityError,
)
from tinker_async.futures import APIFuture
from tinker_async.logs import log
from tinker_async.lone_errors import lone_errors
from tinker_async.rest import RestClient
from tinker_async.sampling import SamplingClient
from tinker_async.training import TrainingClient
from tinker_async.transport.lanes import TransportStatistics
from tinker_async.transport.opening import OpenTransport, open_transport
from tinker_async.wire import json as wire_json
from tinker_async.wire.messages import (
    ClientConfigResponse,
    CreateModelRequest,
    CreateModelResponse,
    CreateSamplingSessionRequest,
    CreateSamplingSessionResponse,
    CreateSessionRequest,
    DynamicConfigResponse,
    FinishReason,
    FinishSessionRequest,
    LoadWeightsRequest,
    UntypedAPIFuture,
    WeightsInfoRequest,
)

if TYPE_CHECKING:
    import ssl

_FINISH_GRACE_S = 5.0
_HEARTBEAT_S = 10.0
_SHORTEST_REFRESH_S = 10.0


class SessionStatistics(msgspec.Struct, frozen=True):
    """Figures of an open session."""

    transport: TransportStatistics
    sampling: SamplingStatistics
    seconds_since_heartbeat: float


class _Parts:
    """What exists only while the block is open."""

    def __init__(
        self,
        transport: OpenTransport,
        caller: Caller,
        limits: ClientConfigResponse,
        tasks: anyio.abc.TaskGroup,
        session_id: str,
    ) -> None:
        self.transport = transport
        self.caller = caller
        self.limits = limits
        self.tasks = tasks
        self.session_id = session_id
        self.pool = SamplingPool(caller, limits)
        self.compression = compression_if(limits.proto_compress_fwdbwd)
        self.lanes: dict[str, Lane] = {}
        self.heartbeat = Heartbeat(caller, session_id, period_s=_HEARTBEAT_S)
        self.next_model = 0
        self.next_sampler = 0


class Session(anyio.AsyncContextManagerMixin):
    """A session with a Tinker server.

    `async with Session() as session:` connects; leaving the block refuses new work,
    lets what was queued finish (for up to `grace_s`; not after an exception), tells
    the server how the session ended, and leaves no task, thread, socket or process.

    Which exception leaves the block: the block's own, as itself. When the server
    ended the session, the block is cancelled and `SessionLostError` leaves. A failed
    operation that nobody awaited is logged at once and raised when the block ends
    normally. An exception group leaves only when two things failed independently.

    Args:
        base_url: The server; default `TINKER_BASE_URL`, else the Tinker service.
        api_key: The credential; default `TINKER_API_KEY`.
        tags: Labels of the session; default `TINKER_TAGS` (comma-separated).
        user_metadata: Anything JSON, kept with the session.
        project_id: The project to charge; default `TINKER_PROJECT_ID`.
        display_name: A name for people.
        retry: When to repeat failed requests.
        grace_s: How long queued operations may take to finish when the block ends
            normally, in seconds.
        http2: Speak HTTP/2 (True), HTTP/1.1 (False), or let TLS negotiate (None; plain
            http then means HTTP/1.1).
        ssl_context: For https with a private certificate authority.

    Raises:
        ConfigError: When made, if key or URL are missing or malformed.
        ConnectError, AuthenticationError, ...: When entered, if the server cannot be
            reached or refuses.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        tags: Sequence[str] | None = None,
        user_metadata: Mapping[str, Any] | None = None,
        project_id: str | None = None,
        display_name: str | None = None,
        retry: RetryPolicy | None = None,
        grace_s: float = 600.0,
        http2: bool | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._config: Config | None = resolve_config(base_url, api_key)
        self._open_engine: Callable[[], Any] | None = None
        self._about = CreateSessionRequest(
            tags=list(tags) if tags is not None else _tags_from_environment(),
            user_metadata=dict(user_metadata or {}),
            sdk_version=SDK_VERSION,
            project_id=_given(project_id or _environment("TINKER_PROJECT_ID")),
            display_name=_given(display_name),
        )
        self._policy = retry or RetryPolicy()
        self._grace_s = grace_s
        self._http2 = http2
        self._ssl_context = ssl_context
        self._parts: _Parts | None = None
        self._ended: SessionClosedError | None = None
        self._unobserved: list[APIFuture[Any]] = []

    @classmethod
    def local(
        cls,
        model: str = "smollm2-135m",
        *,
        data_dir: str | PathLike[str] | None = None,
        threads: int | None = None,
        dtype: str = "float32",
        progress: Callable[[str], None] | None = None,
        retry: RetryPolicy | None = None,
        grace_s: float = 600.0,
    ) -> Session:
        """Make a session with an engine of its own, in a process that ends with the block.

        Needs the extra `local`.

        Args:
            model: `tiny-llama`, `tiny-qwen3`, `smollm2-135m` (fetched once), or
                NAME=FOLDER for a local Hugging Face folder.
            data_dir: Where checkpoints live; None keeps them for this session only.
            threads: Of torch; None takes all cores.
            dtype: Of the base weights: `float32` or `bfloat16`.
            progress: Called with each line that tells how starting goes.
            retry: As for `Session`.
            grace_s: As for `Session`.
        """
        from pathlib import Path  # noqa: PLC0415  # needed for engines alone

        from tinker_async.local.process import local_engine  # noqa: PLC0415  # extra `local`

        session = cls("http://127.0.0.1", "tml-local", retry=retry, grace_s=grace_s, http2=True)
        session._config = None
        session._open_engine = partial(
            local_engine,
            model=model,
            data_dir=Path(data_dir) if data_dir is not None else None,
            threads=threads,
            dtype=dtype,
            progress=progress,
        )
        return session

    # The block

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        if self._parts is not None or self._ended is not None:
            raise SessionClosedError(
                "a session can be entered once", hint="make a new Session for each block"
            )
        left: BaseException | None = None
        async with AsyncExitStack() as stack:
            config, engine = self._config, None
            if self._open_engine is not None:
                engine = await stack.enter_async_context(self._open_engine())
                config = resolve_config(engine.url, engine.api_key)
            if config is None:
                raise ConfigError("the session has no server")
            transport = await stack.enter_async_context(
                open_transport(config.base_url, ssl_context=self._ssl_context, http2=self._http2)
            )
            caller = Caller(transport, config, self._policy)
            limits, dynamic = await ask_limits(caller), await ask_switches(caller)
            session_id = await open_session(caller, self._about)
            stack.push_async_callback(self._say_how_it_ended, caller, session_id)
            with lone_errors():
                async with anyio.create_task_group() as tasks:
                    self._parts = _Parts(transport, caller, limits, tasks, session_id)
                    if engine is not None:
                        tasks.start_soon(_watch, engine.process)
                    async with self._background(self._parts, dynamic):
                        try:
                            yield self
                        except BaseException as error:
                            left = error
                            raise
            self._raise_unobserved()
        if left is not None:
            # asyncio cancelled our caller's task (Ctrl-C does) while scopes of ours were
            # ending, and one of them took the cancellation for its own.
            raise left

    _how: tuple[str, str | None] = ("success", None)

    @asynccontextmanager
    async def _background(
        self, parts: _Parts, dynamic: DynamicConfigResponse
    ) -> AsyncGenerator[None]:
        """Run the session's own tasks around the user's block, and end them in order."""
        parts.pool.cancel_enabled = dynamic.sample_cancel_enabled
        parts.tasks.start_soon(parts.heartbeat.run)
        parts.tasks.start_soon(parts.pool.drain_cancels)
        parts.tasks.start_soon(self._refresh_config, parts, dynamic.refresh_interval_sec)
        reason = SessionClosedError("the session's block has ended")
        try:
            yield
            with anyio.move_on_after(self._grace_s):
                for lane in list(parts.lanes.values()):
                    await lane.wait_idle()
        except Exception as error:
            self._how = ("errored", f"{type(error).__name__}: {error}"[:500])
            raise
        except BaseException as error:
            self._how = ("interrupted", type(error).__name__)
            raise
        finally:
            self._ended = reason
            for lane in parts.lanes.values():
                lane.close(reason)
            parts.tasks.cancel_scope.cancel()

    async def _say_how_it_ended(self, caller: Caller, session_id: str) -> None:
        """Tell the server; shielded and bounded, and never an error of its own."""
        kind, detail = self._how
        body = FinishSessionRequest(reason=FinishReason(type=kind), detail=detail)
        with anyio.move_on_after(_FINISH_GRACE_S, shield=True):
            try:
                if self._parts is not None:
                    await self._parts.pool.flush_cancels()
                await caller.once(endpoints.finish(session_id), (wire_json.encode(body),))
            except TinkerError as error:
                log.debug("finish_not_told", error=type(error).__name__)

    async def _refresh_config(self, parts: _Parts, interval_s: float) -> None:
        while True:
            await anyio.sleep(max(interval_s, _SHORTEST_REFRESH_S))
            try:
                config = await ask_switches(parts.caller)
            except TinkerError as error:
                log.info("config_not_refreshed", error=type(error).__name__)
            else:
                parts.pool.cancel_enabled = config.sample_cancel_enabled
                interval_s = config.refresh_interval_sec

    def _note_settled(self, future: APIFuture[Any]) -> None:
        if future.failed_unobserved:
            log.warning(
                "operation_failed", operation=future.operation, error=future.describe_error()
            )
            self._unobserved.append(future)

    def _raise_unobserved(self) -> None:
        failed = [future for future in self._unobserved if future.failed_unobserved]
        errors = [error for future in failed if (error := future.error) is not None]
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise BaseExceptionGroup("operations failed that nobody awaited", errors)

    def _open_parts(self) -> _Parts:
        if self._ended is not None:
            raise SessionClosedError(
                "the session has ended", hint="do the work inside its `async with` block"
            )
        if self._parts is None:
            raise SessionClosedError(
                "the session is not open", hint="use `async with Session(...) as session:`"
            )
        return self._parts

    # What users call

    @property
    def session_id(self) -> str:
        """The server's id of this session."""
        return self._open_parts().session_id

    @property
    def rest(self) -> RestClient:
        """Reading and managing what is on the server."""
        return RestClient(self._open_parts().caller)

    def statistics(self) -> SessionStatistics:
        """Return what is under way now."""
        parts = self._open_parts()
        return SessionStatistics(
            transport=parts.transport.statistics(),
            sampling=parts.pool.statistics(),
            seconds_since_heartbeat=anyio.current_time() - parts.heartbeat.last_beat,
        )

    async def get_server_capabilities(self) -> GetServerCapabilitiesResponse:
        """Return the base models the server offers, with their context lengths."""
        return await self._open_parts().caller.call_json(
            endpoints.CAPABILITIES, answer=GetServerCapabilitiesResponse
        )

    async def create_lora_training_client(
        self,
        base_model: str,
        rank: int = 32,
        seed: int | None = None,
        train_mlp: bool = True,
        train_attn: bool = True,
        train_unembed: bool = True,
        user_metadata: Mapping[str, str] | None = None,
    ) -> TrainingClient:
        """Create a LoRA model on a base model and return the client that trains it.

        Raises:
            InvalidInputError: Rank or switches make no adapter.
            BadRequestError: The server has no such base model.
        """
        parts = self._open_parts()
        lora = LoraConfig(
            rank=rank,
            seed=seed,
            train_mlp=train_mlp,
            train_attn=train_attn,
            train_unembed=train_unembed,
        )
        if not base_model:
            raise InvalidInputError("base_model is empty", field="base_model")
        metadata = dict(user_metadata) if user_metadata else None
        return await self._create_model(parts, base_model, lora, metadata)

    async def _create_model(
        self,
        parts: _Parts,
        base_model: str,
        lora: LoraConfig,
        metadata: dict[str, str] | None,
    ) -> TrainingClient:
        number, parts.next_model = parts.next_model, parts.next_model + 1
        request = CreateModelRequest(
            session_id=parts.session_id,
            model_seq_id=number,
            base_model=base_model,
            lora_config=lora,
            user_metadata=metadata,
        )
        promise = await parts.caller.call_json(
            endpoints.CREATE_MODEL, request, answer=UntypedAPIFuture
        )
        created = await self._await_json(parts, promise.request_id, CreateModelResponse)
        return self._training_client(parts, created.model_id)

    async def create_training_client_from_state(
        self, path: str, user_metadata: Mapping[str, str] | None = None
    ) -> TrainingClient:
        """Create a model from a checkpoint of `save_state`, with a fresh optimizer.

        Raises:
            InvalidInputError: Not the path of a training checkpoint.
            RequestFailedError, NotFoundError: The server has no such checkpoint.
        """
        return await self._from_state(path, user_metadata, optimizer=False)

    async def create_training_client_from_state_with_optimizer(
        self, path: str, user_metadata: Mapping[str, str] | None = None
    ) -> TrainingClient:
        """Create a model from a checkpoint of `save_state`, optimizer state included.

        Raises:
            InvalidInputError: Not the path of a training checkpoint.
            RequestFailedError, NotFoundError: The server has no such checkpoint.
        """
        return await self._from_state(path, user_metadata, optimizer=True)

    async def _from_state(
        self, path: str, user_metadata: Mapping[str, str] | None, *, optimizer: bool
    ) -> TrainingClient:
        parts = self._open_parts()
        parse_path(path, expect="training")
        metadata = dict(user_metadata) if user_metadata else None
        number = parts.next_model
        request = LoadWeightsRequest(
            path=path,
            optimizer=optimizer,
            session_id=parts.session_id,
            model_seq_id=number,
            user_metadata=metadata,
        )
        parts.next_model += 1
        try:
            promise = await parts.caller.call_json(
                endpoints.LOAD_WEIGHTS, request, answer=UntypedAPIFuture
            )
        except (BadRequestError, UnprocessableEntityError) as error:
            client = await self._create_then_load(path, metadata, optimizer=optimizer)
            if client is None:
                raise
            log.info("created_then_loaded", reason=error.detail)
            return client
        loaded = await self._await_json(parts, promise.request_id, LoadWeightsResponse)
        model_id = loaded.model_id or f"{parts.session_id}:train:{number}"
        return self._training_client(parts, model_id)

    async def _create_then_load(
        self, path: str, metadata: dict[str, str] | None, *, optimizer: bool
    ) -> TrainingClient | None:
        """The older way: look the checkpoint up, create a model, load into it.

        Returns:
            None where the server does not have this way (or this checkpoint) either.
        """
        parts = self._open_parts()
        try:
            info = await parts.caller.call_json(
                endpoints.WEIGHTS_INFO,
                WeightsInfoRequest(tinker_path=path),
                answer=WeightsInfoResponse,
            )
        except APIStatusError:
            return None
        switches = {
            name: value
            for name in ("train_mlp", "train_attn", "train_unembed")
            if (value := getattr(info, name)) is not None
        }
        lora = LoraConfig(rank=info.lora_rank or 32, **switches)
        client = await self._create_model(parts, info.base_model, lora, metadata)
        await client._load(path, optimizer=optimizer)  # noqa: SLF001  # its own family
        return client

    async def create_sampling_client(
        self, model_path: str | None = None, base_model: str | None = None
    ) -> SamplingClient:
        """Make a client that samples from a checkpoint or from a base model.

        Args:
            model_path: `tinker://...` of `save_weights_for_sampler`.
            base_model: Or the name of a base model.

        Raises:
            InvalidInputError: Neither or both given, or not a checkpoint's path.
            BadRequestError, NotFoundError: The server does not have it.
        """
        if (model_path is None) == (base_model is None):
            raise InvalidInputError("give either model_path or base_model", field="model_path")
        if model_path is not None and not model_path.startswith(PREFIX):
            parse_path(model_path, field="model_path")
        parts = self._open_parts()
        number, parts.next_sampler = parts.next_sampler, parts.next_sampler + 1
        request = CreateSamplingSessionRequest(
            session_id=parts.session_id,
            sampling_session_seq_id=number,
            base_model=base_model,
            model_path=model_path,
        )
        created = await parts.caller.call_json(
            endpoints.CREATE_SAMPLING_SESSION, request, answer=CreateSamplingSessionResponse
        )
        return self._sampling_client(created.sampling_session_id, base_model, model_path)

    def _sampling_client(
        self, sampling_session_id: str, base_model: str | None, model_path: str | None
    ) -> SamplingClient:
        parts = self._open_parts()
        return SamplingClient(
            sampling_session_id,
            caller=parts.caller,
            pool=parts.pool,
            policy=self._policy,
            base_model=base_model,
            model_path=model_path,
            is_open=self._open_parts,
        )

    def _training_client(self, parts: _Parts, model_id: str) -> TrainingClient:
        lane = Lane(
            model_id,
            parts.caller,
            self._policy,
            on_settled=self._note_settled,
            compression=parts.compression,
        )
        parts.lanes[model_id] = lane
        parts.tasks.start_soon(lane.run)

        def next_sampler() -> int:
            number, parts.next_sampler = parts.next_sampler, parts.next_sampler + 1
            return number

        return TrainingClient(
            lane,
            caller=parts.caller,
            limits=parts.limits,
            next_sampler=next_sampler,
            make_sampler=self._sampling_client,
        )

    async def _await_json(self, parts: _Parts, request_id: str, answer: type[Any]) -> Any:
        result = await retrieve(
            parts.caller, request_id, endpoint=RETRIEVE_JSON, policy=self._policy
        )
        return decode_json(result.body, answer, RETRIEVE_JSON.path)

    def __repr__(self) -> str:
        if self._ended is not None:
            return "<Session: ended>"
        if self._parts is None:
            return "<Session: not entered>"
        return f"<Session {self._parts.session_id}: {len(self._parts.lanes)} training clients>"


async def _watch(engine: anyio.abc.Process) -> None:
    status = await engine.wait()
    raise SessionLostError(
        f"the embedded engine's process ended with status {status}",
        hint="open a new session and continue from a checkpoint in data_dir",
    )


def _given(value: str | None) -> str | msgspec.UnsetType:
    return msgspec.UNSET if value is None else value


def _environment(name: str) -> str | None:
    import os  # noqa: PLC0415  # read at call time only

    return os.environ.get(name) or None


def _tags_from_environment() -> list[str]:
    return [tag.strip() for tag in (_environment("TINKER_TAGS") or "").split(",") if tag.strip()]
