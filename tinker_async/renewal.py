"""A session that survives: lost, it is opened again under the block that goes on.

The rule: a loss is dealt with here only while somebody has asked for it (`Renewal.seat`, which
durable runs do), and only if a new session can help; any other loss ends the block, as it always
did. Old ids are never used again: whoever has a client of the lost session gets `SessionLostError`.

What happens, in order: the loss is told to the seats; the old parts are retired, which fails
what was under way; the engine's process is started again if it is gone; a session is opened; parts
are made anew for it, over the same transport. A seat waits for the last of these with `usable`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import anyio
import anyio.abc
import anyio.lowlevel
import msgspec

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller
from tinker_async.api.features import Feature
from tinker_async.api.handshake import open_session
from tinker_async.api.retry import RetryPolicy, spread
from tinker_async.errors import (
    AuthenticationError,
    BillingError,
    CredentialError,
    GoneError,
    PermissionDeniedError,
    ResponseError,
    SessionClosedError,
    SessionLostError,
    TinkerError,
)
from tinker_async.events import SessionRenewed
from tinker_async.logs import log
from tinker_async.lone_errors import lone_errors
from tinker_async.parts import Ending, Parts
from tinker_async.wire.messages import CreateSessionRequest, DynamicConfigResponse

if TYPE_CHECKING:
    from tinker_async.background.telemetry import Telemetry

Cause: TypeAlias = Literal["ended", "unknown", "process"]

_HOPELESS = (AuthenticationError, BillingError, CredentialError, PermissionDeniedError)
"""What no repetition changes."""
_ONCE = RetryPolicy(max_attempts=1)


class Patience(Protocol):
    """How often a lost session is opened again, and how far apart. Of several seats' the larger.

    An opening that the server cannot be reached for is itself repeated, by the session's own
    `RetryPolicy`: it counts once.
    """

    @property
    def max_attempts(self) -> int:
        """Openings, the first included."""
        ...

    @property
    def backoff_s(self) -> float:
        """Most seconds before the second one. Doubles with each; drawn between 0 and that."""
        ...

    @property
    def max_backoff_s(self) -> float:
        """Where the doubling ends."""
        ...


class RenewalPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """The usual `Patience`."""

    max_attempts: int = 3
    backoff_s: float = 5.0
    max_backoff_s: float = 60.0


class SessionLoss(msgspec.Struct, frozen=True, eq=False):
    """How a session was lost."""

    session_id: str
    cause: Cause
    """`ended` (410) or `unknown` (404) to the server, or the end of the engine's `process`."""
    error: SessionLostError
    at: float
    """`anyio.current_time()` when it was found out."""


class Engine(Protocol):
    """What renewal needs of the embedded engine: `local.process.EngineAddress`."""

    process: anyio.abc.Process
    keeps_data: bool

    async def start_again(self) -> None:
        """Start its process again, in its place."""
        ...


class Seat:
    """One who wants the session to survive. Made by `Renewal.seat`."""

    def __init__(
        self,
        renewal: Renewal,
        policy: Patience,
        on_lost: Callable[[SessionLoss], None] | None,
    ) -> None:
        self._renewal = renewal
        self.policy = policy
        self.on_lost = on_lost

    @property
    def renewals(self) -> int:
        """How often the session was renewed so far; clients of before a change are useless."""
        return self._renewal.renewals

    @property
    def loss(self) -> SessionLoss | None:
        """How the session is lost at this moment; None while it can be used."""
        return self._renewal.loss

    async def confirm(self) -> bool:
        """Ask the server, once, whether the session lives.

        Returns:
            Whether it does. If not, its renewal has begun: wait for `usable`.

        Raises:
            TinkerError: The server did not say.
        """
        return await self._renewal.confirm()

    async def usable(self) -> int:
        """Wait until the session can be used, which it can unless it was lost just now.

        Returns:
            `renewals`, at that moment.

        Raises:
            SessionLostError: It cannot be renewed; the last attempt's error is the cause. Whoever
                waits gets this. Where nobody does, it ends the session's block.
        """
        return await self._renewal.usable()


