"""What is sent as `X-API-Key`: a key as it is, or a token that is kept fresh.

The rule: a key that never changes costs a request nothing. Of all who need a new token at
the same time one asks for it, in a task of the connection's own: none who gives up takes it
from the others.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import anyio

from tinker_async.credentials.secret import Secret
from tinker_async.credentials.tokens import (
    claims_of,
    expiry_of,
    is_token,
    left_of,
    lifetime_of,
    usable_of,
)
from tinker_async.errors import (
    AuthenticationError,
    CredentialError,
    SessionClosedError,
    TinkerError,
)
from tinker_async.logs import log
from tinker_async.transport import Response
from tinker_async.transport.tasks import LastingTasks

_RETRY_S = 60.0
"""Between a refresh that failed and the next, while the old token is good."""
_PATIENCE_S = 5.0
"""As above, of the refreshes that requests ask for."""
_KEPT = 4
"""Tokens that are taken out of texts: a late answer may repeat an old one."""

Fetch = Callable[[bool], Awaitable[Secret]]
"""Gets a new token. Its argument: whether work waits for it, so that patience is right."""


class Source(Protocol):
    """Where the value of `X-API-Key` comes from."""

    async def current(self) -> Secret:
        """Return what a new request is to carry."""
        ...

    async def instead_of(self, rejected: bytes) -> Secret | None:
        """Return another than the one that the server has rejected; None if there is none."""
        ...


class FixedToken:
    """A JWT that somebody else has made: good until it expires."""

    def __init__(self, token: Secret) -> None:
        self._token = token
        self._ends = expiry_of(token.reveal())

    async def current(self) -> Secret:
        """Return it.

        Raises:
            CredentialError: It has expired.
        """
        if self._ends is not None and time.time() >= self._ends:
            raise unsent(CredentialError("the token given as API key has expired"))
        return self._token

    async def instead_of(self, rejected: bytes) -> None:
        """There is no other."""


class FreshToken:
    """A token that is fetched when it is needed, and again before it expires.

    Args:
        fetch: Gets one.
        tasks: Where fetching and refreshing go on.
    """

    def __init__(self, fetch: Fetch, tasks: LastingTasks) -> None:
        self._fetch = fetch
        self._tasks = tasks
        self._token: Secret | None = None
        self._usable_until = self._good_until = 0.0
        self._refresh_at = 0.0
        self._fetching: _Fetching | None = None
        self._refreshing = False

    async def current(self) -> Secret:
        """Return a token that is good for a while.

        Raises:
            AuthenticationError: The server refuses the credential itself.
            TinkerError: There is no good token, and none to be had.
        """
        if self._token is not None and anyio.current_time() < self._usable_until:
            return self._token
        return await self._fetched()

    async def instead_of(self, rejected: bytes) -> Secret | None:
        """Return a token other than `rejected`, which is fetched unless somebody already has.

        Raises:
            TinkerError: None is to be had.
        """
        if self._token is not None and self._token.reveal().encode() == rejected:
            self._token = None
        return await self.current()

    async def _fetched(self) -> Secret:
        fetching = self._start()
        await fetching.done.wait()
        if fetching.error is None and self._token is not None:
            return self._token
        error = fetching.error
        if error is None or isinstance(error, AuthenticationError) or not self._good:
            raise unsent(copy.copy(error) if error is not None else _ended())
        assert self._token is not None  # noqa: S101  # what `_good` says
        return self._token

    @property
    def _good(self) -> bool:
        return self._token is not None and anyio.current_time() < self._good_until

    def _start(self) -> _Fetching:
        """Fetch a token for everybody, unless that is under way."""
        fetching = self._fetching
        if fetching is None:
            fetching = self._fetching = _Fetching()
            self._tasks.start_soon(self._run, fetching)
        return fetching

    async def _run(self, fetching: _Fetching) -> None:
        try:
            self._accept(await self._fetch(not self._good))
        except TinkerError as error:
            fetching.error = error
            self._note_failure(error)
        finally:
            self._fetching = None
            fetching.done.set()

    def _accept(self, token: Secret) -> None:
        now, text = anyio.current_time(), token.reveal()
        if is_token(text):
            left_s = left_of(text, now=time.time())
            self._good_until, self._usable_until = now + left_s, now + usable_of(left_s)
            lifetime_s = lifetime_of(text)
            # Not a moment that many programs share, since many are started together.
            share = random.uniform(0.45, 0.55)  # noqa: S311  # no secret
            self._refresh_at = now + (lifetime_s * share if lifetime_s is not None else _RETRY_S)
        else:
            self._good_until = self._usable_until = self._refresh_at = float("inf")
        self._token = token
        if not self._refreshing and self._refresh_at < float("inf"):
            self._refreshing = True
            self._tasks.start_soon(self._refresh)

    def _note_failure(self, error: TinkerError) -> None:
        now = anyio.current_time()
        self._refresh_at = now + _RETRY_S
        if self._good:
            patient_until = min(self._good_until, now + _PATIENCE_S)
            self._usable_until = max(self._usable_until, patient_until)
        log.info("token_not_refreshed", error=type(error).__name__, good=self._good)

    async def _refresh(self) -> None:
        """Fetch the next token before it is needed. Ends when there is none left to renew."""
        while (wait_s := self._refresh_at - anyio.current_time()) > 0 or self._good:
            if wait_s > 0:
                await anyio.sleep(wait_s)
            else:
                await self._start().done.wait()
        self._refreshing = False


class _Fetching:
    """A token on its way, for which everybody who needs one waits."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.error: TinkerError | None = None


