"""One connection to a server as one account: `open_caller`, for sessions and for single calls.

The rule: the exchange of the credential lives in tasks of this block, and outlives whatever
the block was doing when it was cancelled.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec import structs

from tinker_async.api.authentication import Authentication, FixedToken, FreshToken, Source
from tinker_async.api.calls import Caller, Endpoint
from tinker_async.api.progress import check_timeout
from tinker_async.api.retry import RetryPolicy, check_policy
from tinker_async.config import Config
from tinker_async.credentials.secret import Secret
from tinker_async.credentials.tokens import is_token
from tinker_async.data import given
from tinker_async.errors import APIStatusError, CredentialError, ResponseError
from tinker_async.events import EventHook, Events
from tinker_async.transport import Transport
from tinker_async.transport.opening import OpenTransport, open_transport
from tinker_async.transport.tasks import LastingTasks, lasting_tasks
from tinker_async.wire.messages import AuthTokenResponse

if TYPE_CHECKING:
    import ssl

AUTH_TOKEN = Endpoint("/api/v1/auth/token")
_PLAIN = (401, 402, 403)
"""Statuses that mean the credential, whatever was asked."""
_HASTY = 3
"""Attempts of an exchange for which no work waits."""


@asynccontextmanager
async def open_caller(
    config: Config,
    *,
    policy: RetryPolicy | None = None,
    events: Events | None = None,
    timeout_s: float | None = None,
    silence_limit_s: float | None = 300.0,
    billing_pause_s: float = 0.0,
    transport: Transport | None = None,
) -> AsyncIterator[Caller]:
    """Open a transport and whatever keeps the credential good, for the length of a block.

    Nothing is sent before the first call. Whoever asks for the server's limits first
    (`handshake.ask_limits`) lets the caller know whether the key is to be exchanged for a token.

    Args:
        config: Where to, as whom, and by which proxy.
        policy: When to repeat; default the usual.
        events: Whom to tell; default nobody.
        timeout_s: The limit of calls that give none.
        silence_limit_s: How long the server may answer nothing at all.
        billing_pause_s: How long requests that are answered 402 are repeated.
        transport: Used instead of one that is opened for `config`; it is its owner's to close.

    Raises:
        ConfigError: A setting is wrong.
    """
    policy = policy or RetryPolicy()
    opening = nullcontext(transport) if transport is not None else opened_transport(config)
    async with opening as carrier, lasting_tasks() as tasks:
        key, command = config.credential.key, config.credential.command
        yield Caller(
            carrier,
            config,
            policy,
            events=events,
            timeout_s=timeout_s,
            silence_limit_s=silence_limit_s,
            billing_pause_s=billing_pause_s,
            authentication=Authentication(
                key,
                _raw_source(key, command, tasks),
                partial(_exchanging, carrier, config, policy, tasks),
            ),
        )


def call_options(
    *,
    retry: RetryPolicy | None,
    timeout: float | None,
    on_event: EventHook | None,
    silence_limit_s: float | None,
    billing_pause_s: float,
) -> dict[str, Any]:
    """Return what users say of all calls of a connection, checked, as `open_caller` takes it.

    Raises:
        InvalidInputError: One is wrong; `field` is which.
    """
    check_policy(retry)
    if on_event is not None:
        given.function(on_event, "on_event", "on_event(event)")
    return {
        "policy": retry,
        "events": Events(on_event),
        "timeout_s": check_timeout(timeout),
        "silence_limit_s": check_timeout(silence_limit_s, field="silence_limit_s"),
        "billing_pause_s": given.number(billing_pause_s, "billing_pause_s", least=0),
    }


def check_transport(http2: object, ssl_context: object) -> None:
    """Check what users say of the transport itself.

    Raises:
        InvalidInputError: One is wrong; `field` is which.
    """
    if http2 is not None:
        given.flag(http2, "http2")
    if ssl_context is not None:
        import ssl  # noqa: PLC0415  # whoever has a context has loaded it

        given.one_of(ssl_context, ssl.SSLContext, "ssl_context", "ssl.create_default_context()")


def opened_transport(
    config: Config, *, ssl_context: ssl.SSLContext | None = None, http2: bool | None = None
) -> AbstractAsyncContextManager[OpenTransport]:
    """Open the transport that a config describes; see `open_transport`."""
    return open_transport(
        config.base_url,
        ssl_context=ssl_context,
        ca_bundle=config.ca_bundle,
        proxy=config.proxy,
        http2=http2,
    )


def _raw_source(key: Secret | None, command: Secret | None, tasks: LastingTasks) -> Source | None:
    """What is sent where nothing is exchanged."""
    if key is not None:
        return FixedToken(key) if is_token(key.reveal()) else None
    if command is None:
        return None
    return FreshToken(partial(_printed, command), tasks)


async def _printed(command: Secret, _work_waits: bool) -> Secret:
    from tinker_async.credentials.command import (  # noqa: PLC0415  # few have a command
        credential_from_command,
    )

    return await credential_from_command(command)


def _exchanging(
    transport: Transport, config: Config, policy: RetryPolicy, tasks: LastingTasks, by_command: bool
) -> Source:
    """The source of tokens that the server makes of the credential."""
    key, command = config.credential.key, config.credential.command
    if by_command and not (key is not None and is_token(key.reveal())):
        if command is None:
            raise CredentialError(
                "this server takes no API keys, but credentials that a command prints",
                hint="set TINKER_CREDENTIAL_CMD to the command that your organization has for it",
            )
        key = None
    hasty = structs.replace(policy, max_attempts=min(policy.max_attempts, _HASTY))

    async def fetch(work_waits: bool) -> Secret:
        raw = await _raw(key, command)
        caller = Caller(
            transport, config, policy if work_waits else hasty, authentication=Authentication(raw)
        )
        try:
            answer = await caller.call_json(AUTH_TOKEN, {}, answer=AuthTokenResponse)
        except APIStatusError as error:
            if error.status in _PLAIN or error.status >= 500:
                raise
            # Who called for something else must not take a 404 or 409 of this for its own.
            raise CredentialError(
                f"the credential was not exchanged for a token: {error.message}",
                hint="does base_url name the server that the credential is for?",
            ) from error
        if not answer.jwt or not (answer.jwt.isascii() and answer.jwt.isprintable()):
            raise ResponseError(
                f"{AUTH_TOKEN.path} answered with what is no token", endpoint=AUTH_TOKEN.path
            )
        return Secret(answer.jwt)

    return FreshToken(fetch, tasks)


async def _raw(key: Secret | None, command: Secret | None) -> Secret:
    """What is exchanged: the key, or what the command prints now."""
    if key is not None:
        return await FixedToken(key).current() if is_token(key.reveal()) else key
    if command is None:
        raise CredentialError("there is no credential to exchange")
    return await _printed(command, True)