class Renewal:
    """The parts of a session, and those that come after them.

    Args:
        make: Makes `Parts`, given a session's id and `tasks`.
        caller: What reaches the server.
        about: What the session says of itself.
        dynamic: The server's switches.
        ending: Is to know how the session is called by now.
        telemetry: Likewise.
        engine: The embedded one, if it is the session's own.
        tasks: Where to live. What is raised in there ends the user's block.
    """

    def __init__(
        self,
        make: Callable[..., Parts],
        *,
        caller: Caller,
        about: CreateSessionRequest,
        dynamic: DynamicConfigResponse,
        ending: Ending,
        telemetry: Telemetry | None,
        engine: Engine | None,
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        self._make = make
        self._caller = caller
        self._about = about
        self._dynamic = dynamic
        self._ending = ending
        self._telemetry = telemetry
        self._engine = engine
        self._tasks = tasks
        self._seats: list[Seat] = []
        self._ids: set[str] = set()
        self._beating = anyio.CancelScope()
        self._attempt = anyio.CancelScope()
        self._closed = False
        self._failed: SessionLostError | None = None
        self._waiting = 0
        self._changed = anyio.Event()
        self.parts: Parts | None = None
        """The present ones; None until the first are opened."""
        self.loss: SessionLoss | None = None
        """How they were lost, until there are others."""
        self.renewals = 0

    @property
    def keeps_data(self) -> bool:
        """Whether checkpoints outlive the server's process, as far as it is the session's own."""
        return self._engine is None or self._engine.keeps_data

    # The present parts

    async def _open(self, session_id: str) -> None:
        """Make the parts of a session that was opened, and let them live."""
        self._ending.session_id = session_id
        self._ids.add(session_id)
        own = await self._tasks.start(_nursery)
        await anyio.lowlevel.checkpoint_if_cancelled()  # a block that ends now has closed it
        self.parts = parts = self._make(session_id, tasks=own)
        self._ending.last_words = parts.pool.flush_cancels
        if self._telemetry is not None:
            self._telemetry.session_id = session_id
        parts.start(self._dynamic)
        parts.heartbeat.strict = bool(self._seats)
        self._beating = anyio.CancelScope()
        self._tasks.start_soon(self._beat, parts, self._beating)

    @asynccontextmanager
    async def lasting(
        self, session_id: str, *, on_end: Callable[[SessionClosedError], None], grace_s: float
    ) -> AsyncIterator[None]:
        """Let the session live around the user's block, and end it in order.

        Args:
            session_id: Of the session as it was opened.
            on_end: Called when the block is over, with what is raised from then on.
            grace_s: How long what was queued may take to finish.
        """
        reason = SessionClosedError("the session's block has ended")
        try:
            await self._open(session_id)
            if self._engine is not None:
                self._tasks.start_soon(self._watch, self._engine)
            yield
            with anyio.move_on_after(grace_s):
                await self._wait_idle()
        except Exception as error:
            self._ending.how = ("errored", f"{type(error).__name__}: {error}"[:500])
            raise
        except BaseException as error:
            self._ending.how = ("interrupted", type(error).__name__)
            raise
        finally:
            self._closed = True
            self._ending.begin()
            on_end(reason)
            if self.parts is not None:
                self.parts.close(reason)
            self._tasks.cancel_scope.cancel()

    async def _wait_idle(self) -> None:
        if self.parts is not None:
            await self.parts.wait_idle()

    async def _beat(self, parts: Parts, scope: anyio.CancelScope) -> None:
        with scope:
            try:
                await parts.heartbeat.run()
            except SessionLostError as error:
                if not self._dealt_with(parts, _cause(error), error):
                    raise

    async def _watch(self, engine: Engine) -> None:
        status = await engine.process.wait()
        hint = "open a new session and continue from a checkpoint in data_dir"
        if self._seats and not engine.keeps_data:
            hint = "give Session.local a data_dir: without one its checkpoints ended with it"
        error = SessionLostError(
            f"the embedded engine's process ended with status {status}", hint=hint
        )
        if self.loss is not None:
            # While the session is being renewed: an attempt with this process is in vain.
            self._attempt.cancel()
        elif self.parts is None or not self._dealt_with(self.parts, "process", error):
            raise error

    # Seats

    @contextmanager
    def seat(
        self,
        policy: Patience | None = None,
        on_lost: Callable[[SessionLoss], None] | None = None,
    ) -> Iterator[Seat]:
        """Let the session survive for the length of a block.

        Args:
            policy: How often and how far apart.
            on_lost: Called at once when it is lost, before any operation fails for it. Must
                not wait and not raise.

        Raises:
            SessionLostError: It was lost for good already.
        """
        if self._failed is not None:
            raise self._failed
        seat = Seat(self, policy or RenewalPolicy(), on_lost)
        self._seats.append(seat)
        self._be_strict()
        try:
            yield seat
        finally:
            self._seats.remove(seat)
            self._be_strict()

    def _be_strict(self) -> None:
        if self.parts is not None:
            self.parts.heartbeat.strict = bool(self._seats)

    async def confirm(self) -> bool:
        """As `Seat.confirm`."""
        parts = self.parts
        if parts is None or self.loss is not None or self._failed is not None:
            return False
        try:
            await parts.heartbeat.ask()
        except SessionLostError as error:
            if not self._dealt_with(parts, _cause(error), error):
                self._tasks.start_soon(_raise, error)
            return False
        return self.loss is None

    async def usable(self) -> int:
        """As `Seat.usable`."""
        while self.loss is not None:
            self._waiting += 1
            try:
                await self._changed.wait()
            finally:
                self._waiting -= 1
        if self._failed is not None:
            raise self._failed
        return self.renewals

    # A loss

    def _dealt_with(self, parts: Parts, cause: Cause, error: SessionLostError) -> bool:
        """Take a loss in. Whether the block goes on: if not, the error is to end it."""
        if parts is not self.parts or parts.gone is not None:
            return True
        parts.lost = True
        can_help = not isinstance(error.__cause__, AuthenticationError)
        if cause == "process" and self._engine is not None:
            can_help = self._engine.keeps_data
        if self._closed or not self._seats or not can_help:
            return False
        loss = SessionLoss(parts.session_id, cause, error, anyio.current_time())
        log.warning("session_lost", session_id=loss.session_id, cause=cause, message=error.message)
        self.loss = loss
        for seat in list(self._seats):
            if seat.on_lost is not None:
                seat.on_lost(loss)
        reason = SessionLostError(
            error.message,
            hint="the session is opened again for its durable runs: make other clients anew, too",
        )
        reason.__cause__ = error
        parts.retire(reason)
        self._beating.cancel()
        self._tasks.start_soon(self._renew, loss)
        return True

    async def _renew(self, loss: SessionLoss) -> None:
        """Open the session again, or find that this cannot be done."""
        number = 0
        try:
            await self._check_unmeant(loss)
            while True:
                number += 1
                try:
                    await self._try()
                    break
                except TinkerError as error:
                    pause_s = self._pause_s(number, error)
                    log.warning("session_not_renewed", attempt=number, error=str(error))
                    if pause_s is None:
                        raise
                await anyio.sleep(pause_s)
        except TinkerError as error:
            self._give_up(loss, number, error)
            return
        self._renewed(loss, number)

    def _pause_s(self, number: int, error: TinkerError) -> float | None:
        """Return the pause after an attempt that failed; None if it was the last."""
        policies: list[Patience] = [seat.policy for seat in self._seats] or [RenewalPolicy()]
        if number >= max(one.max_attempts for one in policies) or isinstance(error, _HOPELESS):
            return None
        longest_s = max(
            min(one.backoff_s * 2.0 ** (number - 1), one.max_backoff_s) for one in policies
        )
        return longest_s * spread()

    async def _try(self) -> None:
        engine = self._engine
        if engine is not None and engine.process.returncode is not None:
            await engine.start_again()
            self._tasks.start_soon(self._watch, engine)
        with anyio.CancelScope() as self._attempt:
            session_id = await open_session(self._caller, self._about)
            if session_id in self._ids:
                raise ResponseError(
                    f"the server gave the id of a lost session again: {session_id}",
                    endpoint=endpoints.CREATE_SESSION.path,
                )
            await self._open(session_id)
        if self._attempt.cancelled_caught:
            raise SessionLostError("the embedded engine's process ended again")

    async def _check_unmeant(self, loss: SessionLoss) -> None:
        """Check that nobody wanted the end of the session, as far as the server tells.

        Raises:
            SessionLostError: It was cancelled from the console, or failed by its user's fault.
        """
        if loss.cause != "ended" or Feature.SESSION_SEARCH in self._caller.features.missing:
            return
        from tinker_async.data.session_search import (  # noqa: PLC0415  # rarely needed
            SessionSearchRequest,
            SessionSearchResponse,
        )
        from tinker_async.data.sessions import (  # noqa: PLC0415  # likewise
            SessionCancelled,
            SessionFailed,
        )

        try:
            found = await self._caller.call_json(
                endpoints.SEARCH_SESSIONS,
                SessionSearchRequest(session_id=loss.session_id),
                answer=SessionSearchResponse,
                policy=_ONCE,
            )
        except TinkerError as error:
            log.info("session_status_not_known", error=type(error).__name__)
            return
        for status in (one.status for one in found.sessions if one.session_id == loss.session_id):
            if isinstance(status, SessionCancelled):
                raise SessionLostError("the session was cancelled from the console")
            if isinstance(status, SessionFailed) and status.category == "user":
                raise SessionLostError(f"the session failed: {status.message}")

    def _renewed(self, loss: SessionLoss, attempts: int) -> None:
        parts = self.parts
        if parts is None:
            raise RuntimeError("there are no parts")
        self.renewals += 1
        self._over()
        event = SessionRenewed(
            session_id=parts.session_id,
            lost_session_id=loss.session_id,
            cause=loss.cause,
            message=loss.error.message,
            attempts=attempts,
            lost_for_s=anyio.current_time() - loss.at,
        )
        log.info("session_renewed", session_id=event.session_id, attempts=attempts)
        self._caller.events.emit(event)

    def _give_up(self, loss: SessionLoss, attempts: int, error: TinkerError) -> None:
        """Tell those who wait that there is no session any more; if nobody does, end the block.

        Raises:
            SessionLostError: Nobody waits.
        """
        tried = f"; it could not be opened again ({attempts} attempts): " if attempts else ": "
        failure = SessionLostError(
            f"{loss.error.message}{tried}{error.message}",
            hint="open a new session and continue from a checkpoint",
        )
        failure.__cause__ = error
        self._failed = failure
        told = self._waiting
        self._over()
        if not told:
            raise failure

    def _over(self) -> None:
        self.loss = None
        self._changed.set()
        self._changed = anyio.Event()


def _cause(error: SessionLostError) -> Cause:
    return "ended" if isinstance(error.__cause__, GoneError) else "unknown"


async def _raise(error: BaseException) -> None:
    raise error


async def _nursery(*, task_status: anyio.abc.TaskStatus[anyio.abc.TaskGroup]) -> None:
    """Give a task group of its own, which can be ended alone."""
    with lone_errors():
        async with anyio.create_task_group() as tasks:
            task_status.started(tasks)
            await anyio.sleep_forever()
