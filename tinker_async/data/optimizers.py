"""Optimizers: which one a model has, and the parameters of a step.

The families that are known here are types; any other is a mapping with a `type`, passed on as it
is. The rule: what is sent is plain JSON, checked before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, TypeAlias

import msgspec

from tinker_async.data.params import AdamParams
from tinker_async.errors import InvalidInputError

_ADAM = "adamw"


class AdamOptimizerConfig(msgspec.Struct, frozen=True, tag="adamw"):
    """A model trained by AdamW, as every model is unless something else is asked for."""


class DimuonOptimizerConfig(msgspec.Struct, frozen=True, tag="dimuon"):
    """A model trained by Dimuon."""

    version: int = 1

    def __post_init__(self) -> None:
        if self.version != 1:
            raise InvalidInputError(
                f"version: only version 1 of Dimuon is known, got {self.version}", field="version"
            )


class DimuonParams(msgspec.Struct, frozen=True, tag="dimuon"):
    """One Dimuon step, for a model that was made with `DimuonOptimizerConfig`.

    Args:
        learning_rate: Size of the step.
        grad_clip_norm: Bounds the global gradient norm; 0 or less leaves it free.
        beta1: Of the momentum's moving average, in [0, 1).

    Raises:
        InvalidInputError: A number is out of its range.
    """

    learning_rate: float
    grad_clip_norm: float = 0.0
    beta1: float = 0.9

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            number = isinstance(value, Real) and not isinstance(value, bool)
            if not number or not math.isfinite(value):
                raise InvalidInputError(
                    f"{name}: must be a finite number, got {value!r}", field=name
                )
        if self.learning_rate < 0:
            raise InvalidInputError("learning_rate: must not be negative", field="learning_rate")
        if not 0 <= self.beta1 < 1:
            raise InvalidInputError("beta1: must be in [0, 1)", field="beta1")


OptimizerConfig: TypeAlias = AdamOptimizerConfig | DimuonOptimizerConfig | Mapping[str, Any]
"""The optimizer of a model; a mapping with a `type` is of a family that is not known here."""

OptimParams: TypeAlias = AdamParams | DimuonParams | Mapping[str, Any]
"""Parameters of a step; a mapping with a `type` is of a family that is not known here."""


def config_to_send(config: OptimizerConfig | None) -> dict[str, Any] | None:
    """Return the `optimizer_config` of a request; None for AdamW, which is the default.

    Raises:
        InvalidInputError: It is none; the field is `optimizer`.
    """
    if config is None:
        return None
    found = _as_mapping(config, "optimizer", (AdamOptimizerConfig, DimuonOptimizerConfig))
    return None if found == {"type": _ADAM} else found


def family_of(config: OptimizerConfig | None) -> str:
    """Return the `type` of a checked config."""
    return str((config_to_send(config) or {"type": _ADAM})["type"])


def params_to_send(params: OptimParams) -> tuple[AdamParams | None, dict[str, Any] | None]:
    """Return `adam_params` and `optimizer_params` of a request; exactly one is not None.

    Raises:
        InvalidInputError: They are none; the field is `optim_params`.
    """
    if isinstance(params, AdamParams):
        return params, None
    return None, _as_mapping(params, "optim_params", (AdamParams, DimuonParams))


def check_params_fit(params: OptimParams, family: str) -> None:
    """Check that a step's parameters are those of the model's optimizer.

    Raises:
        InvalidInputError: They are those of another; the field is `optim_params`.
    """
    adam, other = params_to_send(params)
    given = _ADAM if adam is not None or other is None else other["type"]
    if given != family:
        raise InvalidInputError(
            f"optim_params: these are parameters of {given}, but the model's optimizer is {family}",
            field="optim_params",
            hint="the optimizer is chosen when the model is made, with `optimizer=`",
        )


def _as_mapping(value: object, field: str, known: tuple[type[Any], ...]) -> dict[str, Any]:
    if isinstance(value, known):
        found: dict[str, Any] = msgspec.to_builtins(value)
        return found
    names = " or ".join(one.__name__ for one in known)
    if not isinstance(value, Mapping):
        raise InvalidInputError(
            f"{field}: must be {names}, or a mapping, got {type(value).__name__}", field=field
        )
    if not isinstance(value.get("type"), str) or not value["type"]:
        raise InvalidInputError(
            f"{field}: a mapping needs a `type`, the name of the optimizer's family",
            field=field,
            hint=f"for the families that are known here use {names}",
        )
    found = dict(value)
    try:
        msgspec.json.encode(found)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInputError(f"{field}: cannot be sent as JSON: {error}", field=field) from None
    return found
