"""`RestClient`, put together from its parts, and opened with or without a session."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from os import PathLike
from typing import TYPE_CHECKING, Literal

from tinker_async.api.connecting import (
    call_options,
    check_transport,
    open_caller,
    opened_transport,
)
from tinker_async.api.handshake import ask_limits
from tinker_async.api.retry import RetryPolicy
from tinker_async.config import resolve_config
from tinker_async.events import EventHook
from tinker_async.rest.account import AccountCalls
from tinker_async.rest.checkpoints import CheckpointCalls
from tinker_async.rest.downloads import DownloadCalls
from tinker_async.rest.runs import RunCalls
from tinker_async.rest.sessions import SessionCalls

if TYPE_CHECKING:
    import ssl

    from tinker_async.api.calls import Caller
    from tinker_async.background.telemetry import Telemetry


class RestClient(RunCalls, CheckpointCalls, DownloadCalls, SessionCalls, AccountCalls):
    """Reading and managing what is on the server: `Session.rest`, or `connect` without a session.

    All methods take `timeout` (seconds; an iterator's is for each page; default the session's)
    and `retry` (a policy of its own). Arguments are checked before anything is sent
    (`InvalidInputError`). Beside each iterator `..._page` gives a page as the server does.
    """

    def __init__(self, caller: Caller, telemetry: Telemetry | None = None) -> None:
        super().__init__(caller)
        self._telemetry = telemetry

    @classmethod
    def connect(
        cls,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        project_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        proxy: str | Literal[False] | None = None,
        ca_bundle: str | PathLike[str] | None = None,
        telemetry: bool | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        on_event: EventHook | None = None,
        silence_limit_s: float | None = 300.0,
        billing_pause_s: float = 0.0,
        http2: bool | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> AbstractAsyncContextManager[RestClient]:
        """Connect without a session: nothing shows up on the server, no heartbeat is sent.

        `async with RestClient.connect() as rest:` asks once for the server's limits, which say
        whether the key is to be exchanged for a token.

        Args:
            base_url: As for `Session`, like all that follow.
            api_key: The credential.
            project_id: Where `copy_weights` copies to.
            headers: Of every request, besides our own.
            proxy: The proxy's URL; False for none.
            ca_bundle: File or folder of certificate authorities.
            telemetry: Whether the service is told of what goes wrong.
            retry: When to repeat failed requests.
            timeout: Seconds that a call may take that says nothing of its own.
            on_event: Called with each event.
            silence_limit_s: How long the server may answer nothing at all, in seconds.
            billing_pause_s: How long requests that are answered 402 are repeated, in seconds.
            http2: Speak HTTP/2, HTTP/1.1 (False), or let TLS negotiate (None).
            ssl_context: For https with a private certificate authority.

        Raises:
            ConfigError, InvalidInputError: At once, if a setting is missing or malformed.
            ConnectError, AuthenticationError, ...: When entered.
        """
        config = resolve_config(
            base_url,
            api_key,
            project_id=project_id,
            headers=headers,
            proxy=proxy,
            ca_bundle=ca_bundle,
            telemetry=telemetry,
        )
        options = call_options(
            retry=retry,
            timeout=timeout,
            on_event=on_event,
            silence_limit_s=silence_limit_s,
            billing_pause_s=billing_pause_s,
        )
        check_transport(http2, ssl_context)

        @asynccontextmanager
        async def connected() -> AsyncIterator[RestClient]:
            async with (
                opened_transport(config, ssl_context=ssl_context, http2=http2) as transport,
                open_caller(config, transport=transport, **options) as caller,
            ):
                await ask_limits(caller)
                async with _telling(caller) if config.telemetry else nullcontext() as told:
                    yield cls(caller, told)

        return connected()

    @property
    def telemetry(self) -> Telemetry | None:
        """What tells the service how things go, to log events of your own; None if off."""
        return self._telemetry

    def __repr__(self) -> str:
        return f"<RestClient of {self._caller.config.base_url}>"


def _telling(caller: Caller) -> AbstractAsyncContextManager[Telemetry]:
    from tinker_async.background.telemetry import (  # noqa: PLC0415  # it is off by default
        telemetry_without_session,
    )

    return telemetry_without_session(caller)
