"""Custom losses on a server: a graph that a client has sent, carried out by torch.

The rule: only what is on the lists here is called, whatever name a graph gives, and no number of
Python's own grows without end.
"""

from __future__ import annotations

import importlib.util
import math
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tinker_async.data.custom_loss import CustomLossGraph, CustomLossInput, CustomLossNode
from tinker_async.data.tensors import TensorData
from tinker_async.errors import InvalidInputError

Floats = npt.NDArray[np.float32]

_TENSOR_OPERATIONS = frozenset(
    [
        "abs",
        "add",
        "amax",
        "amin",
        "broadcast_to",
        "cat",
        "clamp",
        "clamp_max",
        "clamp_min",
        "clip",
        "clone",
        "contiguous",
        "cos",
        "cumsum",
        "detach",
        "diff",
        "div",
        "divide",
        "double",
        "eq",
        "exp",
        "expand",
        "expm1",
        "flatten",
        "float",
        "full_like",
        "gather",
        "ge",
        "gt",
        "int",
        "is_floating_point",
        "isfinite",
        "isnan",
        "le",
        "log",
        "log10",
        "log1p",
        "log2",
        "log_sigmoid",
        "log_softmax",
        "logaddexp",
        "logical_and",
        "logical_not",
        "logical_or",
        "logsigmoid",
        "logsumexp",
        "long",
        "lt",
        "masked_fill",
        "masked_select",
        "max",
        "maximum",
        "mean",
        "median",
        "min",
        "minimum",
        "mul",
        "multiply",
        "nan_to_num",
        "ne",
        "neg",
        "negative",
        "numel",
        "ones_like",
        "permute",
        "pow",
        "prod",
        "reciprocal",
        "relu",
        "repeat",
        "reshape",
        "rsqrt",
        "select",
        "sigmoid",
        "sign",
        "sin",
        "size",
        "softmax",
        "softplus",
        "sqrt",
        "square",
        "squeeze",
        "stack",
        "std",
        "sub",
        "subtract",
        "sum",
        "tanh",
        "tensor",
        "to",
        "transpose",
        "tril",
        "triu",
        "true_divide",
        "unsqueeze",
        "var",
        "view",
        "where",
        "zeros_like",
        "ones",
        "zeros",
        "full",
        "arange",
        "huber_loss",
        "mse_loss",
        "l1_loss",
        "smooth_l1_loss",
    ]
)
"""Functions below `torch`, and methods of tensors."""
_OPERATORS = frozenset(
    [
        "abs",
        "add",
        "and_",
        "eq",
        "floordiv",
        "ge",
        "getitem",
        "gt",
        "inv",
        "invert",
        "le",
        "lt",
        "matmul",
        "mod",
        "mul",
        "ne",
        "neg",
        "not_",
        "or_",
        "pos",
        "pow",
        "sub",
        "truediv",
        "xor",
        "iadd",
        "isub",
        "imul",
        "itruediv",
    ]
)
_UNBOUNDED = frozenset({"comb", "factorial", "perm"})
"""Of `math`: whole numbers without end."""
_MOST = 2**53
_FAILURES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What an operation raises that does not suit its operands."""
_ATTRIBUTES = frozenset({"shape", "dtype", "device", "ndim", "T", "mT"})
_HOMES: dict[str, Any] = {"operator": operator, "math": math}


class GraphLoss:
    """A custom loss that can be run. One object collects the metrics of one call's data.

    Args:
        inputs: `logprobs` first.
        graph: What it does.

    Raises:
        InvalidInputError: The graph is damaged, calls something that is not allowed, or torch is
            not installed where this runs.
    """

    def __init__(self, inputs: list[CustomLossInput], graph: CustomLossGraph) -> None:
        if importlib.util.find_spec("torch") is None:
            raise _refused("custom losses need torch, which is not installed where they run")
        self._inputs = inputs
        self._graph = graph
        self.metrics: dict[str, list[float]] = {}
        """Of each datum so far, by name."""
        names = [node.target for node in graph.nodes if node.op == "placeholder"]
        if names != [one.name for one in inputs] or names[:1] != ["logprobs"]:
            raise _refused(f"the graph takes {names}, not its inputs")
        if not graph.nodes or graph.nodes[-1].op != "output":
            raise _refused("the graph has no output at its end")
        for node in graph.nodes:
            _callable_of(node)

    def fresh(self) -> GraphLoss:
        """The same loss with no metrics yet."""
        return GraphLoss(self._inputs, self._graph)

    def read(
        self, given: Mapping[str, TensorData], shape: tuple[int, ...], where: str
    ) -> Mapping[str, Any]:
        """Return the inputs of a datum.

        Raises:
            InvalidInputError: One is missing, or has another rank.
        """
        found: dict[str, Any] = {}
        for one in self._inputs:
            field = f"{where}.loss_fn_inputs[{one.name!r}]"
            if one.name == "logprobs":
                rank = len(shape)
            elif one.name in given:
                array = given[one.name].to_numpy()
                # On the wire a scalar is a row of one: only the rank tells them apart.
                found[one.name] = array.reshape(()) if (one.rank, array.size) == (0, 1) else array
                rank = found[one.name].ndim
            else:
                raise InvalidInputError(f"{field}: is missing", field=field)
            if rank != one.rank:
                raise InvalidInputError(f"{field}: has rank {rank}, not {one.rank}", field=field)
        return found

    def __call__(self, logprobs: Floats, inputs: Mapping[str, Any]) -> tuple[Floats, Floats]:
        """Return the loss, and its derivatives by `logprobs`; keep the metrics."""
        import torch  # noqa: PLC0415  # only where a custom loss runs

        leaf = torch.tensor(logprobs, requires_grad=True)
        values = {name: torch.tensor(array) for name, array in inputs.items()}
        try:
            with torch.enable_grad():
                loss, metrics = self._run({"logprobs": leaf, **values})
                loss.backward()
            reached = {name: float(value.detach()) for name, value in metrics.items()}
        except _FAILURES as error:
            # torch has no error of its own for an operation that does not suit its operands.
            raise _refused(f"the loss failed: {type(error).__name__}: {error}") from error
        for name, value in reached.items():
            self.metrics.setdefault(name, []).append(value)
        slopes = np.zeros_like(logprobs) if leaf.grad is None else leaf.grad.numpy()
        return np.asarray(loss.detach().numpy(), np.float32), slopes

    def _run(self, inputs: Mapping[str, Any]) -> Any:
        known: dict[str, Any] = {}
        for node in self._graph.nodes:
            if node.op == "placeholder":
                known[node.name] = inputs[node.target]
                continue
            args = [_value(arg, known) for arg in node.args]
            if node.op == "output":
                return args[0]
            kwargs = {key: _value(arg, known) for key, arg in node.kwargs.items()}
            known[node.name] = _callable_of(node)(*args, **kwargs)
        raise _refused("the graph has no output")

    def reduced(self) -> dict[str, float]:
        """Return the metrics of all data so far."""
        return {
            name: sum(values) / (len(values) if name.endswith(":mean") else 1)
            for name, values in self.metrics.items()
        }


def _refused(says: str) -> InvalidInputError:
    return InvalidInputError(f"graph: {says}", field="graph")


def _callable_of(node: CustomLossNode) -> Any:
    """Return what a node calls.

    Raises:
        InvalidInputError: It is not allowed.
    """
    if node.op in ("placeholder", "output"):
        return None
    if node.op == "call_method" and node.target in _TENSOR_OPERATIONS:
        return _Method(node.target)
    if node.op == "call_function":
        home, _, name = node.target.rpartition(".")
        if node.target == "getattr":
            return _attribute
        if home == "math" or (home == "operator" and name in _OPERATORS):
            found = getattr(_HOMES[home], name, None)
            if callable(found) and not name.startswith("_") and name not in _UNBOUNDED:
                return _Bounded(found)
        if home.partition(".")[0] == "torch" and name in _TENSOR_OPERATIONS:
            return _torch_function(node.target)
    raise _refused(f"{node.op} of {node.target!r} is not allowed here")


class _Bounded:
    """A function of Python's, which may not be given large whole numbers, or long lists."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        numbers = [arg for arg in args if isinstance(arg, int)]
        if any(abs(number) > _MOST for number in numbers):
            raise _refused("a whole number is too large")
        if self._function in (operator.pow, pow) and len(numbers) == len(args):
            args = (float(args[0]), *args[1:])
        if self._function in (operator.mul, operator.imul):
            for arg in args:
                if isinstance(arg, str | list | tuple):
                    raise _refused(f"a {type(arg).__name__} cannot be multiplied")
        return self._function(*args, **kwargs)


