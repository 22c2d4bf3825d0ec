"""One training example: what the model reads, and the tensors its loss needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from tinker_async.data.model_input import ModelInput
from tinker_async.data.tensors import TensorData, TensorLike


class Datum(msgspec.Struct, frozen=True, gc=False):
    """One training example.

    Args:
        model_input: The tokens the model reads, N positions.
        loss_fn_inputs: Tensors by name; lists, numpy arrays and torch tensors are
            wrapped. `target_tokens[t]` is what position t shall predict (already
            shifted), so per-token tensors have shape `[N]`, or `[N, K]` for
            distributions.

    Raises:
        InvalidInputError: A value cannot be made a tensor.
    """

    model_input: ModelInput
    loss_fn_inputs: dict[str, TensorData]

    if TYPE_CHECKING:

        def __init__(
            self, model_input: ModelInput, loss_fn_inputs: Mapping[str, TensorLike]
        ) -> None: ...

    def __post_init__(self) -> None:
        tensors = {
            key: TensorData.from_value(key, value) for key, value in self.loss_fn_inputs.items()
        }
        msgspec.structs.force_setattr(self, "loss_fn_inputs", tensors)

    @property
    def nbytes(self) -> int:
        """Estimated size on the wire in bytes: 4 a token, plus the tensors' buffers."""
        size = 4 * self.model_input.length
        for tensor in self.loss_fn_inputs.values():
            size += tensor.nbytes
        return size
