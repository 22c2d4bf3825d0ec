"""Bad training data is refused before anything is sent, naming the field."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinker_async import Datum, InvalidInputError, ModelInput
from tinker_async.plan.checks import check_training_call

TOKENS = ModelInput.from_ints([1, 2, 3])
RL: dict[str, list[Any]] = {
    "target_tokens": [2, 3, 4],
    "logprobs": [0.0, -1, -1],
    "advantages": [0.0, 1, 1],
}


@pytest.mark.parametrize(
    ("data", "loss_fn", "config", "field"),
    [
        ([], "cross_entropy", None, "data"),
        ([Datum(TOKENS, {})], "", None, "loss_fn"),
        ([Datum(ModelInput.empty(), {})], "cross_entropy", None, "data[0].model_input"),
        (
            [Datum(TOKENS, {"weights": [1, 1, 1]})],
            "cross_entropy",
            None,
            "data[0].loss_fn_inputs['target_tokens']",
        ),
        (
            [Datum(TOKENS, {"target_tokens": [1, 2]})],
            "cross_entropy",
            None,
            "data[0].loss_fn_inputs['target_tokens']",
        ),
        (
            [Datum(TOKENS, {"target_tokens": [1, 2, 3], "weights": [1.0, float("nan"), 1]})],
            "cross_entropy",
            None,
            "data[0].loss_fn_inputs['weights']",
        ),
        (
            [
                Datum(TOKENS, {"target_tokens": [1, 2, 3]}),
                Datum(TOKENS, {"target_tokens": np.ones((3, 2), np.int64), "weights": [1, 1, 1]}),
            ],
            "cross_entropy",
            None,
            "data[1].loss_fn_inputs['weights']",
        ),
        (
            [Datum(TOKENS, {"target_tokens": [1, 2, 3], "logprobs": [0, 0, 0]})],
            "importance_sampling",
            None,
            "data[0].loss_fn_inputs['advantages']",
        ),
        ([Datum(TOKENS, RL)], "ppo", {"beta": 1.0}, "loss_fn_config['beta']"),
        ([Datum(TOKENS, RL)], "dro", {"beta": float("inf")}, "loss_fn_config['beta']"),
    ],
)
def test_what_cannot_be_right_is_refused(
    data: list[Datum], loss_fn: str, config: Any, field: str
) -> None:
    """Each case names its field."""
    with pytest.raises(InvalidInputError) as caught:
        check_training_call(data, loss_fn, config)

    assert field == caught.value.field


@pytest.mark.parametrize(
    ("data", "loss_fn", "config"),
    [
        ([Datum(TOKENS, {"target_tokens": [1, 2, 3]})], "cross_entropy", None),
        ([Datum(TOKENS, {"target_tokens": [1, 2, 3], "weights": [-1, 0, 2]})], "cross_entropy", {}),
        ([Datum(TOKENS, RL)], "ppo", {"clip_low_threshold": 0.9}),
        ([Datum(TOKENS, {"values": np.ones(7)})], "a_loss_of_the_future", {"mode": "x"}),
        (
            [
                Datum(
                    TOKENS,
                    {"target_tokens": np.ones((3, 9), np.int64), "weights": np.zeros((3, 9))},
                )
            ],
            "cross_entropy",
            None,
        ),
    ],
)
def test_what_may_be_right_passes(data: list[Datum], loss_fn: str, config: Any) -> None:
    """Unknown losses and keys are the server's to judge."""
    check_training_call(data, loss_fn, config)


def _batch(rows: int, tokens: int) -> list[Datum]:
    """Rows with arrays of their own."""
    return [
        Datum(
            ModelInput.from_ints(np.arange(tokens)),
            {"target_tokens": np.arange(tokens), "weights": np.ones(tokens, np.float32)},
        )
        for _ in range(rows)
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("row", "position"), [(0, 0), (57, 999), (70, 0), (149, 1023)])
def test_one_bad_number_is_found_wherever_it_is(row: int, position: int, value: float) -> None:
    """In any block of a batch that is checked in several, and named."""
    batch = _batch(150, 1024)
    batch[row].loss_fn_inputs["weights"].data[position] = value

    with pytest.raises(InvalidInputError, match="NaN or infinite") as caught:
        check_training_call(batch, "cross_entropy", None)
    assert f"data[{row}].loss_fn_inputs['weights']" == caught.value.field


def test_the_first_bad_datum_is_named_whatever_is_wrong_with_it() -> None:
    """A bad number in one row, a bad shape in a later one."""
    batch = _batch(5, 4)
    batch[1].loss_fn_inputs["weights"].data[2] = np.nan
    batch[3].loss_fn_inputs["weights"] = (
        batch[4].loss_fn_inputs["weights"].from_numpy(np.ones(3, np.float32))
    )

    with pytest.raises(InvalidInputError) as caught:
        check_training_call(batch, "cross_entropy", None)
    assert "data[1].loss_fn_inputs['weights']" == caught.value.field


def test_large_finite_numbers_whose_sum_is_not_finite_pass() -> None:
    """Each number counts, not their sum."""
    batch = _batch(3, 4)
    for datum in batch:
        datum.loss_fn_inputs["weights"].data[:] = np.finfo(np.float32).max

    check_training_call(batch, "cross_entropy", None)


def test_keys_and_losses_that_only_the_server_knows_pass() -> None:
    """Shapes too; but what must be finite must be so for every loss."""
    batch = [Datum(TOKENS, {"rewards": np.ones(7, np.float32)})]
    check_training_call(batch, "a_new_loss", None)

    batch = [Datum(TOKENS, {"advantages": np.asarray([np.nan])})]
    with pytest.raises(InvalidInputError, match="NaN or infinite"):
        check_training_call(batch, "a_new_loss", None)
