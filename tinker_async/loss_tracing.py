"""From a function of the user's, written in torch, to a custom loss as plain data.

The function is called once, with stand-ins for its tensors (`torch.fx`), and what it does with
them is written down. The rule: what a server could not carry out is refused here, with the place
and the way out.
"""

from __future__ import annotations

import builtins
import importlib.util
import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from tinker_async.data.custom_loss import (
    CustomLossGraph,
    CustomLossInput,
    CustomLossInputRank,
    CustomLossNode,
    CustomLossNodeOp,
    LossHandle,
    PerDatumLossFn,
)
from tinker_async.errors import InvalidInputError, MissingExtraError

_FUNCTION_HOMES = frozenset({"torch", "math", "operator", "_operator"})
"""`_operator` is where Python keeps the functions of `operator`."""
_METRIC = re.compile(r"custom/[a-z0-9_./-]{1,64}:(sum|mean)")
_INPUT = re.compile(r"[a-z_][a-z0-9_]{0,63}")
_MOST_INPUTS = 16
_MOST_NODES = 100_000
_LEAVING_TORCH = frozenset({"item", "numpy", "tolist"})
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def trace_loss(
    fn: PerDatumLossFn, input_ranks: Mapping[str, CustomLossInputRank], session_id: str
) -> LossHandle:
    """Trace a loss.

    Args:
        fn: The loss of one datum.
        input_ranks: The rank of each of its parameters.
        session_id: The session that the handle is for.

    Raises:
        InvalidInputError: Parameters, ranks, or what it does with them; the field is `fn` or
            `input_ranks`.
        MissingExtraError: torch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError(
            "create_custom_loss needs torch", hint="pip install 'tinker-async[torch]'"
        )
    name = _name(fn)
    inputs = _inputs(fn, name, input_ranks)
    traced = _traced(fn, name)
    nodes = [_node(name, node) for node in traced.graph.nodes]
    return LossHandle(name, inputs, session_id, CustomLossGraph(nodes), traced)


def _name(fn: Callable[..., Any]) -> str:
    return getattr(fn, "__name__", type(fn).__name__)


def _refused(name: str, says: str, hint: str | None = None) -> InvalidInputError:
    return InvalidInputError(f"fn: {name} {says}", field="fn", hint=hint)


# Parameters


def _inputs(
    fn: Callable[..., Any], name: str, input_ranks: Mapping[str, CustomLossInputRank]
) -> tuple[CustomLossInput, ...]:
    parameters = _parameters(fn, name)
    if not parameters or parameters[0].name != "logprobs":
        raise _refused(
            name,
            "must take logprobs first",
            "write def loss(logprobs, weights): ..., the others being keys of loss_fn_inputs",
        )
    if len(parameters) > _MOST_INPUTS:
        raise _refused(
            name, f"has {len(parameters)} parameters, but a loss takes {_MOST_INPUTS} at most"
        )
    for parameter in parameters:
        _check_parameter(name, parameter)
    names = [parameter.name for parameter in parameters]
    given = input_ranks if isinstance(input_ranks, Mapping) else {}
    if set(given) != set(names):
        raise InvalidInputError(
            f"input_ranks: must have a rank for each of {', '.join(names)}, "
            f"got {', '.join(sorted(map(str, given))) or 'none'}",
            field="input_ranks",
        )
    return tuple(_input(one, input_ranks[one]) for one in names)


def _parameters(fn: Callable[..., Any], name: str) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError) as error:
        raise _refused(name, f"cannot be called with tensors: {error}") from None


def _check_parameter(name: str, parameter: inspect.Parameter) -> None:
    where = f"has the parameter {parameter.name!r}, which"
    if parameter.kind not in _POSITIONAL:
        raise _refused(name, f"{where} cannot be given by position", "no *args, **kwargs or *")
    if parameter.default is not parameter.empty:
        raise _refused(name, f"{where} has a default", "every parameter is a key of loss_fn_inputs")
    if not _INPUT.fullmatch(parameter.name):
        raise _refused(name, f"{where} is not of lower-case letters, digits and underscores")


def _input(name: str, rank: object) -> CustomLossInput:
    lowest = 1 if name == "logprobs" else 0
    if type(rank) is not int or not lowest <= rank <= 2:
        raise InvalidInputError(
            f"input_ranks[{name!r}]: must be from {lowest} to 2, got {rank!r}",
            field=f"input_ranks[{name!r}]",
            hint="1 is [T], 2 is [T, K]" if lowest else "0 is a scalar, 1 is [T], 2 is [T, K]",
        )
    return CustomLossInput(name, cast("CustomLossInputRank", rank))


# What it does


def _traced(fn: PerDatumLossFn, name: str) -> Any:
    import torch.fx  # noqa: PLC0415  # an optional extra, loaded on use

    try:
        traced = torch.fx.symbolic_trace(fn)
    except Exception as error:
        # The user's own code, called with stand-ins: it may raise anything.
        raise _refused(
            name,
            f"cannot be traced: {type(error).__name__}: {error}",
            "it may not decide by a tensor's value, nor call anything but torch and math; "
            "a function of (data, logprobs) can be given to forward_backward_custom as it is",
        ) from error
    nodes = list(traced.graph.nodes)
    if len(nodes) > _MOST_NODES:
        raise _refused(name, f"takes {len(nodes)} steps, but a loss has {_MOST_NODES} at most")
    for node in nodes:
        _CHECKS[node.op](name, node)
    return traced


def _check_function(name: str, node: Any) -> None:
    home = (getattr(node.target, "__module__", None) or "").partition(".")[0]
    if node.target is not builtins.getattr and home not in _FUNCTION_HOMES:
        called = getattr(node.target, "__qualname__", node.target)
        raise _refused(
            name,
            f"calls {called} of {home or 'an unknown module'}",
            "a custom loss may call functions of torch and math alone",
        )


def _check_method(name: str, node: Any) -> None:
    import torch  # noqa: PLC0415  # loaded already

    method = str(node.target)
    if method == "backward":
        raise _refused(name, "calls backward()", "return the loss; the backward pass comes after")
    if method in _LEAVING_TORCH:
        raise _refused(
            name, f"calls {method}(), which leaves torch", "keep every value a tensor, metrics too"
        )
    if not hasattr(torch.Tensor, method):
        raise _refused(name, f"calls {method}(), which tensors do not have")


def _check_module(name: str, node: Any) -> None:
    raise _refused(
        name,
        f"calls the module {node.target}",
        "use functions, such as those of torch.nn.functional",
    )


def _check_attribute(name: str, node: Any) -> None:
    raise _refused(
        name,
        f"uses a tensor from outside ({node.target})",
        "make it an entry of loss_fn_inputs, and a parameter",
    )


def _check_output(name: str, node: Any) -> None:
    import torch.fx  # noqa: PLC0415  # loaded already

    given = node.args[0]
    if not isinstance(given, (tuple, list)) or len(given) != 2 or not isinstance(given[1], dict):
        raise _refused(name, "must return (loss, metrics), metrics being a dict")
    loss, metrics = given
    if not isinstance(loss, torch.fx.Node):
        raise _refused(name, f"must return a tensor as its loss, got {loss!r}")
    for key, value in metrics.items():
        if not isinstance(key, str) or not _METRIC.fullmatch(key):
            raise _refused(
                name,
                f"returns the metric {key!r}",
                "metrics are named custom/<name>:sum or custom/<name>:mean in lower case; the "
                "end says how they are put together over the data",
            )
        if not isinstance(value, torch.fx.Node):
            raise _refused(name, f"must return a tensor as metric {key!r}, got {value!r}")


def _check_nothing(_name: str, _node: Any) -> None:
    pass


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "placeholder": _check_nothing,
    "call_function": _check_function,
    "call_method": _check_method,
    "call_module": _check_module,
    "get_attr": _check_attribute,
    "output": _check_output,
}


# As plain data


def _node(name: str, node: Any) -> CustomLossNode:
    return CustomLossNode(
        op=cast("CustomLossNodeOp", node.op),
        name=node.name,
        target=_function_name(name, node.target)
        if node.op == "call_function"
        else str(node.target),
        args=[_argument(name, value) for value in node.args],
        kwargs={key: _argument(name, value) for key, value in node.kwargs.items()},
    )


def _function_name(name: str, function: Any) -> str:
    """Return the name under which a server finds a function: `torch.exp`, `operator.mul`."""
    from torch.fx.node import _get_qualified_name  # noqa: PLC0415  # torch's own way to say it

    try:
        qualified = str(_get_qualified_name(function))
    except Exception as error:
        # torch has no error of its own for a function that cannot be named.
        raise _refused(name, f"calls a function without a public name: {error}") from error
    home, dot, rest = qualified.partition(".")
    return f"operator.{rest}" if dot and home == "_operator" else qualified


def _argument(name: str, value: Any) -> Any:
    """Return a value as JSON: itself, or an object with one key that says what it is."""
    import torch.fx  # noqa: PLC0415  # loaded already

    if isinstance(value, torch.fx.Node):
        return {"ref": value.name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if value is Ellipsis:
        return {"ellipsis": True}
    for kind in ("dtype", "device", "layout", "memory_format"):
        if type(value) is getattr(torch, kind):
            return {kind: str(value).removeprefix("torch.")}
    return _container(name, value)


def _container(name: str, value: Any) -> Any:
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return {"slice": [_argument(name, part) for part in parts]}
    if isinstance(value, list):
        return [_argument(name, part) for part in value]
    if isinstance(value, tuple):
        return {"tuple": [_argument(name, part) for part in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _argument(name, part) for key, part in value.items()}}
    raise _refused(name, f"passes on a {type(value).__name__}, which cannot be sent to a server")
