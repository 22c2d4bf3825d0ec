"""One training example: what the model reads, and the tensors its loss needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from tinker_async.data import given
from tinker_async.data.model_input import ModelInput
from tinker_async.data.provenance import (
    ProvenanceSpan,
    ProvenanceSpans,
    check_tiling,
    spans_tuple,
)
from tinker_async.data.tensors import TensorData, TensorLike
from tinker_async.errors import InvalidInputError


def _no_inputs() -> dict[str, TensorData]:
    """A factory of our own: with `dict` itself the field would not be sent when it is empty."""
    return {}


class Datum(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One training example.

    Args:
        model_input: The tokens the model reads, N positions.
        loss_fn_inputs: Tensors by name; lists, numpy arrays and torch tensors are
            wrapped. `target_tokens[t]` is what position t shall predict (already
            shifted), so per-token tensors have shape `[N]`, or `[N, K]` for
            distributions.
        model_input_spans: Where the tokens came from; `with_provenance` sets and checks it.
        loss_fn_input_spans: The same for `target_tokens`.

    Raises:
        InvalidInputError: A field is of another type, a value cannot be made a tensor, or only one kind of spans is given.
    """

    model_input: ModelInput
    loss_fn_inputs: dict[str, TensorData] = msgspec.field(default_factory=_no_inputs)
    model_input_spans: tuple[ProvenanceSpan, ...] | None = None
    loss_fn_input_spans: tuple[ProvenanceSpan, ...] | None = None

    if TYPE_CHECKING:

        def __init__(
            self,
            model_input: ModelInput,
            loss_fn_inputs: Mapping[str, TensorLike] = ...,
            model_input_spans: ProvenanceSpans | None = None,
            loss_fn_input_spans: ProvenanceSpans | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        for field, kind in (("model_input", ModelInput), ("loss_fn_inputs", Mapping)):
            value = getattr(self, field)
            if not isinstance(value, kind):
                raise InvalidInputError(
                    f"{field}: expected a {kind.__name__}, got {type(value).__name__}", field=field
                )
        for key in self.loss_fn_inputs:
            if type(key) is not str:
                given.text(key, "loss_fn_inputs", hint="its keys are names, such as target_tokens")
        tensors = {
            key: TensorData.from_value(key, value) for key, value in self.loss_fn_inputs.items()
        }
        msgspec.structs.force_setattr(self, "loss_fn_inputs", tensors)
        if self.model_input_spans is not None or self.loss_fn_input_spans is not None:
            self._check_spans()

    def _check_spans(self) -> None:
        for field in ("model_input_spans", "loss_fn_input_spans"):
            spans = getattr(self, field)
            if spans is None:
                raise InvalidInputError(
                    f"{field}: is missing: provenance is of both fields or of none",
                    field=field,
                    hint="use datum.with_provenance(model_input=..., loss_fn_inputs=...)",
                )
            msgspec.structs.force_setattr(self, field, spans_tuple(spans, field))

    def with_provenance(
        self, model_input: ProvenanceSpans, loss_fn_inputs: ProvenanceSpans
    ) -> Datum:
        """Return a copy that says which sampled sequences its tokens came from.

        Args:
            model_input: Runs that cover the input's tokens, in order.
            loss_fn_inputs: Runs that cover `target_tokens`, in order.

        Raises:
            InvalidInputError: Something else is among them, or they do not cover the field
                exactly (`target_tokens` is looked at where it has one dimension).
        """
        inputs = spans_tuple(model_input, "model_input")
        targets = spans_tuple(loss_fn_inputs, "loss_fn_inputs")
        check_tiling(inputs, self.model_input.length, "model_input")
        tensor = self.loss_fn_inputs.get("target_tokens")
        if tensor is not None and len(tensor.dense_shape) == 1:
            check_tiling(targets, tensor.dense_shape[0], "loss_fn_inputs")
        return Datum(self.model_input, self.loss_fn_inputs, inputs, targets)

    @property
    def nbytes(self) -> int:
        """Estimated size on the wire in bytes: 4 a token, files, and the tensors' buffers."""
        size = self.model_input.nbytes
        for tensor in self.loss_fn_inputs.values():
            size += tensor.nbytes
        return size
