"""One call of a training method, as a journal keeps it: what was asked, by whom, and what came of it.

The rule: what was asked never changes, and a result is let go of as soon as its caller has it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from tinker_async.data.datum import Datum
from tinker_async.durable.snapshots import Place, Reference, Snapshot
from tinker_async.errors import InvalidInputError
from tinker_async.futures import APIFuture

OperationKind: TypeAlias = Literal[
    "forward",
    "forward_backward",
    "forward_backward_custom",
    "optim_step",
    "train_step",
    "save_state",
    "save_weights_for_sampler",
    "save_weights_external",
    "save_weights_and_get_sampling_client",
    "load_state",
    "load_state_with_optimizer",
    "unload_model",
]
"""The method of `TrainingClient` that was called."""

_CHANGES_MODEL = frozenset(
    {
        *("forward_backward", "forward_backward_custom", "optim_step", "train_step"),
        *("load_state", "load_state_with_optimizer"),
    }
)
"""Kinds that must be repeated even when their results are known."""

Outcome: TypeAlias = Literal["pending", "done", "failed", "withdrawn"]


class Operation:
    """One call of a training method. Made by `Journal.record`; its facts never change."""

    __slots__ = (
        "arguments",
        "future",
        "has_data",
        "kind",
        "metrics",
        "number",
        "outcome",
        "place",
        "segment",
        "snapshot",
        "step",
    )

    def __init__(
        self,
        number: int,
        kind: OperationKind,
        step: int,
        arguments: dict[str, Any],
        snapshot: Snapshot | Reference | None,
        future: APIFuture[Any] | None,
        segment: int,
    ) -> None:
        self.number = number
        self.kind: OperationKind = kind
        self.step = step
        """Steps that were complete when it was called."""
        self.arguments = arguments
        """All but the data, by the method's names."""
        self.future = future
        """The caller's, until it is settled: then only `metrics` are kept."""
        self.outcome: Outcome = "pending"
        self.metrics: dict[str, float] | None = None
        """Of the first result, to compare a repetition with."""
        self.has_data = snapshot is not None
        self.snapshot = snapshot
        """The journal's own, like the next two."""
        self.place: Place | None = None
        self.segment = segment

    @property
    def changes_model(self) -> bool:
        """Whether the model is another after it."""
        return self.kind in _CHANGES_MODEL

    @property
    def must_be_repeated(self) -> bool:
        """Whether a run that goes on from before it needs it: for the model, or for its caller."""
        if self.outcome == "withdrawn":
            return False
        return self.changes_model or self.outcome == "pending"

    @property
    def is_spilled(self) -> bool:
        """Whether its data are in the file: reading them blocks."""
        return self.snapshot is None and self.place is not None

    def data(self) -> tuple[Datum, ...] | None:
        """Return its data as they were when it was called; None where it has none.

        Blocks where they are spilled.

        Raises:
            InvalidInputError: They were given up, or changed in place: what comes after is out of
                reach.
            OSError: The file cannot be read.
        """
        if not self.has_data:
            return None
        snapshot = self.snapshot
        if snapshot is not None:
            return snapshot.data()
        if self.place is None:
            raise InvalidInputError(f"data: those of {self!r} were given up", field="data")
        return self.place.file.read(self.place.offset, self.place.nbytes)

    def __repr__(self) -> str:
        return f"<Operation {self.number} {self.kind}: {self.outcome}>"


def same_metrics(
    first: Mapping[str, float] | None,
    again: Mapping[str, float] | None,
    *,
    tolerance: float = 0.0,
) -> bool:
    """Whether a repetition gave what the first time gave: the sign that the optimizer came back.

    Args:
        first: `Operation.metrics`; None says nothing, and agrees with all.
        again: Of the repetition.
        tolerance: Largest relative difference; 0 wants the same bits, as an engine on one CPU
            gives them.
    """
    if first is None or again is None:
        return True
    return all(
        math.isclose(value, again[name], rel_tol=tolerance, abs_tol=tolerance)
        or (math.isnan(value) and math.isnan(again[name]))
        for name, value in first.items()
        if name in again and name.partition(":")[0] not in _VARYING
    )


_VARYING = frozenset({"time", "duration", "clock_cycle", "tokens_per_second"})
"""Metrics that are of the moment, not of the model."""