class _Method:
    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(tensor, self._name)(*args, **kwargs)


def _attribute(owner: Any, name: str) -> Any:
    if name not in _ATTRIBUTES:
        raise _refused(f"the attribute {name!r} is not allowed here")
    return getattr(owner, name)


def _torch_function(target: str) -> Any:
    import torch  # noqa: PLC0415  # only where a custom loss runs

    found: Any = torch
    for part in target.split(".")[1:]:
        found = getattr(found, part, None)
    if not callable(found):
        raise _refused(f"there is no {target}")
    return found


def _value(arg: Any, known: Mapping[str, Any]) -> Any:
    """Return what an argument of a node stands for."""
    if isinstance(arg, list):
        return [_value(part, known) for part in arg]
    if not isinstance(arg, dict):
        return arg
    if len(arg) != 1:
        raise _refused(f"an argument has {len(arg)} keys")
    ((kind, inner),) = arg.items()
    if kind == "ref":
        if inner not in known:
            raise _refused(f"there is no node {inner!r} before")
        return known[inner]
    if kind in _CONTAINERS:
        return _CONTAINERS[kind](inner, lambda part: _value(part, known))
    return _torch_constant(kind, inner)


_CONTAINERS: dict[str, Any] = {
    "tuple": lambda inner, value: tuple(map(value, inner)),
    "dict": lambda inner, value: {key: value(part) for key, part in inner.items()},
    "slice": lambda inner, value: slice(*map(value, inner)),
    "ellipsis": lambda _inner, _value: ...,
    "float": lambda inner, _value: float(inner),
}


def _torch_constant(kind: str, name: Any) -> Any:
    import torch  # noqa: PLC0415  # only where a custom loss runs

    if kind == "device":
        return torch.device("cpu")
    found = getattr(torch, name, None) if isinstance(name, str) else None
    if kind not in ("dtype", "layout", "memory_format") or not isinstance(
        found, getattr(torch, kind, ())
    ):
        raise _refused(f"an argument is of unknown kind {kind!r}")
    return found
