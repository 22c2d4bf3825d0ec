"""Saving a checkpoint as an operation of the training queue.

The rule: a save whose reply was lost is looked up, never repeated blindly. A name that the
server has, and that this model had not used before, can only be the save in question.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import anyio

from tinker_async.api import endpoints
from tinker_async.api.retry import RetryPolicy
from tinker_async.background.training_queue import Collect, Lane, TrainingRequest
from tinker_async.data.paths import CheckpointPath
from tinker_async.data.records import CheckpointsListResponse
from tinker_async.errors import ConflictError, RequestFailedError, ResponseError, TinkerError
from tinker_async.futures import APIFuture
from tinker_async.logs import log
from tinker_async.wire.messages import UntypedAPIFuture

T = TypeVar("T")

_ONCE = RetryPolicy(max_attempts=1)
_EXISTS = "already exists"


class SaveOperation(Generic[T]):
    """A named save, and what is done when it is not known whether it happened.

    Args:
        name: The public method's name.
        request: The save.
        path: Where the checkpoint will be.
        make: From the checkpoint's path to the operation's value.
        conflict_hint: What a user does about a name that is taken.
        policy: When to repeat; default the session's.
    """

    def __init__(
        self,
        name: str,
        request: TrainingRequest,
        path: CheckpointPath,
        make: Callable[[str], T],
        *,
        conflict_hint: str,
        policy: RetryPolicy | None = None,
    ) -> None:
        self.future: APIFuture[T] = APIFuture(name)
        self._request = request
        self._path = path
        self._make = make
        self._conflict_hint = conflict_hint
        self._policy = policy
        self._name_was_free = False

    async def run(self, lane: Lane) -> Collect | None:
        """Send the save; a delivery in doubt is resolved by looking."""
        self._name_was_free = self._path.checkpoint_id not in lane.saved_names
        try:
            promise = await lane.deliver(self._request, self.future, self._policy)
        except TinkerError as error:
            if not error.delivery_in_doubt:
                self._give_hint(error)
                raise
            lane.saved_names.add(self._path.checkpoint_id)
            accepted = isinstance(error, (ConflictError, ResponseError))
            found = await self._look_up(lane, patiently=accepted)
            if found is None:
                lane.lose(error, self.future)
                raise
            lane.use_number()
            self.future.resolve(self._make(found))
            return None
        lane.saved_names.add(self._path.checkpoint_id)
        return lambda: self._collect(lane, promise)

    async def _collect(self, lane: Lane, promise: UntypedAPIFuture) -> None:
        try:
            results = await lane.results([self._request], [promise], self.future, self._policy)
        except RequestFailedError as error:
            # The server may have run the attempt in doubt, and then the one that it accepted.
            exists = _says_it_exists(error)
            found = None
            if exists and self.future.in_doubt:
                found = await self._look_up(lane, patiently=True)
            if exists:
                self._give_hint(error)
            if found is None:
                raise
            self.future.resolve(self._make(found))
        else:
            self.future.resolve(results[0])

    async def _look_up(self, lane: Lane, *, patiently: bool) -> str | None:
        """Return the checkpoint's path if the server has it and it must be this one.

        `patiently`: the server has the save, and may be busy with what comes before it.
        """
        if not self._name_was_free:
            return None
        policy = self._policy or lane.caller.policy
        for number in range(policy.max_attempts if patiently else 1):
            if number:
                await anyio.sleep(policy.pause_s(number - 1))
            try:
                found = await self._listed(lane)
            except TinkerError as error:
                log.info("save_not_looked_up", error=type(error).__name__)
            else:
                if found is not None:
                    return found
        return None

    async def _listed(self, lane: Lane) -> str | None:
        listed = await lane.caller.call_json(
            endpoints.checkpoints(self._path.training_run_id, limit=0, offset=0),
            answer=CheckpointsListResponse,
            policy=_ONCE,
        )
        for checkpoint in listed.checkpoints:
            if str(self._path) == checkpoint.tinker_path or (
                self._path.checkpoint_id == checkpoint.checkpoint_id
            ):
                log.info("save_found", path=checkpoint.tinker_path)
                return checkpoint.tinker_path
        return None

    def _give_hint(self, error: TinkerError) -> None:
        if isinstance(error, (ConflictError, RequestFailedError)):
            error.hint = self._conflict_hint


def _says_it_exists(error: RequestFailedError) -> bool:
    return isinstance(error.__cause__, ConflictError) or _EXISTS in error.message.lower()
