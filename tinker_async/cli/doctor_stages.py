"""What `tinker-async doctor` tries, in order, and what it found.

The rule: a stage is tried only when all before it are sound, so that what is named as broken
is not the consequence of something else.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

import anyio
import msgspec

import tinker_async as ta
from tinker_async.api import endpoints
from tinker_async.api.connecting import open_caller, opened_transport
from tinker_async.api.handshake import ask_limits
from tinker_async.cli.doctor_network import Network, Skipped
from tinker_async.cli.exits import exit_code
from tinker_async.config import SDK_VERSION, Config, resolve_config
from tinker_async.errors import (
    APIStatusError,
    AuthenticationError,
    BillingError,
    CredentialError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
    RequestTimeoutError,
    TinkerError,
    UnsupportedByServerError,
)

if TYPE_CHECKING:
    from tinker_async.api.calls import Caller, Endpoint
    from tinker_async.cli.connection import Connection
    from tinker_async.transport.opening import OpenTransport

STAGES = (
    *("settings", "dns", "tcp", "proxy", "tls", "http", "credential", "protocol", "models"),
    *("session", "sample"),
)
_HASTY = ta.RetryPolicy(max_attempts=2, base_s=0.2)
_PROMPT = (1, 2, 3)
_ABOUT_US = msgspec.json.encode({"sdk_version": SDK_VERSION})
_NEWER = {"client/config": endpoints.CLIENT_CONFIG, "dynamic_config": endpoints.DYNAMIC_CONFIG}
_NO_ENDPOINT = (404, 405, 501)
_OF_THE_CREDENTIAL = (AuthenticationError, PermissionDeniedError, BillingError, CredentialError)
_SHOWN = 5


class Stage(msgspec.Struct, frozen=True):
    """What became of one stage."""

    name: str
    state: Literal["ok", "failed", "skipped"]
    took_ms: float | None
    found: str
    """What there is, or what is wrong, or why it was skipped."""
    todo: str | None = None
    error: str | None = None
    """The error's class."""
    exit_code: int = 0


