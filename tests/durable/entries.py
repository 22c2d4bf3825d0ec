"""Checkpoints as a ledger lists them."""

from __future__ import annotations

import math
from typing import Any

from tinker_async import CheckpointEntry


def entry(
    number: int,
    *,
    status: Any = "confirmed",
    step: int | None = None,
    loss: float | None = None,
    **rest: Any,
) -> CheckpointEntry:
    """A checkpoint at ten steps for each number, with a path as soon as it has been confirmed."""
    known = status in ("confirmed", "deleted")
    return CheckpointEntry(
        number=number,
        run_id="run",
        step=10 * number if step is None else step,
        name=f"c{number}",
        status=status,
        metrics={} if loss is None or not math.isfinite(loss) else {"loss": loss},
        **{
            "path": f"tinker://run/weights/c{number}" if known else None,
            "sampler_path": f"tinker://run/sampler_weights/c{number}" if known else None,
            **rest,
        },
    )