class Authentication:
    """The credential of one connection, as its requests carry it.

    Args:
        key: A key or token that is there from the start.
        source: Where it comes from if it may change.
        exchanges: Makes the source of tokens for servers that want the credential exchanged; its
            argument is whether they want the command's.
    """

    def __init__(
        self,
        key: Secret | None,
        source: Source | None = None,
        exchanges: Callable[[bool], Source] | None = None,
    ) -> None:
        self._exchanges = exchanges
        self._unexchanged = source
        self.source = source
        """None: what was given is sent as it is, always."""
        self.secrets: tuple[bytes, ...] = ()
        """What no text may repeat, the newest first."""
        self.value = b""
        """What was sent last."""
        self.raw = key
        """The key or token that was given; None when a command prints it."""
        if key is not None:
            self.note(key)

    def exchange(self, *, by_command: bool) -> None:
        """Exchange the credential for tokens from now on.

        Args:
            by_command: Whether the server wants what the credential command prints.

        Raises:
            CredentialError: It does, and there is no command.
        """
        if self._exchanges is not None:
            self.source = self._exchanges(by_command)

    def note(self, secret: Secret) -> bytes:
        """Note what is sent from now on, and return it."""
        self.value = value = secret.reveal().encode()
        if value not in self.secrets:
            given = () if self.raw is None else (self.raw.reveal().encode(),)
            newest = (value, *(one for one in self.secrets if one not in given))[:_KEPT]
            self.secrets = tuple(dict.fromkeys((*newest, *given)))
        return value

    async def refresh(self) -> None:
        """Make `value` what a new request is to carry."""
        if self.source is not None:
            secret = await self.source.current()
            if secret.reveal().encode() != self.value:
                self.note(secret)

    async def replaced(self, response: Response, sent: bytes) -> bool:
        """Whether another value is there than the `sent` one, which this answer rejects.

        Raises:
            TinkerError: There is no other to be had.
        """
        if self.source is None or not rejects_token(response):
            return False
        secret = await self.source.instead_of(sent)
        return secret is not None and self.note(secret) != sent

    async def given(self) -> Secret:
        """Return the credential as it was given, never the token that a server has made of it.

        Raises:
            CredentialError: It has expired, or the command that prints it failed.
        """
        if self._unexchanged is not None:
            return await self._unexchanged.current()
        if self.raw is None:
            raise CredentialError("there is no credential")
        return self.raw

    async def claims(self) -> dict[str, object] | None:
        """Return what the token says of its owner; None if a plain key is sent.

        Raises:
            TinkerError: There is no token to be had.
        """
        await self.refresh()
        text = self.value.decode()
        return claims_of(text) if is_token(text) else None


def rejects_token(response: Response) -> bool:
    """Whether the server rejects the token itself, such as one that was revoked (RFC 6750)."""
    if response.status != 401:
        return False
    return b'error="invalid_token"' in (response.header(b"www-authenticate") or b"")


def unsent(error: TinkerError) -> TinkerError:
    """Mark an error that came before the request: repeating that would repeat more than it."""
    error.unsent = True
    error.should_retry = False
    return error


def _ended() -> SessionClosedError:
    return SessionClosedError("the session ended while a token was fetched")
