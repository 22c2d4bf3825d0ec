"""Tracing: the graph is the one that the official client sends, and the refusals are its own too."""

from __future__ import annotations

import builtins
import math
import operator
import os
from typing import Any

import numpy as np
import pytest

from tinker_async.errors import InvalidInputError
from tinker_async.loss_tracing import trace_loss
from tinker_async.wire.json import encode

torch = pytest.importorskip("torch")
official = pytest.importorskip("tinker.lib.public_interfaces.custom_loss")

F = torch.nn.functional


def plain(logprobs: Any) -> Any:
    return -logprobs.sum(), {}


def arithmetic(logprobs: Any, weights: Any) -> Any:
    loss = ((2 * logprobs - weights / 3) ** 2 // 1.5 % 4).sum()
    return loss, {"custom/loss:sum": loss, "custom/other.one/2-a:mean": operator.abs(loss)}


def functions(logprobs: Any, advantages: Any) -> Any:
    ratio = torch.exp(logprobs).clamp(min=0.8, max=1.2)
    soft = F.logsigmoid(ratio) + F.softplus(advantages, beta=2.0)
    both = torch.cat([soft, ratio], dim=0)
    return both.sum() * math.sqrt(2), {
        "custom/max:mean": torch.stack((soft.max(), ratio.max())).max()
    }


def indexing(logprobs: Any, weights: Any) -> Any:
    part = logprobs[1:, None] + logprobs[..., ::2][0] + weights[-1]
    return part.sum(), {}


def constants(logprobs: Any) -> Any:
    held = torch.where(logprobs > float("-inf"), logprobs, float("nan"))
    filled = torch.full_like(
        held, 1, dtype=torch.float32, device=torch.device("cpu"), layout=torch.strided
    )
    same = torch.clone(held, memory_format=torch.preserve_format)
    return same.to(torch.float32).sum() + filled.sum() + float("inf") * 0, {}


def attributes(logprobs: Any) -> Any:
    return logprobs.sum() / logprobs.shape[0], {"custom/n:sum": logprobs.mT.sum()}


def of_two_dimensions(logprobs: Any, weights: Any, mask: Any, /) -> Any:
    return (logprobs * weights).sum(dim=-1).masked_fill(mask > 0, 0.0).mean(), {}


RANKS: dict[str, Any] = {"logprobs": 1, "weights": 1, "advantages": 1, "mask": 2}


def ranks_of(fn: Any) -> dict[str, Any]:
    import inspect

    return {name: RANKS[name] for name in inspect.signature(fn).parameters}


@pytest.mark.parametrize(
    "fn",
    [plain, arithmetic, functions, indexing, constants, attributes, of_two_dimensions],
    ids=lambda fn: fn.__name__,
)
def test_the_graph_is_the_one_that_the_official_client_sends(fn: Any) -> None:
    """Node for node, name for name; inputs and name of the loss too."""
    theirs = official.trace_loss(fn, ranks_of(fn), "s1")
    ours = trace_loss(fn, ranks_of(fn), "s1")

    graph = official.encode_graph(theirs)
    assert graph == type(graph).model_validate_json(encode(ours.graph))
    assert [one.model_dump() for one in theirs.inputs] == [
        {"name": one.name, "rank": one.rank} for one in ours.inputs
    ]
    assert (theirs.name, theirs.input_names) == (ours.name, ours.input_names)


CAPTURED = torch.ones(3)


class CallableLoss:
    def __call__(self, logprobs: Any) -> Any:
        return logprobs.sum(), {}


def branching(logprobs: Any) -> Any:
    return (logprobs if logprobs.sum() > 0 else -logprobs).sum(), {}


def raising(logprobs: Any) -> Any:
    raise KeyError(logprobs)


REFUSED: list[tuple[Any, str]] = [
    (branching, "cannot be traced"),
    (raising, "cannot be traced: KeyError"),
    (lambda logprobs: (logprobs.sum().item(), {}), "calls item"),
    (lambda logprobs: (logprobs.numpy(), {}), "calls numpy"),
    (lambda logprobs: (logprobs.tolist(), {}), "calls tolist"),
    (lambda logprobs: (logprobs.sum().backward(), {}), "calls backward"),
    (lambda logprobs: (logprobs.no_such_thing(), {}), "calls no_such_thing"),
    (lambda logprobs: (np.exp(logprobs).sum(), {}), "of numpy|cannot be traced|calls exp"),
    (lambda logprobs: ((logprobs * CAPTURED).sum(), {}), "from outside"),
    (lambda logprobs: logprobs.sum(), "must return"),
    (lambda logprobs: (logprobs.sum(), logprobs), "must return"),
    (lambda logprobs: (1.0, {}), "must return a tensor as its loss"),
    (lambda logprobs: (logprobs.sum(), {"loss": logprobs.sum()}), "metric 'loss'"),
    (lambda logprobs: (logprobs.sum(), {"custom/A:sum": logprobs.sum()}), "metric 'custom/A:sum'"),
    (lambda logprobs: (logprobs.sum(), {"custom/a:max": logprobs.sum()}), "metric 'custom/a:max'"),
    (lambda logprobs: (logprobs.sum(), {"custom/a:sum": 1.0}), "must return a tensor as metric"),
    (lambda: (1, {}), "must take logprobs first"),
    (lambda weights: (weights.sum(), {}), "must take logprobs first"),
    (lambda logprobs, weights=1: (logprobs.sum(), {}), "has a default"),
    (lambda logprobs, *rest: (logprobs.sum(), {}), "cannot be given by position"),
    (lambda logprobs, **rest: (logprobs.sum(), {}), "cannot be given by position"),
    (lambda logprobs, Weights: (logprobs.sum(), {}), "lower-case"),  # noqa: N803  # the mistake
    (eval("lambda logprobs, " + ", ".join(f"a{i}" for i in range(16)) + ": 1"), "16 at most"),
]


@pytest.mark.parametrize(("fn", "says"), REFUSED, ids=lambda value: None)
def test_what_cannot_be_written_down_is_refused_by_both_clients(fn: Any, says: str) -> None:
    """Ours says what and where, and names the field."""
    import inspect

    ranks: Any = dict.fromkeys(inspect.signature(fn).parameters, 1)
    with pytest.raises(ValueError, match="create_custom_loss"):
        official.trace_loss(fn, ranks, "s1")
    with pytest.raises(InvalidInputError, match=says) as caught:
        trace_loss(fn, ranks, "s1")
    assert caught.value.field == "fn"


@pytest.mark.parametrize(
    ("ranks", "field"),
    [
        ({}, "input_ranks"),
        (None, "input_ranks"),
        ({"logprobs": 1}, "input_ranks"),
        ({"logprobs": 1, "weights": 1, "mask": 1}, "input_ranks"),
        ({"logprobs": 0, "weights": 1}, "input_ranks['logprobs']"),
        ({"logprobs": 1, "weights": 3}, "input_ranks['weights']"),
        ({"logprobs": 1, "weights": True}, "input_ranks['weights']"),
    ],
)
def test_every_parameter_has_a_rank(ranks: Any, field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        trace_loss(arithmetic, ranks, "s1")
    assert field == caught.value.field


@pytest.mark.parametrize(
    "fn", [None, 3, "text", builtins.print, CallableLoss, CallableLoss(), os.getcwd]
)
def test_what_is_no_loss_is_refused(fn: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        trace_loss(fn, {"logprobs": 1}, "s1")
    assert caught.value.field == "fn"
