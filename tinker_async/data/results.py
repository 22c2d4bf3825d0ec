"""What operations give back. Arrays are views of the received body where that is possible."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from tinker_async.data.console_urls import checkpoint_page, playground_page
from tinker_async.data.tensors import TensorData


class ForwardBackwardOutput(msgspec.Struct, frozen=True):
    """Result of `forward` and `forward_backward`.

    `loss_fn_outputs[i]` belongs to datum i; `"logprobs"` is float32 with the shape of
    its `target_tokens`. `metrics` are named `name:reduction`, such as `loss:sum`.
    """

    loss_fn_output_type: str
    loss_fn_outputs: list[dict[str, TensorData]]
    metrics: dict[str, float]


class OptimStepResponse(msgspec.Struct, frozen=True):
    """Result of `optim_step`; which metrics there are is the server's choice."""

    metrics: dict[str, float] | None = None


class TopkLogprobs(msgspec.Struct, frozen=True, eq=False, gc=False):
    """The k most likely tokens at each position, best first.

    An empty cell is token 0 with log-prob -99999.0; a row that starts with one is a
    position without values.
    """

    token_ids: npt.NDArray[np.int32]
    """int32 `[length, k]`"""
    logprobs: npt.NDArray[np.float32]
    """float32 `[length, k]`, natural logarithm"""

    EMPTY = -99999.0

    @property
    def length(self) -> int:
        """Number of positions."""
        return int(self.token_ids.shape[0])

    def tolist(self) -> list[list[tuple[int, float]] | None]:
        """Return pairs (token id, log-prob) by position; None where there are no values."""
        rows: list[list[tuple[int, float]] | None] = []
        for ids, values in zip(self.token_ids.tolist(), self.logprobs.tolist(), strict=True):
            cells = [
                (token, value)
                for token, value in zip(ids, values, strict=True)
                if not (token == 0 and value == self.EMPTY)
            ]
            rows.append(cells if cells and values[0] != self.EMPTY else None)
        return rows

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TopkLogprobs):
            return NotImplemented
        return np.array_equal(self.token_ids, other.token_ids) and np.array_equal(
            self.logprobs, other.logprobs
        )

    __hash__ = None  # type: ignore[assignment]  # buffers can change: not hashable


class SampledSequence(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One sample. `tokens` includes the stop token or the token that completed a stop string."""

    tokens: npt.NDArray[np.int32]
    """int32 `[length]`"""
    logprobs: npt.NDArray[np.float32] | None
    """float32 `[length]`, of the temperature-scaled distribution; None when not reported"""
    stop_reason: str
    """`stop` or `length`; an unknown value is kept as the server wrote it"""
    sequence_id: str | None = None
    topk_logprobs: TopkLogprobs | None = None

    @property
    def tokens_np(self) -> npt.NDArray[np.int32]:
        """Another name of `tokens`."""
        return self.tokens

    @property
    def logprobs_np(self) -> npt.NDArray[np.float32] | None:
        """Another name of `logprobs`."""
        return self.logprobs

    @property
    def topk_logprobs_np(self) -> TopkLogprobs | None:
        """Another name of `topk_logprobs`."""
        return self.topk_logprobs


class PromptAltTokens(msgspec.Struct, frozen=True, gc=False):
    """Draws from the model's own distribution at every prompt position after the first.

    Row i is about prompt position i + 1: alternatives to the token that is there.
    """

    tokens: TensorData
    """int64 `[prompt length - 1, k]`"""
    logprobs: TensorData
    """float32 of the same shape: the model's log-prob of each draw"""


class SampleResponse(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Result of `sample`."""

    sequences: list[SampledSequence]
    prompt_logprobs: npt.NDArray[np.float32] | None = None
    """float32 `[prompt length]`; NaN where there is none, as at position 0"""
    topk_prompt_logprobs: TopkLogprobs | None = None
    target_prompt_logprobs: TensorData | None = None
    """float32 in the shape and layout of what was asked for; 0.0 where that was -1"""
    prompt_cache_hit_tokens: int = 0
    prompt_alt_tokens: PromptAltTokens | None = None

    @property
    def prompt_logprobs_np(self) -> npt.NDArray[np.float32] | None:
        """Another name of `prompt_logprobs`."""
        return self.prompt_logprobs

    @property
    def topk_prompt_logprobs_np(self) -> TopkLogprobs | None:
        """Another name of `topk_prompt_logprobs`."""
        return self.topk_prompt_logprobs


class SaveWeightsResponse(msgspec.Struct, frozen=True):
    """Result of `save_state`: the path of a checkpoint for training."""

    path: str

    def get_console_url(self) -> str:
        """Return the checkpoint's page in the Tinker service's web console."""
        return checkpoint_page(self.path)


class LoadWeightsResponse(msgspec.Struct, frozen=True):
    """Result of `load_state` and `load_state_with_optimizer`."""

    path: str | None = None
    model_id: str | None = None


class SaveWeightsForSamplerResponse(msgspec.Struct, frozen=True):
    """Result of `save_weights_for_sampler`: the path of a checkpoint for sampling."""

    path: str

    def get_console_url(self) -> str:
        """Return the checkpoint's page in the Tinker service's web console."""
        return checkpoint_page(self.path)

    def get_playground_url(self) -> str:
        """Return the page of that console where one can talk to the checkpoint."""
        return playground_page(self.path)


class SaveWeightsExternalResponse(msgspec.Struct, frozen=True):
    """Result of `save_weights_external`: the path of weights in a form for other programs."""

    path: str
    size_bytes: int | None = None


class UnloadModelResponse(msgspec.Struct, frozen=True):
    """Result of `unload_model`."""

    model_id: str


class ModelData(msgspec.Struct, frozen=True):
    """What a model is."""

    arch: str | None = None
    model_name: str | None = None
    tokenizer_id: str | None = None


class GetInfoResponse(msgspec.Struct, frozen=True):
    """Result of `get_info`."""

    model_id: str
    model_data: ModelData
    is_lora: bool | None = None
    lora_rank: int | None = None
    model_name: str | None = None
    optimizer_config: dict[str, Any] = msgspec.field(default_factory=lambda: {"type": "adamw"})


class SupportedModel(msgspec.Struct, frozen=True):
    """A base model that the server offers."""

    model_name: str | None = None
    max_context_length: int | None = None
    trainable: bool | None = None
    sampleable: bool | None = None


class GetServerCapabilitiesResponse(msgspec.Struct, frozen=True):
    """Result of `get_server_capabilities`."""

    supported_models: list[SupportedModel] = msgspec.field(default_factory=list)
