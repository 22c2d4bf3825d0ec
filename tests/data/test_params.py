"""Parameters are checked when they are made."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tinker_async.data.datum import Datum
from tinker_async.data.model_input import ModelInput
from tinker_async.data.optimizers import DimuonParams
from tinker_async.data.params import AdamParams, LoraConfig, SamplingParams
from tinker_async.errors import InvalidInputError


@pytest.mark.parametrize(
    ("cls", "fields", "field"),
    [
        (LoraConfig, {"rank": 0}, "rank"),
        (
            LoraConfig,
            {"train_mlp": False, "train_attn": False, "train_unembed": False},
            "train_mlp",
        ),
        (AdamParams, {"learning_rate": -1.0}, "learning_rate"),
        (AdamParams, {"learning_rate": math.nan}, "learning_rate"),
        (AdamParams, {"beta1": 1.0}, "beta1"),
        (AdamParams, {"beta2": -0.1}, "beta2"),
        (AdamParams, {"eps": -1e-9}, "eps"),
        (AdamParams, {"weight_decay": math.inf}, "weight_decay"),
        (AdamParams, {"grad_clip_norm": -1.0}, "grad_clip_norm"),
        (SamplingParams, {"max_tokens": 0}, "max_tokens"),
        (SamplingParams, {"temperature": -0.5}, "temperature"),
        (SamplingParams, {"temperature": math.nan}, "temperature"),
        (SamplingParams, {"top_k": 0}, "top_k"),
        (SamplingParams, {"top_p": 0.0}, "top_p"),
        (SamplingParams, {"top_p": 1.5}, "top_p"),
        (SamplingParams, {"stop": ["a", 1]}, "stop"),
        (SamplingParams, {"stop": [1.5]}, "stop"),
        (SamplingParams, {"stop": 5}, "stop"),
        (SamplingParams, {"max_tokens": 1.5}, "max_tokens"),
        (SamplingParams, {"max_tokens": "8"}, "max_tokens"),
        (SamplingParams, {"seed": "1"}, "seed"),
        (SamplingParams, {"top_k": 2.5}, "top_k"),
        (SamplingParams, {"top_p": "1"}, "top_p"),
        (SamplingParams, {"temperature": "hot"}, "temperature"),
        (SamplingParams, {"temperature": True}, "temperature"),
        (AdamParams, {"learning_rate": "1e-3"}, "learning_rate"),
        (AdamParams, {"beta1": None}, "beta1"),
        (DimuonParams, {"learning_rate": "1e-3"}, "learning_rate"),
        (Datum, {"model_input": [1, 2]}, "model_input"),
        (Datum, {"model_input": ModelInput.from_ints([1]), "loss_fn_inputs": 5}, "loss_fn_inputs"),
        (LoraConfig, {"rank": "8"}, "rank"),
        (LoraConfig, {"rank": 8.0}, "rank"),
        (LoraConfig, {"seed": 1.5}, "seed"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(
    cls: type[Any], fields: dict[str, Any], field: str
) -> None:
    """The error's field is the argument's name."""
    with pytest.raises(InvalidInputError) as caught:
        cls(**fields)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (LoraConfig, {"rank": 1, "train_mlp": False, "train_attn": False}),
        (AdamParams, {"learning_rate": 0.0, "beta1": 0.0, "eps": 0.0}),
        (SamplingParams, {"max_tokens": 1, "temperature": 0.0, "top_k": 1, "top_p": 1.0}),
        (SamplingParams, {"top_k": -1, "seed": -(2**63)}),
    ],
)
def test_the_ends_of_the_ranges_are_allowed(cls: type[Any], fields: dict[str, Any]) -> None:
    """Limits are inclusive where the documentation says so."""
    params = cls(**fields)

    assert fields == {name: getattr(params, name) for name in fields}


@pytest.mark.parametrize(
    ("stop", "kept"),
    [(None, None), ("a", "a"), ([], ()), (["a"], ("a",)), (np.array([1, 2]), (1, 2))],
)
def test_stop_keeps_its_kind(stop: Any, kept: Any) -> None:
    """None, a string, no stops at all, strings and token ids stay told apart."""
    assert kept == SamplingParams(stop=stop).stop
