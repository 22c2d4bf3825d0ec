"""Custom losses as data: a traced function, node by node, and the handle of one on a server.

The graph says what is to be computed, never how: whoever carries it out decides which functions
it allows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import msgspec

CustomLossInputRank: TypeAlias = Literal[0, 1, 2]
"""0 is a scalar, 1 is `[T]`, 2 is `[T, K]`."""

CustomLossNodeOp: TypeAlias = Literal[
    "placeholder", "get_attr", "call_function", "call_method", "call_module", "output"
]


PerDatumLossFn: TypeAlias = Callable[..., tuple[Any, Mapping[str, Any]]]
"""The loss of one datum: from its log-probs, and the inputs that its parameters name, to a scalar
tensor and scalar tensors by name."""


class CustomLossInput(msgspec.Struct, frozen=True):
    """One input of a custom loss: `logprobs`, or a key of `loss_fn_inputs`."""

    name: str
    rank: CustomLossInputRank


class CustomLossNode(msgspec.Struct, frozen=True):
    """One step of a custom loss.

    Args:
        op: What it is.
        name: Unique; later nodes refer to it.
        target: The parameter's name, the function's (`torch.exp`, `operator.mul`), the method's,
            or `output`.
        args: Numbers, texts, null and lists stand for themselves. All else is an object with one
            key: `ref` (a node), `tuple`, `dict`, `slice`, `ellipsis`, `float` (`inf`, `-inf`,
            `nan`), `dtype`, `device`, `layout` or `memory_format`.
        kwargs: The same, by name.
    """

    op: CustomLossNodeOp
    name: str
    target: str
    args: list[Any] = msgspec.field(default_factory=list)
    kwargs: dict[str, Any] = msgspec.field(default_factory=dict)


class CustomLossGraph(msgspec.Struct, frozen=True):
    """A custom loss, its nodes in order of execution."""

    nodes: list[CustomLossNode]
    format: Literal[1] = 1


class LossHandle(msgspec.Struct, frozen=True, eq=False):
    """A custom loss made with `Session.create_custom_loss`.

    Give it to `TrainingClient.forward_backward_custom` in place of a function, for data of the
    session that it was made in.
    """

    name: str
    """The function's name."""
    inputs: tuple[CustomLossInput, ...]
    """`logprobs`, then the keys of `loss_fn_inputs` that it reads, in order."""
    session_id: str
    """The session that it was made in; only its clients can use it."""
    graph: CustomLossGraph
    """What was traced; this is what runs, not the function."""
    traced: Any
    """The same as torch carries it out: `traced(logprobs, *inputs)`."""
    loss_id: str | None = None
    """The server's id of it; None where the server has no custom losses and it runs here."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """The keys of `loss_fn_inputs` that it reads."""
        return tuple(one.name for one in self.inputs[1:])

    def __repr__(self) -> str:
        where = "here" if self.loss_id is None else f"on the server as {self.loss_id}"
        inputs = ", ".join(f"{one.name}: rank {one.rank}" for one in self.inputs)
        return f"<LossHandle {self.name}({inputs}): runs {where}>"
