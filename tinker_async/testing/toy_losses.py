"""The losses of the toy model, in numpy: values, and their derivatives by the log-prob.

Formulas and defaults are those of the embedded engine: sums, never means. The rule: a
wrong loss, setting or input is an `InvalidInputError`, before anything is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from tinker_async.data.tensors import TensorData
from tinker_async.errors import InvalidInputError

Floats: TypeAlias = npt.NDArray[np.float32]
Inputs: TypeAlias = Mapping[str, Floats]
Config: TypeAlias = Mapping[str, float]

_LOW, _HIGH = "clip_low_threshold", "clip_high_threshold"


class ToyLoss(msgspec.Struct, frozen=True):
    """A loss with its settings. Call it with log-probs and its inputs, all of one shape."""

    name: str
    inputs: tuple[str, ...]
    config: dict[str, float]
    formula: Callable[[Floats, Inputs, Config], tuple[Floats, Floats]]

    def __call__(self, logprobs: Floats, inputs: Inputs) -> tuple[Floats, Floats]:
        """Return the losses and their derivatives by `logprobs`."""
        return self.formula(logprobs, inputs, self.config)

    def read(self, given: Mapping[str, TensorData], shape: tuple[int, ...], where: str) -> Inputs:
        """Return the inputs as arrays of the targets' shape; missing weights are ones.

        Raises:
            InvalidInputError: One is missing, or has another shape.
        """
        found = {}
        for name in self.inputs:
            field = f"{where}.loss_fn_inputs[{name!r}]"
            tensor = given.get(name)
            if tensor is None and name != "weights":
                raise InvalidInputError(f"{field}: is missing", field=field)
            array = np.ones(shape) if tensor is None else tensor.to_numpy()
            if array.shape != shape:
                raise InvalidInputError(
                    f"{field}: must have the shape of target_tokens, {shape}, got {array.shape}",
                    field=field,
                )
            found[name] = array.astype(np.float32)
        return found


def toy_loss(name: str, config: Mapping[str, Any]) -> ToyLoss:
    """Return a loss by name, its defaults overridden by `config`.

    Raises:
        InvalidInputError: The loss or a setting is not known here.
    """
    known = _LOSSES.get(name)
    if known is None:
        raise InvalidInputError(
            f"loss_fn: {name!r} is not one of {', '.join(sorted(_LOSSES))}", field="loss_fn"
        )
    for key, value in config.items():
        sound = isinstance(value, (int, float)) and math.isfinite(value)
        if key not in known.config or not sound:
            field = f"loss_fn_config[{key!r}]"
            raise InvalidInputError(f"{field}: {value!r} is no setting of {name}", field=field)
    return msgspec.structs.replace(known, config={**known.config, **config})


def _cross_entropy(p: Floats, inputs: Inputs, _config: Config) -> tuple[Floats, Floats]:
    weights = inputs["weights"]
    return -weights * p, -weights


def _importance_sampling(p: Floats, inputs: Inputs, _config: Config) -> tuple[Floats, Floats]:
    loss = -_times(_ratio(p, inputs), inputs)
    return loss, loss


def _ppo(p: Floats, inputs: Inputs, config: Config) -> tuple[Floats, Floats]:
    ratio = _ratio(p, inputs)
    free = _times(ratio, inputs)
    clipped = _times(_clipped(ratio, config), inputs)
    slope = -np.where(free <= clipped, free, np.float32(0))
    return -np.minimum(free, clipped), slope.astype(np.float32)


def _cispo(p: Floats, inputs: Inputs, config: Config) -> tuple[Floats, Floats]:
    slope = -_times(_clipped(_ratio(p, inputs), config), inputs)
    return slope * p, slope


def _dro(p: Floats, inputs: Inputs, config: Config) -> tuple[Floats, Floats]:
    advantages, beta = inputs["advantages"], np.float32(config["beta"])
    gap = p - inputs["logprobs"]
    return np.float32(0.5) * beta * gap * gap - advantages * p, beta * gap - advantages


def _ratio(p: Floats, inputs: Inputs) -> Floats:
    with np.errstate(over="ignore"):
        ratio: Floats = np.exp(p - inputs["logprobs"])
    return ratio


def _clipped(ratio: Floats, config: Config) -> Floats:
    clipped: Floats = np.clip(ratio, np.float32(config[_LOW]), np.float32(config[_HIGH]))
    return clipped


def _times(ratio: Floats, inputs: Inputs) -> Floats:
    """Return ratio times advantage; 0 where the advantage is 0, even if the ratio overflowed."""
    advantages = inputs["advantages"]
    with np.errstate(invalid="ignore"):
        product: Floats = np.where(advantages == 0, np.float32(0), ratio * advantages)
    return product


_RL = ("logprobs", "advantages")
_LOSSES = {
    loss.name: loss
    for loss in (
        ToyLoss("cross_entropy", ("weights",), {}, _cross_entropy),
        ToyLoss("importance_sampling", _RL, {}, _importance_sampling),
        ToyLoss("ppo", _RL, {_LOW: 0.8, _HIGH: 1.2}, _ppo),
        ToyLoss("cispo", _RL, {_LOW: 0.0, _HIGH: 4.0}, _cispo),
        ToyLoss("dro", _RL, {"beta": 0.05}, _dro),
    )
}
