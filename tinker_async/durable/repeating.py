"""Asks a new run for what was asked of the lost one, in order, and compares what it gives.

The rule: it ends in the very moment in which nothing is left to repeat, and without a wait after
that: whoever lets new calls out then, leaves none behind.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import anyio.to_thread

from tinker_async.data.datum import Datum
from tinker_async.durable.calls import Calls, metrics_of
from tinker_async.durable.detection import source_of
from tinker_async.durable.journal import Replay
from tinker_async.durable.operations import Operation, same_metrics
from tinker_async.durable.validation import TOLERANCE
from tinker_async.errors import InvalidInputError
from tinker_async.futures import APIFuture
from tinker_async.training import TrainingClient

_AHEAD = 32
"""Repeated operations that are under way at a time."""
_COMPARED_STEPS = 2
"""Steps whose losses are compared: the first shows the weights, the second the optimizer."""


async def repeat(replay: Replay, client: TrainingClient, *, calls: Calls, from_step: int) -> None:
    """Repeat all calls, those included that come meanwhile, and wait for their results.

    Args:
        replay: What is to be repeated.
        client: Of the new run.
        calls: What settles the callers' futures.
        from_step: Of the checkpoint.

    Raises:
        TinkerError: The new run is lost, too.
        InvalidInputError: It is not the run that it was: the checkpoint is no good.
        OSError: The data cannot be read.
    """
    under_way: deque[tuple[Operation, Any, APIFuture[Any]]] = deque()
    last_compared = from_step + _COMPARED_STEPS
    while True:
        if len(under_way) >= _AHEAD:
            await _checked(*under_way.popleft())
        operation = replay.next()
        if operation is not None:
            first = operation.metrics if operation.step < last_compared else None
            data = await _data_of(operation)
            try:
                inner = calls.asked(client, operation.kind, operation.arguments, data)
            except InvalidInputError as error:
                if operation.outcome != "pending":
                    raise
                calls.fail(operation, error)  # called during the recovery: it was not sent before
                continue
            calls.follow(operation, inner)
            under_way.append((operation, first, inner))
        elif under_way:
            await _checked(*under_way.popleft())
        else:
            return


async def _checked(operation: Operation, first: Any, inner: APIFuture[Any]) -> None:
    try:
        value = await inner
    except Exception as error:  # the user's own loss function may raise anything
        if source_of(error) is not None:
            raise
        return  # its own error: whoever called it has it
    again = metrics_of(value)
    if not same_metrics(first, again, tolerance=TOLERANCE):
        raise InvalidInputError(
            f"checkpoint: {operation.kind} of step {operation.step} gave {again} when it was "
            f"repeated, and {first} before",
            field="checkpoint",
        )


async def _data_of(operation: Operation) -> tuple[Datum, ...] | None:
    """Return an operation's data; those in the file are read in a worker thread."""
    if operation.is_spilled:
        return await anyio.to_thread.run_sync(operation.data)
    return operation.data()
