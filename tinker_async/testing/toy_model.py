"""The toy model: a table of logits, one row for each last token, trained by AdamW.

It has the form of a LoRA model: a fixed base, and a difference that starts at zero.
The rule: everything is float32 in a fixed order, so that the same requests give the
same bits, the sampler and the trainer agree on log-probs, and a restored model goes on
as if nothing had happened. Rows are never changed, only replaced: a snapshot is a
copied dict.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from tinker_async.data.datum import Datum
from tinker_async.data.optimizers import DimuonParams
from tinker_async.data.params import AdamParams
from tinker_async.data.results import ForwardBackwardOutput, OptimStepResponse
from tinker_async.data.tensors import TensorData
from tinker_async.errors import InvalidInputError
from tinker_async.loss_graphs import GraphLoss
from tinker_async.testing.toy_inputs import toy_tokens
from tinker_async.testing.toy_losses import ToyLoss, toy_loss

Floats: TypeAlias = npt.NDArray[np.float32]
Rows: TypeAlias = dict[int, Floats]
"""Logits, moments or gradients by last token; a row that is not there is zero."""

VOCABULARY = 256
"""Tokens are bytes; any other token id counts as its lowest byte."""
END_OF_TEXT = 0
"""The token that ends a sample unless `stop` says otherwise."""
STEP_SCALE = 100.0
"""A step goes this many times as far as the learning rate says: a table has no depth that
amplifies, and usual learning rates shall show within a few steps."""


class ToyWeights:
    """Weights that do not change any more. Log-probs are computed once for each row."""

    __slots__ = ("_logprobs", "base_model", "rows")

    def __init__(self, base_model: str, rows: Rows) -> None:
        self.base_model = base_model
        self.rows = rows
        """The difference to the base model, float32 `[VOCABULARY]` each."""
        self._logprobs: Rows = {}

    def logits(self, token: int) -> Floats:
        """Return the logits after a token, float32 `[VOCABULARY]`."""
        token %= VOCABULARY
        base = _base_row(self.base_model, token)
        row = self.rows.get(token)
        return base if row is None else base + row

    def logprobs(self, token: int) -> Floats:
        """Return the log-probs after a token at temperature 1, float32 `[VOCABULARY]`."""
        token %= VOCABULARY
        row = self._logprobs.get(token)
        if row is None:
            row = self._logprobs[token] = log_softmax(self.logits(token))
        return row

    @property
    def size_bytes(self) -> int:
        """What a checkpoint of these weights would take."""
        return 4 * VOCABULARY * len(self.rows)


class ToyState(msgspec.Struct, frozen=True, eq=False):
    """All that training needs to go on: what a checkpoint with optimizer holds."""

    weights: ToyWeights
    first_moments: Rows
    second_moments: Rows
    steps: int


class ToyModel:
    """A model in training."""

    def __init__(self, weights: ToyWeights) -> None:
        self.weights = weights
        self._first: Rows = {}
        self._second: Rows = {}
        self._steps = 0
        self._gradients: Rows = {}

    def state(self) -> ToyState:
        """Return what a checkpoint holds. Waiting gradients are not part of it."""
        return ToyState(self.weights, self._first, self._second, self._steps)

    def restore(self, state: ToyState, *, optimizer: bool) -> None:
        """Go back to a checkpoint; without `optimizer` its moments start afresh."""
        self.weights = state.weights
        self._gradients = {}
        self._first = state.first_moments if optimizer else {}
        self._second = state.second_moments if optimizer else {}
        self._steps = state.steps if optimizer else 0

    def forward_backward(
        self,
        data: Sequence[Datum],
        loss: str | ToyLoss | GraphLoss,
        config: dict[str, Any] | None = None,
        *,
        forward_only: bool = False,
    ) -> ForwardBackwardOutput:
        """Run a loss over data and, unless `forward_only`, add its gradients to those that wait.

        Raises:
            InvalidInputError: The loss, its settings or the data are wrong; nothing was added.
        """
        if not data:
            raise InvalidInputError("data: must not be empty", field="data")
        if isinstance(loss, str):
            loss = toy_loss(loss, config or {})
        gradients = dict(self._gradients)
        outputs, total, tokens = [], 0.0, 0
        for index, datum in enumerate(data):
            logprobs, loss_sum = self._one(datum, loss, f"data[{index}]", gradients)
            outputs.append({"logprobs": TensorData.from_numpy(logprobs)})
            total += loss_sum
            tokens += logprobs.shape[0]
        if not forward_only:
            self._gradients = gradients
        return ForwardBackwardOutput(
            loss_fn_output_type="ArrayRecord",
            loss_fn_outputs=outputs,
            metrics={"loss:sum": total, "num_tokens:sum": float(tokens)}
            | (loss.reduced() if isinstance(loss, GraphLoss) else {}),
        )

    def _one(
        self, datum: Datum, loss: ToyLoss | GraphLoss, where: str, gradients: Rows
    ) -> tuple[Floats, float]:
        tokens = toy_tokens(datum.model_input) % VOCABULARY
        targets = _targets(datum, len(tokens), where)
        inputs = loss.read(datum.loss_fn_inputs, targets.shape, where)
        rows = np.stack([self.weights.logprobs(int(token)) for token in tokens])
        flat = targets.reshape(len(tokens), -1)
        logprobs = np.take_along_axis(rows, flat, axis=1).reshape(targets.shape)
        losses, slopes = loss(logprobs, inputs)
        if not (np.isfinite(losses).all() and np.isfinite(slopes).all()):
            raise InvalidInputError(f"{where}: the loss is not finite", field=where)
        slopes = slopes.reshape(flat.shape)
        by_logits = -slopes.sum(axis=1, dtype=np.float32, keepdims=True) * np.exp(rows)
        for position, token in enumerate(tokens.tolist()):
            np.add.at(by_logits[position], flat[position], slopes[position])
            known = gradients.get(token)
            row = by_logits[position]
            gradients[token] = row if known is None else known + row
        return logprobs, float(losses.sum(dtype=np.float64))

    def optim_step(self, adam: AdamParams) -> OptimStepResponse:
        """Apply one AdamW step and clear the gradients. Without gradients nothing changes."""
        gradients, self._gradients = self._gradients, {}
        square = sum(
            (float(np.dot(gradients[token], gradients[token])) for token in sorted(gradients)), 0.0
        )
        norm = square**0.5
        if gradients:
            limit = adam.grad_clip_norm
            scale = limit / norm if limit and norm > limit else 1.0
            self._step(gradients, adam, np.float32(scale))
        return OptimStepResponse(metrics={"grad_norm": norm, "learning_rate": adam.learning_rate})

    def dimuon_step(self, params: DimuonParams) -> OptimStepResponse:
        """Apply a toy of a Dimuon step: momentum, each row scaled to the same size."""
        f = np.float32
        gradients, self._gradients = self._gradients, {}
        norm = sum(float(np.dot(row, row)) for row in gradients.values()) ** 0.5
        limit = params.grad_clip_norm
        scale = f(limit / norm if 0 < limit < norm else 1.0)
        nothing = np.zeros(VOCABULARY, np.float32)
        rows, momenta, beta = dict(self.weights.rows), dict(self._first), f(params.beta1)
        for token in sorted({*gradients, *momenta}):
            momentum = beta * momenta.get(token, nothing) + (1 - beta) * (
                gradients.get(token, nothing) * scale
            )
            size = np.sqrt((momentum * momentum).mean()) + _TINY
            rate = f(params.learning_rate * STEP_SCALE)
            rows[token] = rows.get(token, nothing) - rate * momentum / size
            momenta[token] = momentum
        self.weights = ToyWeights(self.weights.base_model, rows)
        self._first = momenta
        return OptimStepResponse(metrics={"grad_norm": norm, "learning_rate": params.learning_rate})

    def _step(self, gradients: Rows, adam: AdamParams, scale: np.float32) -> None:
        f = np.float32
        self._steps += 1
        rate = f(adam.learning_rate * STEP_SCALE)
        keep = f(1 - adam.learning_rate * adam.weight_decay)
        beta1, beta2 = f(adam.beta1), f(adam.beta2)
        first_part = f(1 - adam.beta1**self._steps)
        second_part = f(1 - adam.beta2**self._steps)
        nothing = np.zeros(VOCABULARY, np.float32)
        rows, first, second = dict(self.weights.rows), dict(self._first), dict(self._second)
        for token in sorted({*gradients, *rows, *first}):
            gradient = gradients.get(token, nothing) * scale
            m = beta1 * first.get(token, nothing) + (1 - beta1) * gradient
            v = beta2 * second.get(token, nothing) + (1 - beta2) * gradient * gradient
            step = (m / first_part) / (np.sqrt(v / second_part) + f(adam.eps) + _TINY)
            rows[token] = rows.get(token, nothing) * keep - rate * step
            first[token], second[token] = m, v
        self.weights = ToyWeights(self.weights.base_model, rows)
        self._first, self._second = first, second


_TINY = np.float32(1e-30)
"""Keeps 0/0 out of a step with `eps` 0."""


def log_softmax(logits: Floats) -> Floats:
    """Return the log-probs of logits, float32."""
    shifted = logits - logits.max()
    result: Floats = shifted - np.log(np.exp(shifted).sum(dtype=np.float32))
    return result


@lru_cache(maxsize=4 * VOCABULARY)
def _base_row(base_model: str, token: int) -> Floats:
    """Made by whole-number arithmetic: the same on every machine."""
    salt = zlib.crc32(base_model.encode())
    mixed = (np.arange(VOCABULARY, dtype=np.uint64) * 2654435761 + token * 40503 + salt) % 1009
    return (mixed.astype(np.float32) / np.float32(504.5)) - np.float32(1)


def _targets(datum: Datum, length: int, where: str) -> npt.NDArray[np.int64]:
    field = f"{where}.loss_fn_inputs['target_tokens']"
    tensor = datum.loss_fn_inputs.get("target_tokens")
    if length == 0:
        raise InvalidInputError(f"{where}.model_input: must not be empty", field=where)
    if tensor is None or tensor.dtype != "int64":
        raise InvalidInputError(f"{field}: is missing or not int64", field=field)
    targets: npt.NDArray[np.int64] = tensor.to_numpy()
    if targets.ndim not in (1, 2) or targets.shape[0] != length:
        raise InvalidInputError(
            f"{field}: must be [{length}] or [{length}, K], got {list(targets.shape)}", field=field
        )
    return targets % VOCABULARY
