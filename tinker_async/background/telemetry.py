"""Telemetry: telling the service how a session goes, in the official client's form, if asked to.

The rule: it is never in the way. Nothing waits for it but the end of the session, and that
for seconds; what does not fit or cannot be sent is counted and forgotten.
"""

from __future__ import annotations

import os
import platform
import re
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import anyio
import msgspec

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller
from tinker_async.api.retry import RetryPolicy
from tinker_async.config import SDK_VERSION
from tinker_async.errors import APIStatusError, RequestFailedError, TinkerError
from tinker_async.logs import log
from tinker_async.transport.tasks import lasting_tasks
from tinker_async.wire import json as wire_json
from tinker_async.wire.messages import TelemetrySendRequest

PERIOD_S = 10.0
BATCH = 100
MOST_EVENTS = 10_000
MOST_BYTES = 8 << 20
DRAIN_S = 5.0
"""How long the end of a session may be held up."""
_LONGEST_MESSAGE = 2000
_LONGEST_TRACEBACK = 16_000
_LONGEST_DATA_BYTES = 64 << 10
_POLICY = RetryPolicy(max_attempts=3, base_s=0.5, max_s=2.0, window_s=15.0)
_SECRETS = re.compile(
    r"tml-[\w-]{4,}|eyJ[\w-]+(?:\.[\w-]*){1,2}|\bhf_\w{8,}|\bsk-[\w-]{8,}"
    r"|(?<=://)[^/\s@'\"]+(?=@)|(?i:(?<=bearer ))\S+"
)
"""What looks like a key, a token, or the password of a URL."""


class Telemetry:
    """The telemetry of one session, or of a connection without one.

    Args:
        caller: Sends it.
        session_id: The session that it is about; None is none, and neither start nor end is told.
    """

    def __init__(self, caller: Caller, session_id: str | None) -> None:
        self._caller = caller
        self._has_session = session_id is not None
        self.session_id = session_id or f"sessionless-{_new_id()}"
        """The session that it is about from now on."""
        self._begun = datetime.now(UTC)
        self._events: deque[bytes] = deque()
        self._bytes = 0
        self._numbers = 0
        self._wake = anyio.Event()
        self.sent = 0
        """Events that the server has taken."""
        self.dropped = 0
        """Events that did not fit, or that could not be sent."""
        if self._has_session:
            self._put("SESSION_START", "INFO", self._begun)

    def __repr__(self) -> str:
        waiting = len(self._events)
        return f"<Telemetry: {self.sent} sent, {waiting} waiting, {self.dropped} dropped>"

    # What is told

    def log(
        self,
        event_name: str,
        event_data: Mapping[str, Any] | None = None,
        severity: str = "INFO",
    ) -> bool:
        """Tell of something of the program's own. Returns at once.

        Args:
            event_name: One of a few names.
            event_data: Anything JSON. Keys, tokens and passwords in it are taken out.
            severity: `DEBUG`, `INFO`, `WARNING`, `ERROR` or `CRITICAL`.

        Returns:
            Whether there was room for it.
        """
        return self._put(
            "GENERIC_EVENT", severity, event_name=event_name, event_data=dict(event_data or {})
        )

    def log_exception(self, error: BaseException, severity: str = "ERROR") -> bool:
        """Tell of an exception, with its traceback but without its variables. Returns at once.

        What the server blames on the caller (a 4xx but 408, a failed operation of category
        `user`) is told as the event `user_error`, without a traceback.

        Returns:
            Whether there was room for it.
        """
        self._wake.set()
        blamed = _user_error(error)
        if blamed is not None:
            data: dict[str, Any] = {"error_type": type(error).__name__}
            data["message"] = str(error)[:_LONGEST_MESSAGE]
            if isinstance(blamed, APIStatusError):
                data["status_code"], data["body"] = blamed.status, blamed.detail
            return self.log("user_error", data, "WARNING")
        return self._put(
            "UNHANDLED_EXCEPTION",
            severity,
            error_type=type(error).__name__,
            error_message=str(error)[:_LONGEST_MESSAGE],
            traceback=_traceback_of(error),
        )

    def end(self) -> None:
        """Tell that the session ends, if there is one."""
        if not self._has_session:
            return
        now = datetime.now(UTC)
        self._put("SESSION_END", "INFO", now, duration=str(now - self._begun))

    def _put(
        self, event: str, severity: str, timestamp: datetime | None = None, **fields: Any
    ) -> bool:
        content = {
            "event": event,
            "event_id": _new_id(),
            "event_session_index": self._numbers,
            "severity": severity,
            "timestamp": timestamp or datetime.now(UTC),
            **fields,
        }
        self._numbers += 1
        try:
            text = msgspec.json.encode(content, enc_hook=repr).decode()
        except (TypeError, ValueError, RecursionError):
            text = ""
        encoded = self._redacted(text).encode()
        limit = _LONGEST_DATA_BYTES if "event_data" in fields else MOST_BYTES
        full = len(self._events) >= MOST_EVENTS or self._bytes + len(encoded) > MOST_BYTES
        if full or not 0 < len(encoded) <= limit:
            self.dropped += 1
            return False
        self._events.append(encoded)
        self._bytes += len(encoded)
        if len(self._events) >= BATCH:
            self._wake.set()
        return True

    def _redacted(self, text: str) -> str:
        return _SECRETS.sub("[secret]", self._caller.redacted(text))

    # Sending

    async def run(self) -> None:
        """Send a batch now and then, until cancelled."""
        while True:
            with anyio.move_on_after(PERIOD_S):
                await self._wake.wait()
            self._wake = anyio.Event()
            await self.flush()

    async def flush(self) -> None:
        """Send all that waits. A batch that cannot be sent is dropped, and ends it.

        Cancelled, it forgets nothing.
        """
        while self._events:
            batch = [self._events.popleft() for _ in range(min(BATCH, len(self._events)))]
            taken = None
            try:
                taken = await self._taken(batch)
            finally:
                if taken is None:
                    self._events.extendleft(reversed(batch))
                else:
                    self._bytes -= sum(map(len, batch))
            if not taken:
                self.dropped += len(batch)
                return
            self.sent += len(batch)

    async def _taken(self, batch: list[bytes]) -> bool:
        """Send a batch, and say whether the server has it."""
        body = wire_json.encode(
            TelemetrySendRequest(
                events=[msgspec.Raw(event) for event in batch],
                platform=platform.system(),
                sdk_version=SDK_VERSION,
                session_id=self.session_id,
                process_uuid=_process_id(),
            )
        )
        failing_since = anyio.current_time()
        for attempt in range(1, _POLICY.max_attempts + 1):
            try:
                await self._caller.once(endpoints.TELEMETRY, (body,))
            except TinkerError as error:
                failing_for_s = anyio.current_time() - failing_since
                pause_s = _POLICY.next_delay(error, attempt=attempt, failing_for_s=failing_for_s)
                if pause_s is None:
                    log.info("telemetry_dropped", events=len(batch), error=type(error).__name__)
                    return False
                await anyio.sleep(pause_s)
            else:
                return True
        return False


