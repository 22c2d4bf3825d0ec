"""What the server may ask of the engine thread: plain data, no torch.

A *model* is a LoRA adapter being trained, with its optimizer; a *snapshot* is an
immutable adapter for sampling. Ids are the server's and opaque here. A job that
fails because of what the user sent raises `InvalidInputError`; anything else is
the engine's fault.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from tinker_async.data.custom_loss import CustomLossGraph, CustomLossInput
from tinker_async.data.datum import Datum
from tinker_async.data.params import AdamParams, LoraConfig, SamplingParams
from tinker_async.data.tensors import TensorData


class ModelCard(msgspec.Struct, frozen=True):
    """What the engine serves. Given once, when the base model is loaded."""

    name: str
    architecture: str
    vocab_size: int
    max_context_length: int
    """in tokens"""
    eos_token_ids: tuple[int, ...]


class CreateModel(msgspec.Struct, frozen=True):
    """Make a fresh adapter (B = 0, so that it starts as the base model). Gives None."""

    model_id: str
    lora: LoraConfig


class LoadModel(msgspec.Struct, frozen=True):
    """Make an adapter from a training checkpoint folder, or load into an existing one.

    With `optimizer` the moments and step counts come back bit-exact; without, they start
    afresh. Gives the `LoraConfig` of the checkpoint.
    """

    model_id: str
    folder: Path
    optimizer: bool


class DropModel(msgspec.Struct, frozen=True):
    """Free an adapter and its optimizer. Gives None."""

    model_id: str


class CustomLoss(msgspec.Struct, frozen=True):
    """A loss that a client has uploaded, checked."""

    inputs: list[CustomLossInput]
    graph: CustomLossGraph


class ForwardBackward(msgspec.Struct, frozen=True):
    """Run the loss over data and accumulate gradients. Gives a `ForwardBackwardOutput`."""

    model_id: str
    data: list[Datum]
    loss_fn: str
    loss_fn_config: dict[str, float | str]
    forward_only: bool
    custom: CustomLoss | None = None
    """What the loss `custom` computes"""


class OptimStep(msgspec.Struct, frozen=True):
    """Apply one AdamW step and clear the gradients. Gives an `OptimStepResponse`."""

    model_id: str
    adam: AdamParams


class SaveTraining(msgspec.Struct, frozen=True):
    """Write adapter, optimizer and description into an existing empty folder. Gives bytes written."""

    model_id: str
    folder: Path


class SaveSampler(msgspec.Struct, frozen=True):
    """Write the adapter alone, in PEFT layout, into an existing empty folder. Gives bytes written."""

    model_id: str
    folder: Path


class TakeSnapshot(msgspec.Struct, frozen=True):
    """Copy a model's adapter as it is now. Gives None."""

    model_id: str
    snapshot_id: str


class LoadSnapshot(msgspec.Struct, frozen=True):
    """Make a snapshot from a checkpoint folder of either kind. Gives None."""

    snapshot_id: str
    folder: Path


class DropSnapshot(msgspec.Struct, frozen=True):
    """Free a snapshot; samples already running on it finish. Gives None."""

    snapshot_id: str


class Sample(msgspec.Struct, frozen=True):
    """Draw sequences. Gives a `SampleResponse`.

    `snapshot_id` None samples from the base model. Sequence i uses `params.seed + i`.
    """

    prompt: npt.NDArray[np.int32]
    params: SamplingParams
    snapshot_id: str | None = None
    num_samples: int = 1
    prompt_logprobs: bool = False
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    target_prompt_logprobs: TensorData | None = None
    """int64 `[prompt - 1, K]`: tokens to score at each position; -1 is none"""
    prompt_alt_tokens_k: int = 0
    """Draws at each prompt position after the first"""
    key: str = ""
    """Names the job for `EngineThread.cancel_sample`."""


Job: TypeAlias = (
    CreateModel
    | LoadModel
    | DropModel
    | ForwardBackward
    | OptimStep
    | SaveTraining
    | SaveSampler
    | TakeSnapshot
    | LoadSnapshot
    | DropSnapshot
    | Sample
)
Result: TypeAlias = Any
"""What the job's docstring says, or the exception it raised."""
