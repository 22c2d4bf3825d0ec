"""Putting the results of a batch's chunks together again.

A metric is named `name:reduction`; the reductions are those of wire protocol 4.10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tinker_async.data.results import ForwardBackwardOutput

_UINT64 = 2**64
_PLAIN: dict[str, Callable[[Sequence[float]], float]] = {"sum": sum, "min": min, "max": max}


def merge_outputs(outputs: Sequence[ForwardBackwardOutput]) -> ForwardBackwardOutput:
    """Merge chunk results in chunk order; one chunk is returned as it is."""
    if len(outputs) == 1:
        return outputs[0]
    return ForwardBackwardOutput(
        loss_fn_output_type=outputs[0].loss_fn_output_type,
        loss_fn_outputs=[item for output in outputs for item in output.loss_fn_outputs],
        metrics=reduce_metrics(
            [output.metrics for output in outputs],
            [len(output.loss_fn_outputs) for output in outputs],
        ),
    )


def reduce_metrics(metrics: Sequence[dict[str, float]], weights: Sequence[int]) -> dict[str, float]:
    """Reduce metrics over chunks.

    Names come from the first chunk; a metric that any chunk lacks, or whose suffix is
    unknown, is dropped, and so are means whose weights (numbers of data) sum to zero.

    Args:
        metrics: By chunk.
        weights: Number of data by chunk.
    """
    reduced: dict[str, float] = {}
    for name in metrics[0]:
        if all(name in chunk for chunk in metrics):
            values = [chunk[name] for chunk in metrics]
            reduced.update(_reduce(name, values, weights))
    return reduced


def _reduce(name: str, values: Sequence[float], weights: Sequence[int]) -> dict[str, float]:
    reduction = name.rpartition(":")[2]
    if reduction in _PLAIN:
        return {name: _PLAIN[reduction](values)}
    if reduction in ("mean", "slack"):
        total = sum(weights)
        if total == 0:
            return {}
        mean = sum(v * w for v, w in zip(values, weights, strict=True)) / total
        return {name: mean if reduction == "mean" else max(values) - mean}
    if reduction == "unique":
        later = {f"{name}_{index}": value for index, value in enumerate(values[1:], start=1)}
        return {name: values[0], **later}
    if reduction == "hash2":
        return {name: float(sum(int(value) % _UINT64 for value in values) % _UINT64)}
    return {}
