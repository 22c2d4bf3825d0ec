"""The losses: per-target values and their derivatives by the target's log-prob.

With p the log-prob of a target, q the sampler's (`logprobs`), A the advantage, w the
weight and r = exp(p - q), and always a sum, never a mean:

* `cross_entropy`: -w p. Weights may be negative; without them they are 1.
* `importance_sampling`: -r A
* `ppo`: -min(r A, clip(r) A), with the bounds 0.8 and 1.2 on r
* `cispo`: -sg(clip(r)) A p, with the bounds 0 and 4 on r; sg stops the gradient
* `gspo`: as `ppo`, with one ratio for the whole sequence, the geometric mean of r over the positions
  where `sequence_ratio_mask` is not 0, or, without it, where A is not 0. As published for tokens:
  the value has that ratio, and the gradient of position t is its A times the ratio.
* `dro`: -(A p - beta/2 (p - q)^2), with beta 0.05. As published, a prompt position
  (A = 0, q = 0) still adds beta/2 p^2. The default of beta is this engine's own choice.

Where A is 0 the first three ratios' losses are exactly 0, whatever q is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch

from tinker_async.errors import InvalidInputError
from tinker_async.local.engine.jobs import CustomLoss
from tinker_async.loss_graphs import GraphLoss

Tensors: TypeAlias = Mapping[str, torch.Tensor]
"""The loss's inputs by name, float32, each with the shape of the log-probs."""
Values: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Losses and dloss/dlogprob, with the shape of the log-probs."""


@dataclass(frozen=True)
class Loss:
    """One loss with its settings. Call it with log-probs and its inputs."""

    name: str
    inputs: tuple[str, ...]
    """float32 inputs besides `target_tokens`"""
    config: Mapping[str, float]
    formula: Callable[[torch.Tensor, Tensors, Mapping[str, float]], Values]
    whole: bool = False
    """Whether it has to see all positions of a sequence at once; else any part will do."""
    graph: GraphLoss | None = None
    """The custom loss itself, which reads its inputs by its own rules"""

    def __call__(self, logprobs: torch.Tensor, tensors: Tensors) -> Values:
        """Return losses and their derivatives by `logprobs`, all of one shape."""
        return self.formula(logprobs, tensors, self.config)


def make_loss(name: str, config: Mapping[str, float | str]) -> Loss:
    """Return the loss `name` with its defaults overridden by `config`.

    Raises:
        InvalidInputError: The loss, a key or a value of its config is not known here.
    """
    known = _LOSSES.get(name)
    if name in _UNPUBLISHED:
        raise InvalidInputError(
            f"loss_fn: what {name!r} computes is not published, so that this server cannot do it",
            field="loss_fn",
            hint="take ppo, cispo or gspo, or upload a loss of your own (custom)",
        )
    if known is None:
        raise InvalidInputError(
            f"loss_fn: {name!r} is not one of {', '.join(sorted(_LOSSES))}", field="loss_fn"
        )
    merged = dict(known.config)
    for key, value in config.items():
        field = f"loss_fn_config[{key!r}]"
        if key not in known.config:
            allowed = ", ".join(known.config) or "no settings"
            raise InvalidInputError(f"{field}: {name} takes {allowed}", field=field)
        if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise InvalidInputError(
                f"{field}: must be a number, finite and not negative, got {value!r}", field=field
            )
        merged[key] = float(value)
    if merged.get(_LOW, 0.0) > merged.get(_HIGH, math.inf):
        raise InvalidInputError(
            f"{_LOW} {merged[_LOW]} is above {_HIGH} {merged[_HIGH]}",
            field=f"loss_fn_config[{_LOW!r}]",
            hint="they bound the ratio itself: 0.8 and 1.2, not 0.2",
        )
    return Loss(name, known.inputs, merged, known.formula, known.whole)


def custom_loss(custom: CustomLoss | None) -> Loss:
    """Return a loss that a client has uploaded; it collects the metrics of one call.

    Raises:
        InvalidInputError: There is none, or torch here cannot run it.
    """
    if custom is None:
        raise InvalidInputError("loss_fn: 'custom' needs a loss_id", field="loss_fn_config")
    return Loss("custom", (), {}, _never, whole=True, graph=GraphLoss(custom.inputs, custom.graph))


def _never(_p: torch.Tensor, _tensors: Tensors, _config: Mapping[str, float]) -> Values:
    raise TypeError("a custom loss is carried out as a graph")


_LOW, _HIGH = "clip_low_threshold", "clip_high_threshold"


def _cross_entropy(p: torch.Tensor, tensors: Tensors, _config: Mapping[str, float]) -> Values:
    weights = tensors["weights"]
    return -weights * p, -weights


def _importance_sampling(p: torch.Tensor, tensors: Tensors, _config: Mapping[str, float]) -> Values:
    # d(r A)/dp = r A: the loss is its own derivative
    loss = -_times(_ratio(p, tensors), tensors)
    return loss, loss.clone()


def _ppo(p: torch.Tensor, tensors: Tensors, config: Mapping[str, float]) -> Values:
    ratio = _ratio(p, tensors)
    free = _times(ratio, tensors)
    clipped = _times(ratio.clamp(config[_LOW], config[_HIGH]), tensors)
    return -torch.minimum(free, clipped), -torch.where(free <= clipped, free, 0.0)


def _gspo(p: torch.Tensor, tensors: Tensors, config: Mapping[str, float]) -> Values:
    mask = tensors["sequence_ratio_mask"]
    counts = torch.where(mask < 0, tensors["advantages"] != 0, mask != 0)
    gaps = torch.where(counts, p - tensors["logprobs"], 0.0)
    ratio = (gaps.sum() / counts.sum().clamp(min=1)).exp().expand_as(p)
    free = _times(ratio, tensors)
    clipped = _times(ratio.clamp(config[_LOW], config[_HIGH]), tensors)
    return -torch.minimum(free, clipped), -torch.where(free <= clipped, free, 0.0)


def _cispo(p: torch.Tensor, tensors: Tensors, config: Mapping[str, float]) -> Values:
    slope = -_times(_ratio(p, tensors).clamp(config[_LOW], config[_HIGH]), tensors)
    return slope * p, slope


def _dro(p: torch.Tensor, tensors: Tensors, config: Mapping[str, float]) -> Values:
    advantages, beta = tensors["advantages"], config["beta"]
    gap = p - tensors["logprobs"]
    return 0.5 * beta * gap.square() - advantages * p, beta * gap - advantages


def _ratio(p: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    return torch.exp(p - tensors["logprobs"])


def _times(ratio: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    """Return ratio times advantage; 0 where the advantage is 0, even if the ratio overflowed."""
    advantages = tensors["advantages"]
    return torch.where(advantages == 0, 0.0, ratio * advantages)


_UNPUBLISHED = {"stable_reinforce"}
_RL_INPUTS = ("logprobs", "advantages")
_CLIP = {_LOW: 0.8, _HIGH: 1.2}
_LOSSES = {
    loss.name: loss
    for loss in (
        Loss("cross_entropy", ("weights",), {}, _cross_entropy),
        Loss("importance_sampling", _RL_INPUTS, {}, _importance_sampling),
        Loss("ppo", _RL_INPUTS, _CLIP, _ppo),
        Loss("cispo", _RL_INPUTS, {_LOW: 0.0, _HIGH: 4.0}, _cispo),
        Loss("gspo", (*_RL_INPUTS, "sequence_ratio_mask"), _CLIP, _gspo, whole=True),
        Loss("dro", _RL_INPUTS, {"beta": 0.05}, _dro),
    )
}