class Doctor:
    """One examination.

    Args:
        connection: Where to.
        model: What to sample from; default the first model that the server names.
        with_sample: Whether to open a session and sample.
        tell: Called with each stage as it ends.
        limit_s: How long a stage may take.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        model: str | None,
        with_sample: bool,
        tell: Callable[[Stage], None],
        limit_s: float,
    ) -> None:
        self.stages: list[Stage] = []
        self.features: dict[str, bool | None] = {}
        """What the server is known to have, and known not to have."""
        self._connection = connection
        self._model = model
        self._with_sample = with_sample
        self._tell = tell
        self._limit_s = limit_s
        self._config: Config | None = None

    @property
    def broken(self) -> Stage | None:
        """The stage that failed."""
        return next((one for one in self.stages if one.state == "failed"), None)

    async def examine(self) -> None:
        """Try all stages."""
        await self._stage("settings", self._settings)
        if self._config is not None:
            network = Network(self._config)
            for name in ("dns", "tcp", "proxy", "tls"):
                await self._stage(name, getattr(network, name))
            if self.broken is None:
                await self._above_tls(self._config)
        for name in STAGES[len(self.stages) :]:
            await self._stage(name, self._not_reached)

    async def _above_tls(self, config: Config) -> None:
        async with (
            opened_transport(config) as transport,
            open_caller(config, transport=transport, policy=_HASTY) as caller,
        ):
            talk = Talk(config, transport, caller)
            await self._stage("http", talk.http)
            await self._stage("credential", talk.credential)
            await self._stage("protocol", talk.protocol)
            await self._stage("models", talk.models)
        if self.broken is None and self._with_sample:
            await self._session(self._model or next(iter(talk.named), None))

    async def _session(self, model: str | None) -> None:
        """The last two stages, in one session."""
        started = anyio.current_time()
        try:
            with anyio.fail_after(self._limit_s) as scope:
                async with self._connection.session(retry=_HASTY) as session:
                    scope.deadline = math.inf
                    took_ms = round(1e3 * (anyio.current_time() - started), 1)
                    self._note(Stage("session", "ok", took_ms, session.session_id))
                    await self._stage("sample", partial(_sample, session, model))
                    self.features = _features_of(session)
        except (TinkerError, TimeoutError) as error:
            if self.stages[-1].name != "models":
                raise  # not on the way in
            self._note(self._failed("session", started, error))

    async def _stage(self, name: str, step: Callable[[], Awaitable[str]]) -> None:
        broken = self.broken
        if broken is not None:
            self._note(Stage(name, "skipped", None, f"{broken.name} comes first"))
            return
        started = anyio.current_time()
        try:
            with anyio.fail_after(self._limit_s):
                found = await step()
        except Skipped as reason:
            self._note(Stage(name, "skipped", None, str(reason)))
        except (TinkerError, TimeoutError) as error:
            self._note(self._failed(name, started, error))
        else:
            took_ms = round(1e3 * (anyio.current_time() - started), 1)
            self._note(Stage(name, "ok", took_ms, found))

    def _failed(self, name: str, started: float, error: Exception) -> Stage:
        took_ms = round(1e3 * (anyio.current_time() - started), 1)
        if not isinstance(error, TinkerError):
            error = RequestTimeoutError(f"nothing within {self._limit_s:g} s")
        kind = type(error).__name__
        return Stage(name, "failed", took_ms, error.message, error.hint, kind, exit_code(error))

    def _note(self, stage: Stage) -> None:
        self.stages.append(stage)
        self._tell(stage)

    async def _settings(self) -> str:
        connection = self._connection
        try:
            config = resolve_config(connection.base_url, ca_bundle=connection.ca_bundle)
        except ta.ConfigError as error:
            if "no API key" in error.message:
                hint = "run tinker-async auth login, or set TINKER_API_KEY"
                raise CredentialError("there is no credential", hint=hint) from error
            raise
        self._config = config
        return f"{config.base_url}, credential from {_SOURCES[config.credential.source]}"

    async def _not_reached(self) -> str:
        raise Skipped("not asked for")


_SOURCES = {
    "argument": "an argument",
    "environment": "TINKER_API_KEY",
    "command": "TINKER_CREDENTIAL_CMD",
    "stored": "the stored credentials",
}


class Talk:
    """The stages that speak HTTP with the server, without a session."""

    def __init__(self, config: Config, transport: OpenTransport, caller: Caller) -> None:
        self.named: list[str] = []
        """The models that the server names."""
        self._config = config
        self._transport = transport
        self._caller = caller
        self._rest = ta.RestClient(caller)
        self._trouble: TinkerError | None = None
        """What the first request with the credential ended in, if not for the credential."""

    async def http(self) -> str:
        """Ask for the server's health: any answer will do, but for the server's own failures."""
        status = await self._status_of(endpoints.healthz())
        spoken = {"h2": "HTTP/2", "http/1.1": "HTTP/1.1"}.get(
            self._transport.statistics().protocol, "HTTP"
        )
        return f"{spoken}, healthz answers {status}"

    async def _status_of(self, endpoint: Endpoint, body: tuple[bytes, ...] = ()) -> int:
        try:
            return (await self._caller.call(endpoint, body)).status
        except InternalServerError:
            raise
        except (APIStatusError, UnsupportedByServerError) as error:
            return getattr(error, "status", 404)

    async def credential(self) -> str:
        """Be let in, by the way that the server's config asks for."""
        try:
            await ask_limits(self._caller)
            await self._rest.get_server_capabilities()
        except _OF_THE_CREDENTIAL:
            raise
        except TinkerError as error:
            self._trouble = error  # of another kind: of the next stage
            raise Skipped("the server says something else first") from error
        try:
            who = await self._rest.whoami()
        except (NotFoundError, UnsupportedByServerError):
            return "accepted; the server does not say whose it is"
        names = [who.email, who.user_urn, who.api_key.name if who.api_key else None]
        return f"accepted: {next(filter(None, names), 'no name')}"

    async def protocol(self) -> str:
        """See how old the server is: what newer clients ask for first."""
        if isinstance(self._trouble, NotFoundError):
            hint = "is this a Tinker server? Look at the path of base_url"
            raise ProtocolError(self._trouble.message, hint=hint) from self._trouble
        if self._trouble is not None:
            raise self._trouble
        lacking = [
            name
            for name, endpoint in _NEWER.items()
            if await self._status_of(endpoint, (_ABOUT_US,)) in _NO_ENDPOINT
        ]
        ours = f"tinker-async {ta.__version__} speaks {SDK_VERSION}"
        if lacking:
            return f"{ours}; an older server, without {' and '.join(lacking)}: defaults are used"
        return f"{ours}; the server has its configuration"

    async def models(self) -> str:
        """List what can be trained and sampled."""
        found = (await self._rest.get_server_capabilities()).supported_models
        self.named = [model.model_name for model in found if model.model_name]
        more = len(self.named) - _SHOWN
        text = ", ".join(self.named[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
        return text or "the server names none"


async def _sample(session: ta.Session, model: str | None) -> str:
    """Draw one token."""
    if model is None:
        raise ta.ConfigError(
            "the server names no model to sample from", hint="name one: --base-model"
        )
    sampler = await session.create_sampling_client(base_model=model, retry=_HASTY)
    response = await sampler.sample(
        ta.ModelInput.from_ints(_PROMPT), ta.SamplingParams(max_tokens=1), retry=_HASTY
    )
    drawn = len(response.sequences[0].tokens) if response.sequences else 0
    return f"{drawn} token{'' if drawn == 1 else 's'} from {model}"


def _features_of(session: ta.Session) -> dict[str, bool | None]:
    known = session.server.features.known
    return {feature.value: support.supported for feature, support in known.items()}
