"""`forward_backward_custom` as an operation of the training queue.

It keeps its turn from the forward pass to the last request of the backward pass, so
that nothing can come between them, and takes its numbers as it goes: a loss that
fails half-way leaves no gap.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import anyio
import anyio.to_thread

from tinker_async.api.retry import RetryPolicy
from tinker_async.background.training_queue import Collect, Lane, TrainingRequest
from tinker_async.data.datum import Datum
from tinker_async.data.results import ForwardBackwardOutput
from tinker_async.errors import TinkerError
from tinker_async.futures import APIFuture
from tinker_async.losses import CustomLossFn, forward_data, surrogate_data
from tinker_async.plan.merging import merge_outputs
from tinker_async.wire.messages import UntypedAPIFuture

Plan = Callable[[Sequence[Datum], bool], Sequence[TrainingRequest]]


class CustomLossOperation:
    """Forward, the user's loss in a thread, backward."""

    def __init__(
        self,
        data: Sequence[Datum],
        loss_fn: CustomLossFn,
        plan: Plan,
        policy: RetryPolicy | None = None,
    ) -> None:
        self.future: APIFuture[ForwardBackwardOutput] = APIFuture("forward_backward_custom")
        self._data = data
        self._loss_fn = loss_fn
        self._plan = plan
        self._policy = policy

    async def run(self, lane: Lane) -> Collect | None:
        """Run both passes; only the wait for the backward results is outside the turn."""
        requests = self._plan(forward_data(self._data), True)
        output = merge_outputs(
            await self._results(lane, requests, await self._send(lane, requests))
        )
        try:
            weighted, loss, metrics = await anyio.to_thread.run_sync(
                surrogate_data, self._data, output, self._loss_fn, limiter=lane.compute
            )
        except TinkerError:
            raise
        except Exception as error:  # noqa: BLE001  # the user's own code: what it raises is the result
            self.future.fail(error)
            return None
        if self.future.done:
            return (
                None  # its time is over: the server has seen a forward pass, which changes nothing
            )
        backward = self._plan(weighted, False)
        sent = await self._send(lane, backward)
        return functools.partial(self._collect, lane, backward, sent, loss, metrics)

    async def _send(
        self, lane: Lane, requests: Sequence[TrainingRequest]
    ) -> list[UntypedAPIFuture]:
        return [await lane.send(request, self.future, self._policy) for request in requests]

    async def _results(
        self,
        lane: Lane,
        requests: Sequence[TrainingRequest],
        promises: Sequence[UntypedAPIFuture],
    ) -> list[ForwardBackwardOutput]:
        return await lane.results(requests, promises, self.future, self._policy)

    async def _collect(
        self,
        lane: Lane,
        requests: Sequence[TrainingRequest],
        promises: Sequence[UntypedAPIFuture],
        loss: float,
        metrics: dict[str, float],
    ) -> None:
        output = merge_outputs(await self._results(lane, requests, promises))
        combined = dict(output.metrics)
        surrogate = combined.pop("loss:sum", None)
        if surrogate is not None:
            combined["surrogate_loss:sum"] = surrogate
        combined.update(metrics)
        combined["loss:sum"] = loss
        self.future.resolve(
            ForwardBackwardOutput(
                loss_fn_output_type=output.loss_fn_output_type,
                loss_fn_outputs=output.loss_fn_outputs,
                metrics=combined,
            )
        )
