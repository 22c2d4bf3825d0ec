"""ModelInput, its chunks, and Datum."""

from __future__ import annotations

import array
from typing import Any

import numpy as np
import pytest

from tinker_async.data.datum import Datum
from tinker_async.data.model_input import EncodedTextChunk, ModelInput, token_array
from tinker_async.data.tensors import TensorData
from tinker_async.errors import InvalidInputError


@pytest.mark.parametrize(
    "tokens",
    [
        [1, 2, 3],
        (1, 2, 3),
        np.array([1, 2, 3], np.int64),
        np.array([1, 2, 3], np.uint16),
        array.array("i", [1, 2, 3]),
        memoryview(array.array("q", [1, 2, 3])),
    ],
    ids=lambda tokens: type(tokens).__name__,
)
def test_token_ids_may_come_in_any_container(tokens: Any) -> None:
    """All become one int32 array."""
    chunk = EncodedTextChunk(token_array(tokens))

    assert (chunk.tokens.dtype.name, chunk.tokens.tolist()) == ("int32", [1, 2, 3])


def test_int32_memory_is_wrapped_not_copied() -> None:
    """The prompt is the caller's memory, from numpy and from torch."""
    torch = pytest.importorskip("torch")
    tokens = np.array([1, 2, 3], np.int32)
    tensor = torch.tensor([4, 5], dtype=torch.int32)

    assert np.shares_memory(tokens, ModelInput.from_ints(tokens).to_numpy())
    assert ModelInput.from_ints(tensor).to_numpy().ctypes.data == tensor.data_ptr()


@pytest.mark.parametrize(
    "tokens",
    [[-1], [2**31], [1.5], ["1"], [[1], [2]], [[1], [2, 3]], [None], [True], np.array(3)],
    ids=str,
)
def test_what_are_no_token_ids_is_refused(tokens: Any) -> None:
    """Wrong types, shapes and ranges name the field."""
    with pytest.raises(InvalidInputError) as caught:
        token_array(tokens, field="prompt")
    assert caught.value.field == "prompt"


def test_appending_leaves_the_original_as_it_was() -> None:
    """Inputs are values: each step gives a new one."""
    first = ModelInput.from_ints([1, 2])

    second = first.append_int(3).append(EncodedTextChunk(token_array([])))
    assert (first.to_ints(), first.length) == ([1, 2], 2)
    assert (second.to_ints(), second.length) == ([1, 2, 3], 3)
    assert len(second.chunks) == 3


def test_an_empty_input_has_no_tokens() -> None:
    """No chunks, no tokens, and still an array."""
    empty = ModelInput.empty()

    assert (empty.length, empty.to_numpy().dtype.name) == (0, "int32")
    assert empty.to_ints() == []


def test_inputs_are_equal_by_their_chunks() -> None:
    """The same tokens in the same chunks; other chunks are another input."""
    one = ModelInput.from_ints([1, 2])

    assert one == ModelInput.from_ints(np.array([1, 2], np.int32))
    assert one != ModelInput.from_ints([1]).append_int(2)
    assert EncodedTextChunk(token_array([1])) != "1"


def test_a_datum_wraps_what_its_loss_needs() -> None:
    """Lists, arrays and tensors become TensorData; arrays keep their memory."""
    weights = np.ones(2, np.float32)

    datum = Datum(ModelInput.from_ints([1, 2]), {"target_tokens": [2, 3], "weights": weights})
    assert TensorData(data=np.array([2, 3]), dtype="int64") == datum.loss_fn_inputs["target_tokens"]
    assert np.shares_memory(weights, datum.loss_fn_inputs["weights"].data)
    assert datum.nbytes == 2 * 4 + 2 * 8 + 2 * 4


def test_a_datum_names_the_input_that_it_cannot_take() -> None:
    """The error points at the key."""
    with pytest.raises(InvalidInputError) as caught:
        Datum(ModelInput.from_ints([1]), {"target_tokens": [0.5]})
    assert caught.value.field == "loss_fn_inputs['target_tokens']"
