"""What forward_backward refuses, with the field that is wrong, before it touches a gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.training_cases import sft_data, shaken, train

from tinker_async.data.datum import Datum
from tinker_async.data.model_input import ModelInput
from tinker_async.errors import InvalidInputError
from tinker_async.local.engine.base import BaseModel
from tinker_async.local.tiny import build_tiny

FOUR = [1, 2, 3, 4]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One architecture is enough: what is looked at here comes before the layers, or after them."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    build_tiny("tiny-llama", folder)
    return folder


def floats(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, dtype=np.float32)


def _inputs(name: str) -> str:
    return f"data[1].loss_fn_inputs[{name!r}]"


@pytest.mark.parametrize(
    ("tokens", "inputs", "loss_fn", "field", "says"),
    [
        ([], {"target_tokens": []}, "cross_entropy", "data[1].model_input", "at least one"),
        ([1, 259], {"target_tokens": [1, 2]}, "cross_entropy", "data[1].model_input", "got 259"),
        ([1] * 2049, {"target_tokens": [1] * 2049}, "cross_entropy", "data[1].model_input", "2048"),
        (FOUR, {}, "cross_entropy", _inputs("target_tokens"), "missing"),
        (FOUR, {"target_tokens": [1, 2, 3]}, "cross_entropy", _inputs("target_tokens"), "(3,)"),
        (FOUR, {"target_tokens": [1, 2, 3, 300]}, "cross_entropy", _inputs("target_tokens"), "300"),
        (FOUR, {"target_tokens": [1, 2, 3, -1]}, "cross_entropy", _inputs("target_tokens"), "-1"),
        (
            FOUR,
            {"target_tokens": floats(1, 2, 3, 4)},
            "cross_entropy",
            _inputs("target_tokens"),
            "int64",
        ),
        (
            FOUR,
            {"target_tokens": np.ones((4, 2, 1), dtype=np.int64)},
            "cross_entropy",
            _inputs("target_tokens"),
            "(4, 2, 1)",
        ),
        (
            FOUR,
            {"target_tokens": np.ones((4, 0), dtype=np.int64)},
            "cross_entropy",
            _inputs("target_tokens"),
            "(4, 0)",
        ),
        (
            FOUR,
            {"target_tokens": np.ones((4, 2), dtype=np.int64)},
            "cross_entropy",
            _inputs("weights"),
            "required",
        ),
        (
            FOUR,
            {"target_tokens": FOUR, "weights": [1.0, 1.0]},
            "cross_entropy",
            _inputs("weights"),
            "(2,)",
        ),
        (
            FOUR,
            {"target_tokens": FOUR, "weights": floats(1, np.nan, 1, 1)},
            "cross_entropy",
            _inputs("weights"),
            "nan at [1]",
        ),
        (
            FOUR,
            {"target_tokens": FOUR, "mask": floats(1, 1, 1, 1)},
            "cross_entropy",
            _inputs("mask"),
            "target_tokens, weights",
        ),
        (
            FOUR,
            {"target_tokens": FOUR, "advantages": floats(1, 1, 1, 1)},
            "ppo",
            _inputs("logprobs"),
            "missing",
        ),
        (
            FOUR,
            {
                "target_tokens": FOUR,
                "logprobs": floats(-1, -1, -1, -1),
                "advantages": floats(1, 1, 1, np.inf),
            },
            "cispo",
            _inputs("advantages"),
            "inf at [3]",
        ),
    ],
)
def test_wrong_data_is_refused_by_field(
    base: BaseModel, tokens: list[int], inputs: dict[str, Any], loss_fn: str, field: str, says: str
) -> None:
    """The second of two data is wrong: it is named, and the first one added no gradient."""
    good: dict[str, Any] = {"target_tokens": FOUR}
    if loss_fn != "cross_entropy":
        good |= {"logprobs": floats(-1, -1, -1, -1), "advantages": floats(1, 1, 1, 1)}
    model = shaken(base)
    data = [Datum(ModelInput.from_ints(FOUR), good), Datum(ModelInput.from_ints(tokens), inputs)]

    with pytest.raises(InvalidInputError) as caught:
        train(base, model, data, loss_fn)

    assert field == caught.value.field
    assert says in str(caught.value)
    assert all(parameter.grad is None for parameter in model.parameters)


def test_no_data_is_refused(base: BaseModel) -> None:
    """An empty batch has no loss."""
    with pytest.raises(InvalidInputError) as caught:
        train(base, shaken(base), [])
    assert "data" == caught.value.field


def test_an_unknown_loss_is_refused(base: BaseModel) -> None:
    """The names of all losses are in the message."""
    with pytest.raises(InvalidInputError, match="importance_sampling") as caught:
        train(base, shaken(base), sft_data([3]), "no_such_loss")
    assert "loss_fn" == caught.value.field


def test_token_zero_is_a_token(base: BaseModel) -> None:
    """Rows are padded by length, not by value: zeros inside and at the end count."""
    model = shaken(base)
    zeros = Datum(ModelInput.from_ints([5, 0, 0]), {"target_tokens": [0, 0, 0]})
    longer = sft_data([9])[0]
    alone = train(base, model, [zeros]).loss_fn_outputs[0]["logprobs"].to_numpy()
    padded = train(base, model, [zeros, longer]).loss_fn_outputs[0]["logprobs"].to_numpy()
    assert (3,) == alone.shape
    np.testing.assert_allclose(alone, padded, atol=1e-5)
