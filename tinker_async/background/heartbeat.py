"""Keeping a session alive: a beat at an interval, and the end when the server says so."""

from __future__ import annotations

import anyio

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller
from tinker_async.api.features import says_no_endpoint
from tinker_async.errors import (
    AuthenticationError,
    GoneError,
    NotFoundError,
    ProtocolError,
    SessionLostError,
    TinkerError,
)
from tinker_async.events import HeartbeatMissed
from tinker_async.logs import log
from tinker_async.wire import json as wire_json
from tinker_async.wire.messages import SessionHeartbeatRequest

WARN_AFTER_S = 120.0
"""Silence after which each missed beat is a warning: the server may give the session up."""


class Heartbeat:
    """The heartbeat of one session. A missed beat is tolerated, the server's "over" is not."""

    def __init__(self, caller: Caller, session_id: str, *, period_s: float) -> None:
        self._caller = caller
        self._session_id = session_id
        self._body = wire_json.encode(SessionHeartbeatRequest(session_id=session_id))
        self.last_beat = anyio.current_time()
        """`anyio.current_time()` of the last beat that was answered."""
        self.period_s = period_s
        self.strict = False
        """Whether a server that does not know the session (404) counts as one that ended it."""
        self._heard = False

    async def run(self) -> None:
        """Beat until cancelled.

        Raises:
            SessionLostError: The server ended the session, or refuses the credential.
        """
        while True:
            await anyio.sleep(self.period_s)
            await self._beat()

    async def ask(self) -> None:
        """Beat once, now.

        Raises:
            SessionLostError: As `run`.
            TinkerError: The server did not say whether the session lives.
        """
        try:
            await self._send()
        except (GoneError, NotFoundError) as error:
            if isinstance(error, NotFoundError) and not self._is_unknown(error):
                raise
            raise SessionLostError(
                f"the server ended session {self._session_id}: {error.detail or 'no reason given'}",
                hint="open a new session and continue from a checkpoint",
            ) from error
        except AuthenticationError as error:
            raise SessionLostError(
                "the server no longer accepts the credential", hint="check the API key"
            ) from error
        self._heard = True
        self.last_beat = anyio.current_time()

    async def _send(self) -> None:
        """Send a beat; again if it met a connection that the server was closing as idle."""
        try:
            await self._caller.once(endpoints.HEARTBEAT, (self._body,))
        except ProtocolError as error:
            if not error.kept:
                raise
            await self._caller.once(endpoints.HEARTBEAT, (self._body,))

    def _is_unknown(self, error: NotFoundError) -> bool:
        """Whether a 404 is about the session: not about an endpoint that the server lacks."""
        return self.strict and (self._heard or not says_no_endpoint(error))

    async def _beat(self) -> None:
        try:
            await self.ask()
        except SessionLostError:
            raise
        except TinkerError as error:
            silent_s = anyio.current_time() - self.last_beat
            level = log.warning if silent_s > WARN_AFTER_S else log.info
            level("heartbeat_missed", silent_s=round(silent_s), error=type(error).__name__)
            self._caller.events.emit(HeartbeatMissed(silent_s, type(error).__name__))
