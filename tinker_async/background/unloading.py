"""Unloading a model as an operation of the training queue.

It has its turn there, but no number: the server takes none. The rule: a model that is gone when
its unloading is repeated has been unloaded.
"""

from __future__ import annotations

from tinker_async.api import endpoints
from tinker_async.api.calls import decode_json
from tinker_async.api.promises import RETRIEVE_JSON, retrieve
from tinker_async.api.retry import RetryPolicy
from tinker_async.background.training_queue import Collect, Lane
from tinker_async.data.results import UnloadModelResponse
from tinker_async.errors import GoneError, NotFoundError
from tinker_async.futures import APIFuture
from tinker_async.wire.messages import ModelRequest, UntypedAPIFuture


class UnloadOperation:
    """Frees a model.

    Args:
        policy: When to repeat; default the session's.
    """

    def __init__(self, policy: RetryPolicy | None = None) -> None:
        self.future: APIFuture[UnloadModelResponse] = APIFuture("unload_model")
        self._policy = policy

    async def run(self, lane: Lane) -> Collect | None:
        """Send the request; an attempt in doubt that left no model has done it."""
        future = self.future
        try:
            promise = await lane.caller.call_json(
                endpoints.UNLOAD_MODEL,
                ModelRequest(model_id=lane.model_id, type="unload_model"),
                answer=UntypedAPIFuture,
                policy=self._policy,
                progress=future,
            )
        except (NotFoundError, GoneError):
            if not future.in_doubt:
                raise
            future.resolve(UnloadModelResponse(model_id=lane.model_id))
            return None
        future.request_id = promise.request_id
        return lambda: self._collect(lane, promise.request_id)

    async def _collect(self, lane: Lane, request_id: str) -> None:
        with self.future.while_wanted():
            result = await retrieve(
                lane.caller,
                request_id,
                endpoint=RETRIEVE_JSON,
                policy=self._policy,
                progress=self.future,
            )
            self.future.resolve(
                decode_json(result.body, UnloadModelResponse, RETRIEVE_JSON.path, self.future)
            )
