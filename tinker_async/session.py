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
from typing import TYPE_CHECKING, Any, Literal, Self

import anyio

from tinker_async.api import endpoints
from tinker_async.api.connecting import (
    call_options,
    check_transport,
    open_caller,
    opened_transport,
)
from tinker_async.api.features import Server
from tinker_async.api.handshake import about_session, ask_limits, ask_switches, open_session
from tinker_async.api.progress import DEFAULT, Timeout
from tinker_async.api.retry import RetryPolicy
from tinker_async.background.health import SessionHealth, SessionStatistics
from tinker_async.config import Config, resolve_config
from tinker_async.creation import Creation
from tinker_async.data import given
from tinker_async.data.console_urls import session_page
from tinker_async.data.results import GetServerCapabilitiesResponse
from tinker_async.errors import ConfigError, SessionClosedError
from tinker_async.events import EventHook, Events, EventStream
from tinker_async.lone_errors import lone_errors
from tinker_async.parts import Ending, Parts, Unobserved
from tinker_async.plan.checks import check_base_model
from tinker_async.renewal import Renewal
from tinker_async.transport.opening import OpenTransport

if TYPE_CHECKING:
    import ssl

    from tinker_async.api.calls import Caller
    from tinker_async.background.telemetry import Telemetry
    from tinker_async.data.optimizers import OptimizerConfig
    from tinker_async.durable.checkpoint_policy import CheckpointPolicy
    from tinker_async.durable.client import DurableTrainingClient
    from tinker_async.durable.records import Record
    from tinker_async.durable.recovery_policy import RecoveryPolicy
    from tinker_async.rest import RestClient

_HEARTBEAT_S = 10.0


