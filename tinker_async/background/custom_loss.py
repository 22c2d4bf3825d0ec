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

    def __init__(self, data: Sequence[Datum], loss_fn: CustomLossFn, plan: Plan) -> None:
        self.future: APIFuture[ForwardBackwardOutput] = APIFuture("forward_backward_custom")
        self._data = data
        self._loss_fn = loss_fn
        self._plan = plan

    async def run(self, lane: Lane) -> Collect | None:
        """Run both passes; only the wait for the backward results is outside the turn."""
        requests = self._plan(forward_data(self._data), True)
        promises = [await lane.send(request, self.future) for request in requests]
        output = merge_outputs(await lane.results(requests, promises, self.future))
        try:
            weighted, loss, metrics = await anyio.to_thread.run_sync(
                surrogate_data, self._data, output, self._loss_fn, limiter=lane.compute
            )
        except TinkerError:
            raise
        except Exception as error:  # noqa: BLE001  # the user's own code: what it raises is the result
            self.future.fail(error)
            return None
        backward = self._plan(weighted, False)
        sent = [await lane.send(request, self.future) for request in backward]
        return functools.partial(self._collect, lane, backward, sent, loss, metrics)

    async def _collect(
        self,
        lane: Lane,
        requests: Sequence[TrainingRequest],
        promises: Sequence[UntypedAPIFuture],
        loss: float,
        metrics: dict[str, float],
    ) -> None:
        output = merge_outputs(await lane.results(requests, promises, self.future))
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
