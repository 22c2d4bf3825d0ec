"""The custom losses of one session: traced here, and uploaded where the server takes them.

The rule: each traced loss is made once; who makes it again gets the first one's handle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller, decode_json
from tinker_async.api.progress import Progress, Timeout, within
from tinker_async.api.promises import RETRIEVE_JSON, retrieve
from tinker_async.api.retry import RetryPolicy
from tinker_async.data import given
from tinker_async.data.custom_loss import CustomLossInputRank, LossHandle, PerDatumLossFn
from tinker_async.wire import json as wire_json
from tinker_async.wire.messages import (
    CreateCustomLossRequest,
    CreateCustomLossResponse,
    UntypedAPIFuture,
)


class CustomLosses:
    """Makes the custom losses of one session.

    Args:
        session_id: The session.
        caller: What reaches its server.
        uploads: Whether the server takes custom losses.
    """

    def __init__(self, session_id: str, caller: Caller, *, uploads: bool) -> None:
        self._session_id = session_id
        self._caller = caller
        self._uploads = uploads
        self._tracing = anyio.CapacityLimiter(1)
        """For calls of the user's functions, and the first import of torch: one worker thread."""
        self._turn = anyio.Lock()
        self._made: dict[bytes, LossHandle] = {}
        self._next = 0

    @property
    def made(self) -> tuple[LossHandle, ...]:
        """The handles that were made or adopted here."""
        return tuple(self._made.values())

    async def create(
        self,
        fn: PerDatumLossFn,
        input_ranks: Mapping[str, CustomLossInputRank],
        *,
        timeout: Timeout,  # noqa: ASYNC109  # the public method's argument, as it is
        retry: RetryPolicy | None,
    ) -> LossHandle:
        """As `Session.create_custom_loss`."""
        progress = Progress("create_custom_loss")
        given.function(fn, "fn", "fn(logprobs, weights, ...)")

        async def work() -> LossHandle:
            from tinker_async.loss_tracing import trace_loss  # noqa: PLC0415  # few programs need it

            traced = await anyio.to_thread.run_sync(
                trace_loss, fn, input_ranks, self._session_id, limiter=self._tracing
            )
            async with self._turn:
                return await self._registered(traced, retry, progress)

        return await within(self._caller.limit_of(timeout, retry), progress, work)

    async def adopt(self, handle: LossHandle, *, retry: RetryPolicy | None = None) -> LossHandle:
        """Return this session's handle of a loss that was made in another one.

        What was traced is sent again, if the server takes custom losses; the function is not run.
        """
        if handle.session_id == self._session_id:
            return handle
        progress = Progress("create_custom_loss")
        own = msgspec.structs.replace(handle, session_id=self._session_id, loss_id=None)
        async with self._turn:
            return await self._registered(own, retry, progress)

    async def _registered(
        self, traced: LossHandle, policy: RetryPolicy | None, progress: Progress
    ) -> LossHandle:
        key = wire_json.encode((traced.inputs, traced.graph))
        known = self._made.get(key)
        if known is None:
            known = traced
            if self._uploads:
                loss_id = await self._upload(traced, policy, progress)
                known = msgspec.structs.replace(traced, loss_id=loss_id)
            self._made[key] = known
        return known

    async def _upload(
        self, traced: LossHandle, policy: RetryPolicy | None, progress: Progress
    ) -> str:
        number, self._next = self._next, self._next + 1
        request = CreateCustomLossRequest(
            session_id=self._session_id,
            custom_loss_seq_id=number,
            name=traced.name,
            inputs=list(traced.inputs),
            graph=traced.graph,
        )
        promise = await self._call(request, policy, progress)
        progress.request_id = promise.request_id
        result = await retrieve(
            self._caller,
            promise.request_id,
            endpoint=RETRIEVE_JSON,
            policy=policy,
            progress=progress,
        )
        answer = decode_json(result.body, CreateCustomLossResponse, RETRIEVE_JSON.path, progress)
        return answer.loss_id

    async def _call(
        self, request: CreateCustomLossRequest, policy: RetryPolicy | None, progress: Progress
    ) -> UntypedAPIFuture:
        answer: Any = await self._caller.call_json(
            endpoints.CREATE_CUSTOM_LOSS,
            request,
            answer=UntypedAPIFuture,
            policy=policy,
            progress=progress,
        )
        found: UntypedAPIFuture = answer
        return found
