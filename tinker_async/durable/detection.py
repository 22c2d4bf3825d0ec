"""Noticing that a run is lost: four sources of signs, one event, and the read that confirms it.

Signs come from the run's mark on the server (`corrupted`, polled as a backstop), from operations
that failed in a way that may mean it, from a lane that cannot order its requests any more, and
from the session's end. The rule: what the user did wrong is never a sign, and no sign alone starts
a recovery: the server is asked first, unless the loss is on this side and so certain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import anyio
import msgspec

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller
from tinker_async.api.features import says_no_endpoint
from tinker_async.api.retry import RetryPolicy
from tinker_async.data.records import TrainingRun
from tinker_async.data.results import GetInfoResponse
from tinker_async.errors import (
    APIStatusError,
    GoneError,
    InternalServerError,
    ModelPoisonedError,
    NotFoundError,
    OverloadedError,
    PromiseLostError,
    RateLimitError,
    RequestFailedError,
    ResponseError,
    SessionLostError,
    TinkerError,
    TransportError,
)
from tinker_async.logs import log
from tinker_async.renewal import Seat, SessionLoss
from tinker_async.wire.messages import ModelRequest

Source: TypeAlias = Literal["corrupted", "operation", "poisoned", "session"]

_ONCE = RetryPolicy(max_attempts=1)
_SIGNS = (
    GoneError,
    InternalServerError,
    OverloadedError,
    PromiseLostError,
    RateLimitError,
    ResponseError,
    TransportError,
)
"""What an operation fails with where the fault is not its own, so that the run may be lost."""


class Suspicion(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A sign that a run may be lost."""

    source: Source
    model_id: str
    error: str
    """The class of what was raised; empty where nothing was."""
    message: str
    at: float
    """`anyio.current_time()` when it was noticed."""
    operation: str | None = None
    request_id: str | None = None
    cause: BaseException | None = None

    @property
    def is_certain(self) -> bool:
        """Whether no answer of the server could make it a false alarm."""
        return self.source in ("poisoned", "session")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What the server says to a suspicion."""

    state: Literal["lost", "healthy", "unreachable"]
    """`healthy`: a false alarm. `unreachable`: it did not say; ask again later."""
    source: Source
    """Of the loss: what is found may be more than what was suspected."""
    message: str


def source_of(error: BaseException) -> Source | None:
    """Return what an operation's failure is a sign of; None if it is the operation's own.

    Its own are: what the user did wrong (`InvalidInputError`, a failed operation of category
    `user`, 4xx), what no new run can help (credentials, billing), a withdrawn operation, the end of
    the session's block, and whatever the user's own functions raise.
    """
    if isinstance(error, SessionLostError):
        return "session"
    if not isinstance(error, TinkerError):
        return None
    if isinstance(error, ModelPoisonedError) or error.delivery_in_doubt:
        return "poisoned"
    if isinstance(error, RequestFailedError):
        return None if _is_the_users(error) else "operation"
    if isinstance(error, NotFoundError):
        return None if _is_load(error) else "operation"
    return "operation" if isinstance(error, _SIGNS) else None


def _is_the_users(error: RequestFailedError) -> bool:
    cause = error.__cause__  # some servers tell a failed operation by an error status
    if isinstance(cause, NotFoundError):
        return _is_load(error)
    by_status = isinstance(cause, APIStatusError) and 400 <= cause.status < 500
    return error.category == "user" or by_status


def _is_load(error: TinkerError) -> bool:
    """Whether it is the failure of a load: what is not there is then the checkpoint."""
    at_load = isinstance(error, APIStatusError) and error.endpoint == endpoints.LOAD_WEIGHTS.path
    return at_load or (error.operation or "").startswith("load_state")


class Detector:
    """Watches one training run. A run that comes after it has a detector of its own.

    Args:
        model_id: The run.
        caller: What reaches the server.
        seat: Of the session that the run is in.
        poll_interval_s: Between looks at the run's mark, in `poll`.
        on_poll_error: Called when such a look failed.
    """

    def __init__(
        self,
        model_id: str,
        *,
        caller: Caller,
        seat: Seat,
        poll_interval_s: float = 30.0,
        on_poll_error: Callable[[TinkerError], None] | None = None,
    ) -> None:
        self.model_id = model_id
        self._caller = caller
        self._seat = seat
        self._poll_interval_s = poll_interval_s
        self._on_poll_error = on_poll_error
        self._suspicion: Suspicion | None = None
        self._suspected = anyio.Event()

    # Signs

    def note_failure(self, error: BaseException) -> bool:
        """Take in what an operation of the run failed with.

        Returns:
            Whether it is a sign. If not, it is for whoever awaits the operation, at once.
        """
        source = source_of(error)
        if source is None:
            return False
        self._suspect(
            source,
            error=type(error).__name__,
            message=error.message if isinstance(error, TinkerError) else str(error),
            operation=getattr(error, "operation", None),
            request_id=getattr(error, "request_id", None),
            cause=error,
        )
        return True

    def note_loss(self, loss: SessionLoss) -> None:
        """Take in that the session is lost: what a seat's `on_lost` is told."""
        error = loss.error
        self._suspect(
            "session", error=type(error).__name__, message=error.message, cause=loss.error
        )

    def _suspect(
        self,
        source: Source,
        *,
        error: str,
        message: str,
        operation: str | None = None,
        request_id: str | None = None,
        cause: BaseException | None = None,
    ) -> None:
        suspicion = Suspicion(
            source=source,
            model_id=self.model_id,
            error=error,
            message=message,
            at=anyio.current_time(),
            operation=operation,
            request_id=request_id,
            cause=cause,
        )
        known = self._suspicion
        if known is None or (suspicion.is_certain and not known.is_certain):
            log.info("run_suspected", model_id=self.model_id, source=source, error=error)
            self._suspicion = suspicion
        self._suspected.set()

    async def poll(self) -> None:
        """Look at the run's mark at an interval, until cancelled."""
        while True:
            await anyio.sleep(self._poll_interval_s)
            try:
                corrupted = await self._is_corrupted()
            except TinkerError as error:
                log.info("run_not_polled", model_id=self.model_id, error=type(error).__name__)
                if self._on_poll_error is not None:
                    self._on_poll_error(error)
            else:
                if corrupted:
                    self._suspect("corrupted", error="", message=_MARKED)

    # From a sign to a finding

    @property
    def suspicion(self) -> Suspicion | None:
        """The first sign since the last `all_clear`, or the first that is certain."""
        return self._suspicion

    async def suspected(self) -> Suspicion:
        """Wait for a sign. The same one is returned until `all_clear`."""
        while self._suspicion is None:
            await self._suspected.wait()
        return self._suspicion

    def all_clear(self) -> None:
        """Forget the sign: it was a false alarm."""
        self._suspicion = None
        self._suspected = anyio.Event()

    async def confirm(self, suspicion: Suspicion) -> Finding:
        """Ask the server once what there is to a sign: nothing is repeated, and nothing raised.

        Where the session turns out to be over, its renewal has begun: wait for `Seat.usable`.
        """
        source, message = suspicion.source, suspicion.message
        if source == "session":
            return Finding(state="lost", source=source, message=message)
        try:
            if suspicion.is_certain:
                found = "" if await self._seat.confirm() else "session"
            else:
                found = await self._asked()
        except TinkerError as error:
            if not suspicion.is_certain:
                return Finding(state="unreachable", source=source, message=str(error))
            found = ""
        if found == "session":
            return Finding(state="lost", source="session", message="the session is over")
        if found == "corrupted":
            return Finding(state="lost", source="corrupted", message=_MARKED)
        is_lost = suspicion.is_certain or found == "gone"
        return Finding(state="lost" if is_lost else "healthy", source=source, message=message)

    async def _asked(self) -> Literal["", "corrupted", "gone", "session"]:
        """Return what the server says of the run; empty if that it is well.

        Raises:
            TinkerError: It says nothing.
        """
        try:
            await self._caller.call_json(
                endpoints.GET_INFO,
                ModelRequest(model_id=self.model_id),
                answer=GetInfoResponse,
                policy=_ONCE,
            )
        except (GoneError, NotFoundError) as error:
            if not says_no_endpoint(error):
                return "gone" if await self._seat.confirm() else "session"
        return "corrupted" if await self._is_corrupted() else ""

    async def _is_corrupted(self) -> bool:
        try:
            run = await self._caller.call_json(
                endpoints.training_run(self.model_id), answer=TrainingRun, policy=_ONCE
            )
        except NotFoundError as error:
            log.debug("run_not_listed", model_id=self.model_id, detail=error.detail)
            return False
        return run.corrupted


_MARKED = "the server has marked the run as corrupted"
