"""Keeping a session alive: a beat at an interval, and the end when the server says so."""

from __future__ import annotations

import anyio

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller
from tinker_async.errors import AuthenticationError, GoneError, SessionLostError, TinkerError
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

    async def run(self) -> None:
        """Beat until cancelled.

        Raises:
            SessionLostError: The server ended the session, or refuses the credential.
        """
        while True:
            await anyio.sleep(self.period_s)
            await self._beat()

    async def _beat(self) -> None:
        try:
            await self._caller.once(endpoints.HEARTBEAT, (self._body,))
        except GoneError as error:
            raise SessionLostError(
                f"the server ended session {self._session_id}: {error.detail or 'no reason given'}",
                hint="open a new session and continue from a checkpoint",
            ) from error
        except AuthenticationError as error:
            raise SessionLostError(
                "the server no longer accepts the credential", hint="check the API key"
            ) from error
        except TinkerError as error:
            silent_s = anyio.current_time() - self.last_beat
            level = log.warning if silent_s > WARN_AFTER_S else log.info
            level("heartbeat_missed", silent_s=round(silent_s), error=type(error).__name__)
            self._caller.events.emit(HeartbeatMissed(silent_s, type(error).__name__))
        else:
            self.last_beat = anyio.current_time()
