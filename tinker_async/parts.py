"""What exists only while a session is open, and what the session itself does then.

The rule: everything here lives in a task group of its own and ends with it; nothing here knows
how the block is entered or left, nor that other parts may come after these.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.abc

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller
from tinker_async.api.capabilities import ContextLengths
from tinker_async.api.features import Feature
from tinker_async.api.handshake import ask_switches
from tinker_async.background.health import SessionHealth, SessionStatistics, health_of
from tinker_async.background.heartbeat import Heartbeat
from tinker_async.background.recalls import LAST_WORDS_S
from tinker_async.custom_losses import CustomLosses
from tinker_async.errors import SessionClosedError, SessionLostError, TinkerError
from tinker_async.futures import APIFuture
from tinker_async.logs import log
from tinker_async.samplers import Samplers
from tinker_async.trainers import Trainers
from tinker_async.transport.opening import OpenTransport
from tinker_async.wire import json as wire_json
from tinker_async.wire.messages import (
    ClientConfigResponse,
    DynamicConfigResponse,
    FinishReason,
    FinishSessionRequest,
)

_END_S = 5.0
"""From the end of the block until the server is told no more."""
_LEAST_S = 1.0
"""Of that for each part, also where something else has taken long before."""
_SHORTEST_REFRESH_S = 10.0


class Unobserved:
    """Operations that failed and that nobody has awaited so far."""

    def __init__(self) -> None:
        self._futures: list[APIFuture[Any]] = []

    def note(self, future: APIFuture[Any]) -> None:
        """Take note of a future that was settled just now."""
        if future.failed_unobserved:
            log.warning(
                "operation_failed", operation=future.operation, error=future.describe_error()
            )
            self._futures.append(future)

    def raise_all(self) -> None:
        """Raise the failures that still nobody has seen: one as itself, several as a group."""
        failed = [future for future in self._futures if future.failed_unobserved]
        errors = [error for future in failed if (error := future.error) is not None]
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise BaseExceptionGroup("operations failed that nobody awaited", errors)


class Ending:
    """Tells the server how a session ended."""

    def __init__(self, caller: Caller, session_id: str) -> None:
        self._caller = caller
        self.session_id = session_id
        """The session as it is called by now."""
        self.how: tuple[str, str | None] = ("success", None)
        """`success`, `errored` or `interrupted`, and a detail."""
        self.last_words: Callable[[], Awaitable[None]] | None = None
        """What is to be said before."""
        self._began: float | None = None

    def begin(self) -> None:
        """Note that the block is over: from now on everything has its time."""
        self._began = anyio.current_time()

    async def tell(self) -> None:
        """Tell it; shielded and bounded, and never an error of its own."""
        kind, detail = self.how
        body = FinishSessionRequest(reason=FinishReason(type=kind), detail=detail)
        with anyio.CancelScope(shield=True):
            try:
                if self.last_words is not None:
                    with self._within(LAST_WORDS_S):
                        await self.last_words()
                finish = endpoints.finish(self.session_id)
                with self._within(_END_S):
                    await self._caller.once(finish, (wire_json.encode(body),))
            except TinkerError as error:
                log.debug("finish_not_told", error=type(error).__name__)

    def _within(self, seconds: float) -> anyio.CancelScope:
        """A scope that ends so many seconds after the block did, or soon if that is over."""
        now = anyio.current_time()
        began = now if self._began is None else self._began
        return anyio.CancelScope(deadline=max(began + seconds, now + _LEAST_S))


class Parts:
    """The parts of an open session."""

    def __init__(
        self,
        session_id: str,
        *,
        base_url: str,
        transport: OpenTransport,
        caller: Caller,
        limits: ClientConfigResponse,
        tasks: anyio.abc.TaskGroup,
        is_open: Callable[[], Any],
        check_inputs: bool,
        max_samples: int | None,
        heartbeat_s: float,
        unobserved: Unobserved,
    ) -> None:
        self.session_id = session_id
        self.caller = caller
        self._transport = transport
        self._tasks = tasks
        self._is_open = is_open
        self.unobserved = unobserved
        context_lengths = ContextLengths(caller) if check_inputs else None
        self.samplers = Samplers(
            session_id,
            base_url=base_url,
            caller=caller,
            limits=limits,
            policy=caller.policy,
            is_open=self.check_open,
            most=max_samples,
            context_lengths=context_lengths,
        )
        self.samplers.submissions.open(tasks, self.unobserved.note)
        self.samplers.pollers.open(tasks)
        self.pool = self.samplers.pool
        self.trainers = Trainers(
            session_id,
            caller=caller,
            limits=limits,
            samplers=self.samplers,
            tasks=tasks,
            on_settled=self.unobserved.note,
            context_lengths=context_lengths,
        )
        self.custom_losses = CustomLosses(
            session_id, caller, uploads=limits.custom_loss_server_side
        )
        self.heartbeat = Heartbeat(caller, session_id, period_s=heartbeat_s)
        self.lost = False
        """Whether the server, or its process, ended the session."""
        self.gone: SessionLostError | None = None
        """Why these parts are over, while the user's block goes on: see `Renewal`."""

    def start(self, dynamic: DynamicConfigResponse) -> None:
        """Start the session's own tasks."""
        self.pool.switch_cancels(dynamic)
        self._tasks.start_soon(self.pool.drain_cancels)
        if Feature.DYNAMIC_CONFIG not in self.caller.features.missing:
            self._tasks.start_soon(self._refresh_switches, dynamic.refresh_interval_sec)

    async def wait_idle(self) -> None:
        """Wait until every queued operation is settled."""
        for lane in list(self.trainers.lanes.values()):
            await lane.wait_idle()
        await self.samplers.submissions.wait_idle()

    def check_open(self) -> None:
        """Check that these parts may be used.

        Raises:
            SessionLostError: The session goes on with others.
            SessionClosedError: The session's block is over.
        """
        self._is_open()
        if self.gone is not None:
            raise self.gone

    def close(self, reason: SessionClosedError) -> None:
        """Fail what is left, and end all tasks."""
        self.trainers.close(reason)
        self.samplers.pollers.close()
        self.pool.end_cancels()
        self._tasks.cancel_scope.cancel()

    def retire(self, reason: SessionLostError) -> None:
        """As `close`, while the user's block goes on with other parts."""
        self.lost, self.gone = True, reason
        self.samplers.submissions.retire(reason)
        self.close(reason)

    async def _refresh_switches(self, interval_s: float) -> None:
        while True:
            await anyio.sleep(max(interval_s, _SHORTEST_REFRESH_S))
            try:
                config = await ask_switches(self.caller)
            except TinkerError as error:
                log.info("config_not_refreshed", error=type(error).__name__)
            else:
                self.pool.switch_cancels(config)
                interval_s = config.refresh_interval_sec

    def statistics(self) -> SessionStatistics:
        """Return what is under way now."""
        return SessionStatistics(
            transport=self._transport.statistics(),
            sampling=self.pool.statistics(),
            seconds_since_heartbeat=anyio.current_time() - self.heartbeat.last_beat,
            lanes={name: lane.statistics() for name, lane in self.trainers.lanes.items()},
        )

    def health(self) -> SessionHealth:
        """Return how the session is doing."""
        return health_of(
            self.session_id,
            caller=self.caller,
            heartbeat=self.heartbeat,
            statistics=self.statistics(),
            lanes=self.trainers.lanes,
            lost=self.lost,
        )