class Session(Creation, anyio.AsyncContextManagerMixin):
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
        api_key: The credential, a key or a JWT; default `TINKER_API_KEY`, else what
            `TINKER_CREDENTIAL_CMD` prints, else the stored key.
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
        ssl_context: For https with settings of your own.
        ca_bundle: File or folder of the certificate authorities to believe, for https with a
            private one; default `SSL_CERT_FILE` and `SSL_CERT_DIR`, else the usual ones.
        headers: Headers of every request, besides the client's own.
        proxy: URL of the proxy to go through; False for none; default `HTTPS_PROXY`,
            `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`.
        telemetry: Whether the service is told how the session goes; default `TINKER_TELEMETRY`,
            else not.

    Raises:
        ConfigError, InvalidInputError: When made, if a setting is missing or malformed.
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
        ca_bundle: str | PathLike[str] | None = None,
        headers: Mapping[str, str] | None = None,
        proxy: str | Literal[False] | None = None,
        telemetry: bool | None = None,
    ) -> None:
        config = resolve_config(
            base_url,
            api_key,
            project_id=project_id,
            tags=tags,
            headers=headers,
            proxy=proxy,
            ca_bundle=ca_bundle,
            telemetry=telemetry,
        )
        if ssl_context is not None and config.ca_bundle is not None:
            raise ConfigError("ssl_context and ca_bundle are given", hint="give one of the two")
        self._config: Config | None = config
        self._open_engine: Callable[[], Any] | None = None
        self._about = about_session(config, user_metadata, display_name)
        self._options = call_options(
            retry=retry,
            timeout=timeout,
            on_event=on_event,
            silence_limit_s=silence_limit_s,
            billing_pause_s=billing_pause_s,
        )
        self._events: Events = self._options["events"]
        self._check_inputs = given.flag(check_inputs, "check_inputs")
        self._max_samples = max_samples_in_flight
        if max_samples_in_flight is not None:
            given.whole(max_samples_in_flight, "max_samples_in_flight", least=1)
        self._grace_s = given.number(grace_s, "grace_s", least=0)
        check_transport(http2, ssl_context)
        # The seam for `tinker_async.testing`, which needs no socket.
        self._open_transport: Callable[[Config], AbstractAsyncContextManager[OpenTransport]]
        self._open_transport = partial(opened_transport, ssl_context=ssl_context, http2=http2)
        self._telemetry: Telemetry | None = None
        self._renewal: Renewal | None = None
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

        Raises:
            InvalidInputError: One of these is wrong.
        """
        from pathlib import Path  # noqa: PLC0415  # needed for engines alone

        from tinker_async.local.process import local_engine  # noqa: PLC0415  # extra `local`

        given.text(model, "model", hint="such as tiny-llama, or mine=/path/to/folder")
        if data_dir is not None:
            given.path(data_dir, "data_dir")
        if threads is not None:
            given.whole(threads, "threads", least=1)
        if dtype not in ("float32", "bfloat16"):
            raise given.wrong("dtype", f"must be float32 or bfloat16, got {given.shown(dtype)}")
        if progress is not None:
            given.function(progress, "progress", "progress(line)")
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
        if self._renewal is not None or self._ended is not None:
            raise SessionClosedError(
                "a session can be entered once", hint="make a new Session for each block"
            )
        left: BaseException | None = None
        async with AsyncExitStack() as stack:
            config, engine = self._config, None
            if self._open_engine is not None:
                engine = await stack.enter_async_context(self._open_engine())
                # This machine's environment has no say in how to speak to a process of our own.
                config = resolve_config(engine.url, engine.api_key, environ={})
            if config is None:
                raise ConfigError("the session has no server")
            opening = self._open_transport(config)
            transport = await stack.enter_async_context(opening)
            caller = await stack.enter_async_context(self._caller(transport, config))
            limits, dynamic = await ask_limits(caller), await ask_switches(caller)
            session_id = await open_session(caller, self._about)
            if config.telemetry:
                from tinker_async.background.telemetry import (  # noqa: PLC0415  # off
                    telemetry_of,
                )

                telling = telemetry_of(caller, session_id)
                self._telemetry = await stack.enter_async_context(telling)
            ending = Ending(caller, session_id)
            stack.push_async_callback(ending.tell)
            unobserved = Unobserved()
            with lone_errors():
                async with anyio.create_task_group() as tasks:
                    self._renewal = renewal = Renewal(
                        partial(
                            Parts,
                            base_url=config.base_url,
                            transport=transport,
                            caller=caller,
                            limits=limits,
                            is_open=self._any_parts,
                            check_inputs=self._check_inputs,
                            max_samples=self._max_samples,
                            heartbeat_s=_HEARTBEAT_S,
                            unobserved=unobserved,
                        ),
                        caller=caller,
                        about=self._about,
                        dynamic=dynamic,
                        ending=ending,
                        telemetry=self._telemetry,
                        engine=engine,
                        tasks=tasks,
                    )
                    if self._telemetry is not None:
                        tasks.start_soon(self._telemetry.run)
                    lasting = renewal.lasting(session_id, on_end=self._end, grace_s=self._grace_s)
                    async with lasting:
                        try:
                            yield self
                        except BaseException as error:
                            left = error
                            raise
            unobserved.raise_all()
        if left is not None:
            # asyncio cancelled our caller's task (Ctrl-C does) while scopes of ours were
            # ending, and one of them took the cancellation for its own.
            raise left

    def _caller(
        self, transport: OpenTransport, config: Config
    ) -> AbstractAsyncContextManager[Caller]:
        return open_caller(config, transport=transport, **self._options)

    def _end(self, reason: SessionClosedError) -> None:
        self._ended = reason
        self._events.end()

    @property
    def _parts(self) -> Parts | None:
        return None if self._renewal is None else self._renewal.parts

    def _any_parts(self) -> Parts:
        if self._ended is not None:
            raise SessionClosedError(
                "the session has ended", hint="do the work inside its `async with` block"
            )
        if (parts := self._parts) is None:
            raise SessionClosedError(
                "the session is not open", hint="use `async with Session(...) as session:`"
            )
        return parts

    def _open_parts(self) -> Parts:
        parts = self._any_parts()
        if parts.gone is not None:
            raise parts.gone
        return parts

    # What users call

    @property
    def session_id(self) -> str:
        """The server's id of this session."""
        return self._any_parts().session_id

    @property
    def rest(self) -> RestClient:
        """Reading and managing what is on the server."""
        from tinker_async.rest import RestClient  # noqa: PLC0415  # a training loop needs none

        return RestClient(self._any_parts().caller, self._telemetry)

    @property
    def server(self) -> Server:
        """The server, and what is known of its features at this moment."""
        caller = self._any_parts().caller
        return Server(caller.config.base_url, caller.features.view())

    @property
    def telemetry(self) -> Telemetry | None:
        """What tells the service how the session goes, to log events of your own; None if off."""
        self._any_parts()
        return self._telemetry

    def get_console_url(self) -> str:
        """Return this session's page in the Tinker service's web console."""
        return session_page(self.session_id)

    def statistics(self) -> SessionStatistics:
        """Return what is under way now."""
        return self._any_parts().statistics()

    def health(self) -> SessionHealth:
        """Return how the session is doing, at once; also after the server ended it."""
        parts = self._parts if self._parts is not None and self._parts.lost else None
        return (parts or self._any_parts()).health()

    def events(self) -> AbstractContextManager[EventStream]:
        """Open a stream of what happens from now on; it ends with the session.

        `with session.events() as stream: async for event in stream: ...`. Any number may be
        open. A stream that nobody reads drops its oldest events, and counts them.
        """
        return self._events.stream()

    def durable_training(
        self,
        run_dir: str | PathLike[str],
        *,
        base_model: str,
        rank: int = 32,
        seed: int | None = None,
        train_mlp: bool = True,
        train_attn: bool = True,
        train_unembed: bool = True,
        user_metadata: Mapping[str, str] | None = None,
        optimizer: OptimizerConfig | None = None,
        checkpoints: CheckpointPolicy | None = None,
        recovery: RecoveryPolicy | None = None,
        grace_s: float = 25.0,
        on_record: Callable[[Record], None] | None = None,
    ) -> AbstractAsyncContextManager[DurableTrainingClient]:
        """Train a LoRA model that survives its run, this session, and the program.

        `async with session.durable_training(run_dir, base_model=...) as trainer:` gives a client
        with the methods of `TrainingClient`, which saves by a policy. Where a run is lost, another
        one goes on from a checkpoint and repeats what came after it, and each future gives the
        result that it was made for. A program that is started again goes on at `trainer.step`.

        Args:
            run_dir: The run's folder, on this machine: its record is kept there. One program at a
                time; the same arguments at each start.
            base_model: As for `create_lora_training_client`, like the next six.
            rank: Of the adapter.
            seed: Of its initial weights; None draws one, which the record keeps.
            train_mlp: Whether MLP layers are trained.
            train_attn: Whether attention layers are trained.
            train_unembed: Whether the unembedding is trained.
            user_metadata: Kept with each training run.
            optimizer: For the life of the model; None is AdamW.
            checkpoints: When to save, and what to keep; default `CheckpointPolicy()`.
            recovery: Whether and how a lost run is brought back; default
                `RecoveryPolicy(enabled=True)`.
            grace_s: How long the last step and its save may take after an exception or a SIGTERM,
                in seconds. After a SIGTERM the block ends with `SystemExit(143)`.
            on_record: Called in a worker thread with each line of the record, once it is on the
                disk; must neither wait nor raise. `ports.follow` makes one of a lineage store.

        Raises:
            InvalidInputError: At once, when the arguments make no adapter.
            LedgerError: When entered, if another program trains in this folder, it belongs to
                another run, or cannot be written.
            RecoveryExhaustedError: From the block (and from the futures that wait), when a run
                was lost and nothing brought it back; when entered, if no checkpoint can be used.
        """
        from tinker_async.durable.checkpoint_policy import (  # noqa: PLC0415  # as below
            CheckpointPolicy,
        )
        from tinker_async.durable.recovery_policy import RecoveryPolicy  # noqa: PLC0415  # as below
        from tinker_async.durable.training import (  # noqa: PLC0415  # most programs need none
            arguments_of,
            durable_training,
        )

        renewal = self._renewal
        self._open_parts()
        if renewal is None:
            raise SessionClosedError("the session is not open")
        given.path(run_dir, "run_dir")
        check_base_model(base_model)
        given.texts(user_metadata, "user_metadata")
        if checkpoints is not None:
            hint = "CheckpointPolicy(save_every=100)"
            given.one_of(checkpoints, CheckpointPolicy, "checkpoints", hint)
        if recovery is not None:
            given.one_of(recovery, RecoveryPolicy, "recovery", "RecoveryPolicy(enabled=True)")
        if on_record is not None:
            given.function(on_record, "on_record", "ports.follow(store)")
        lora = {"train_mlp": train_mlp, "train_attn": train_attn, "train_unembed": train_unembed}
        arguments = arguments_of(
            run_dir,
            base_model=base_model,
            lora={"rank": rank, "seed": seed, **lora},
            metadata=user_metadata,
            optimizer=optimizer,
            checkpoints=checkpoints,
            recovery=recovery,
            grace_s=grace_s,
            on_record=on_record,
        )
        return durable_training(renewal, arguments)

    async def get_server_capabilities(
        self,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> GetServerCapabilitiesResponse:
        """Return the base models the server offers, with their context lengths."""
        return await self._any_parts().caller.ask(
            "get_server_capabilities",
            endpoints.CAPABILITIES,
            answer=GetServerCapabilitiesResponse,
            timeout=timeout,
            retry=retry,
        )

    def __repr__(self) -> str:
        if self._ended is not None:
            return "<Session: ended>"
        if self._parts is None:
            return "<Session: not entered>"
        return f"<Session {self._parts.session_id}: {len(self._parts.trainers.lanes)} training clients>"