@asynccontextmanager
async def telemetry_of(caller: Caller, session_id: str | None) -> AsyncGenerator[Telemetry]:
    """Give the telemetry of a session for the length of a block, and tell how the block ends.

    What then still waits is sent, for at most `DRAIN_S` seconds.
    """
    telemetry = Telemetry(caller, session_id)
    try:
        yield telemetry
    except Exception as error:
        telemetry.log_exception(error)
        raise
    finally:
        telemetry.end()
        with anyio.move_on_after(DRAIN_S, shield=True):
            await telemetry.flush()
        if telemetry._events or telemetry.dropped:  # noqa: SLF001  # its other half
            log.info("telemetry_incomplete", telemetry=repr(telemetry))


@asynccontextmanager
async def telemetry_without_session(caller: Caller) -> AsyncGenerator[Telemetry]:
    """As `telemetry_of`, where there is no session in whose tasks it could be sent."""
    async with telemetry_of(caller, None) as telemetry, lasting_tasks() as tasks:
        tasks.start_soon(telemetry.run)
        yield telemetry


def _user_error(error: BaseException) -> BaseException | None:
    """Return the error among this one and its causes that the server blames on the caller."""
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, RequestFailedError) and one.category == "user":
            return one
        if isinstance(one, APIStatusError) and 400 <= one.status < 500 and one.status != 408:
            return one
        left += [one.__context__, one.__cause__]
    return None


def _traceback_of(error: BaseException) -> str | None:
    if error.__traceback__ is None:
        return None
    import traceback  # noqa: PLC0415  # only for who asked for telemetry, and failed

    text = "".join(traceback.format_exception(error))
    return text if len(text) <= _LONGEST_TRACEBACK else "[…]\n" + text[-_LONGEST_TRACEBACK:]


def _new_id() -> str:
    import uuid  # noqa: PLC0415  # as above

    return str(uuid.uuid4())


_ids: dict[int, str] = {}
"""The id of this process by its number: a fork has one of its own."""


def _process_id() -> str:
    number = os.getpid()
    if number not in _ids:
        _ids.clear()
        _ids[number] = _new_id()
    return _ids[number]
