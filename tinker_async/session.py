"""`Session`: one connection to a Tinker server, alive for exactly one `async with` block.

The session is the only owner of long-lived tasks. Nested blocks give the order of the
end: the user's block, then the queues, then the word to the server, then the sockets,
then (for `Session.local`) the engine's process.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
)
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, Self

import anyio

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller
from tinker_async.api.handshake import about_session, ask_limits, ask_switches, open_session
from tinker_async.api.progress import DEFAULT, Timeout, check_least, check_timeout
from tinker_async.api.retry import RetryPolicy
from tinker_async.background.health import SessionHealth, SessionStatistics
from tinker_async.config import Config, resolve_config
from tinker_async.data.handles import SamplerHandle
from tinker_async.data.params import LoraConfig
from tinker_async.data.results import GetServerCapabilitiesResponse
from tinker_async.errors import ConfigError, SessionClosedError
from tinker_async.events import EventHook, Events, EventStream
from tinker_async.lone_errors import lone_errors
from tinker_async.parts import Ending, Parts
from tinker_async.rest import RestClient
from tinker_async.sampling import SamplingClient
from tinker_async.training import TrainingClient
from tinker_async.transport.opening import OpenTransport, open_transport
from tinker_async.wire.messages import DynamicConfigResponse

if TYPE_CHECKING:
    import ssl

_HEARTBEAT_S = 10.0


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
        retry: When to repeat failed requests; a call can bring a policy of its own.
        timeout: How long a call may take that says nothing of its own, in seconds; None is no
            limit. It covers all waiting: in line, for a connection, between repetitions, for
            the result.
        on_event: Called with each event, as it happens; must not wait.
        silence_limit_s: How long a result is waited for while the server answers nothing at all,
            not even heartbeats, in seconds; None is no limit. While anything is answered, an
            operation counts as queued, for as long as that takes.
        billing_pause_s: How long requests that are answered 402 are repeated, in seconds from
            the first one; 0 repeats none.
        check_inputs: Check arguments here before anything is sent: keys, shapes, numbers, and
            lengths against what the server says of its models.
        max_samples_in_flight: A limit of samples under way, below the server's own.
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
        timeout: float | None = None,
        on_event: EventHook | None = None,
        silence_limit_s: float | None = 300.0,
        billing_pause_s: float = 0.0,
        check_inputs: bool = True,
        max_samples_in_flight: int | None = None,
        grace_s: float = 600.0,
        http2: bool | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._config: Config | None = resolve_config(base_url, api_key)
        self._open_engine: Callable[[], Any] | None = None
        self._about = about_session(tags, user_metadata, project_id, display_name)
        self._policy = retry or RetryPolicy()
        self._timeout_s = check_timeout(timeout)
        self._silence_limit_s = check_timeout(silence_limit_s, field="silence_limit_s")
        self._billing_pause_s = check_least(billing_pause_s, 0, field="billing_pause_s")
        self._check_inputs = check_inputs
        self._max_samples = max_samples_in_flight
        if max_samples_in_flight is not None:
            check_least(max_samples_in_flight, 1, field="max_samples_in_flight")
        self._events = Events(on_event)
        self._grace_s = grace_s
        # The seam for `tinker_async.testing`, which needs no socket.
        self._open_transport: Callable[[str], AbstractAsyncContextManager[OpenTransport]] = partial(
            open_transport, ssl_context=ssl_context, http2=http2
        )
        self._parts: Parts | None = None
        self._ended: SessionClosedError | None = None

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
        timeout: float | None = None,
        on_event: EventHook | None = None,
        silence_limit_s: float | None = 300.0,
        check_inputs: bool = True,
        max_samples_in_flight: int | None = None,
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
            retry: As for `Session`, like all that follow.
            timeout: For calls that say nothing of their own.
            on_event: Called with each event.
            silence_limit_s: How long the engine may answer nothing at all.
            check_inputs: Check arguments before they are sent.
            max_samples_in_flight: A limit of samples under way.
            grace_s: How long queued operations may take when the block ends.
        """
        from pathlib import Path  # noqa: PLC0415  # needed for engines alone

        from tinker_async.local.process import local_engine  # noqa: PLC0415  # extra `local`

        session = cls(
            "http://127.0.0.1",
            "tml-local",
            retry=retry,
            timeout=timeout,
            on_event=on_event,
            silence_limit_s=silence_limit_s,
            check_inputs=check_inputs,
            max_samples_in_flight=max_samples_in_flight,
            grace_s=grace_s,
            http2=True,
        )
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
            transport = await stack.enter_async_context(self._open_transport(config.base_url))
            caller = self._caller(transport, config)
            limits, dynamic = await ask_limits(caller), await ask_switches(caller)
            session_id = await open_session(caller, self._about)
            ending = Ending(caller, session_id)
            stack.push_async_callback(ending.tell)
            with lone_errors():
                async with anyio.create_task_group() as tasks:
                    self._parts = parts = Parts(
                        session_id,
                        base_url=config.base_url,
                        transport=transport,
                        caller=caller,
                        limits=limits,
                        tasks=tasks,
                        is_open=self._open_parts,
                        check_inputs=self._check_inputs,
                        max_samples=self._max_samples,
                        heartbeat_s=_HEARTBEAT_S,
                    )
                    ending.last_words = parts.pool.flush_cancels
                    if engine is not None:
                        tasks.start_soon(parts.watch_process, engine.process)
                    async with self._background(parts, dynamic, ending):
                        try:
                            yield self
                        except BaseException as error:
                            left = error
                            raise
            parts.unobserved.raise_all()
        if left is not None:
            # asyncio cancelled our caller's task (Ctrl-C does) while scopes of ours were
            # ending, and one of them took the cancellation for its own.
            raise left

    def _caller(self, transport: OpenTransport, config: Config) -> Caller:
        return Caller(
            transport,
            config,
            self._policy,
            events=self._events,
            timeout_s=self._timeout_s,
            silence_limit_s=self._silence_limit_s,
            billing_pause_s=self._billing_pause_s,
        )

    @asynccontextmanager
    async def _background(
        self, parts: Parts, dynamic: DynamicConfigResponse, ending: Ending
    ) -> AsyncGenerator[None]:
        """Run the session's own tasks around the user's block, and end them in order."""
        parts.start(dynamic)
        reason = SessionClosedError("the session's block has ended")
        try:
            yield
            with anyio.move_on_after(self._grace_s):
                await parts.wait_idle()
        except Exception as error:
            ending.how = ("errored", f"{type(error).__name__}: {error}"[:500])
            raise
        except BaseException as error:
            ending.how = ("interrupted", type(error).__name__)
            raise
        finally:
            self._ended = reason
            parts.close(reason)
            self._events.end()

    def _open_parts(self) -> Parts:
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
        return self._open_parts().statistics()

    def health(self) -> SessionHealth:
        """Return how the session is doing, at once; also after the server ended it."""
        parts = self._parts if self._parts is not None and self._parts.lost else None
        return (parts or self._open_parts()).health()

    def events(self) -> AbstractContextManager[EventStream]:
        """Open a stream of what happens from now on; it ends with the session.

        `with session.events() as stream: async for event in stream: ...`. Any number may be
        open. A stream that nobody reads drops its oldest events, and counts them.
        """
        return self._events.stream()

    async def get_server_capabilities(
        self,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> GetServerCapabilitiesResponse:
        """Return the base models the server offers, with their context lengths."""
        return await self._open_parts().caller.ask(
            "get_server_capabilities",
            endpoints.CAPABILITIES,
            answer=GetServerCapabilitiesResponse,
            timeout=timeout,
            retry=retry,
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
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> TrainingClient:
        """Create a LoRA model on a base model and return the client that trains it.

        Raises:
            InvalidInputError: Rank or switches make no adapter.
            BadRequestError: The server has no such base model.
            RequestTimeoutError: The time is over; the model may have been made.
        """
        trainers = self._open_parts().trainers
        lora = LoraConfig(
            rank=rank,
            seed=seed,
            train_mlp=train_mlp,
            train_attn=train_attn,
            train_unembed=train_unembed,
        )
        metadata = dict(user_metadata) if user_metadata else None
        return await trainers.create(base_model, lora, metadata, timeout=timeout, retry=retry)

    async def create_training_client_from_state(
        self,
        path: str,
        user_metadata: Mapping[str, str] | None = None,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> TrainingClient:
        """Create a model from a checkpoint of `save_state`, with a fresh optimizer.

        Raises:
            InvalidInputError: Not the path of a training checkpoint.
            RequestFailedError, NotFoundError: The server has no such checkpoint.
        """
        return await self._open_parts().trainers.create_from_state(
            path,
            dict(user_metadata) if user_metadata else None,
            optimizer=False,
            timeout=timeout,
            retry=retry,
        )

    async def create_training_client_from_state_with_optimizer(
        self,
        path: str,
        user_metadata: Mapping[str, str] | None = None,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> TrainingClient:
        """Create a model from a checkpoint of `save_state`, optimizer state included.

        Raises:
            InvalidInputError: Not the path of a training checkpoint.
            RequestFailedError, NotFoundError: The server has no such checkpoint.
        """
        return await self._open_parts().trainers.create_from_state(
            path,
            dict(user_metadata) if user_metadata else None,
            optimizer=True,
            timeout=timeout,
            retry=retry,
        )

    async def create_sampling_client(
        self,
        model_path: str | None = None,
        base_model: str | None = None,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> SamplingClient:
        """Make a client that samples from a checkpoint or from a base model.

        Args:
            model_path: `tinker://...` of `save_weights_for_sampler`.
            base_model: Or the name of a base model.
            timeout: Seconds for all of it; default the session's.
            retry: When to repeat; default the session's policy.

        Raises:
            InvalidInputError: Neither or both given, or not a checkpoint's path.
            BadRequestError, NotFoundError: The server does not have it.
        """
        samplers = self._open_parts().samplers
        return await samplers.create(model_path, base_model, timeout=timeout, retry=retry)

    async def create_sampling_client_from_handle(
        self,
        handle: SamplerHandle,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> SamplingClient:
        """Make a client for the sampler of another process, from `SamplingClient.handle`.

        Its requests share no number with those of other processes, so no sample is lost or given
        to two. From a base model or a checkpoint, this session makes a sampler of its own, which
        does not depend on the other session. A snapshot is shared and ends with the session that
        made it; numbers are the server's choice, or else drawn at random from 5e17.

        Raises:
            ConfigError: The handle is of a server with another URL.
            NotFoundError, BadRequestError: The server does not have what it names. The
                first sample from a snapshot raises NotFoundError or GoneError instead.
        """
        return await self._open_parts().samplers.open(handle, timeout=timeout, retry=retry)

    def __repr__(self) -> str:
        if self._ended is not None:
            return "<Session: ended>"
        if self._parts is None:
            return "<Session: not entered>"
        return f"<Session {self._parts.session_id}: {len(self._parts.trainers.lanes)} training clients>"
