"""Data, adapters and a naive judge (peft with full logits and autograd) for the training tests."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import transformers

from tinker_async.data.datum import Datum
from tinker_async.data.model_input import ModelInput
from tinker_async.data.params import LoraConfig
from tinker_async.data.results import ForwardBackwardOutput
from tinker_async.local.engine.adapters import Adapter
from tinker_async.local.engine.base import BaseModel
from tinker_async.local.engine.training import TrainedModel, forward_backward

T = TypeVar("T")


def finish(generator: Generator[None, None, T]) -> T:
    """Run a generator to its end and return its result."""
    while True:
        try:
            next(generator)
        except StopIteration as stop:
            result: T = stop.value
            return result


def train(
    base: BaseModel,
    model: TrainedModel,
    data: Sequence[Datum],
    loss_fn: str = "cross_entropy",
    *,
    forward_only: bool = False,
    micro_batch_tokens: int = 1024,
    **config: float | str,
) -> ForwardBackwardOutput:
    return finish(
        forward_backward(
            base,
            model,
            data,
            loss_fn=loss_fn,
            loss_fn_config=config,
            forward_only=forward_only,
            micro_batch_tokens=micro_batch_tokens,
        )
    )


def shaken(base: BaseModel, lora: LoraConfig | None = None, *, seed: int = 0) -> TrainedModel:
    """A model whose A and B both differ from zero, so that every gradient does."""
    model = TrainedModel.create(base, lora or LoraConfig(rank=4, seed=seed))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def sft_data(lengths: Sequence[int], *, seed: int = 0) -> list[Datum]:
    """Random tokens; some weights are negative, some zero."""
    random = np.random.default_rng(seed)
    return [
        Datum(
            ModelInput.from_ints(random.integers(0, 259, n)),
            {
                "target_tokens": random.integers(0, 259, n),
                "weights": np.where(np.arange(n) < n // 3, 0, random.normal(size=n)),
            },
        )
        for n in lengths
    ]


def rl_data(lengths: Sequence[int], *, seed: int = 0, width: int | None = None) -> list[Datum]:
    """Random tokens; the first third is a prompt: advantage and sampler log-prob are 0."""
    random = np.random.default_rng(seed)
    data = []
    for n in lengths:
        shape = (n,) if width is None else (n, width)
        prompt = np.arange(n).reshape(-1, *[1] * (len(shape) - 1)) < n // 3
        data.append(
            Datum(
                ModelInput.from_ints(random.integers(0, 259, n)),
                {
                    "target_tokens": random.integers(0, 259, shape),
                    "logprobs": np.where(prompt, 0, random.uniform(-8, -4, shape)),
                    "advantages": np.where(prompt, 0, random.normal(size=shape)),
                },
            )
        )
    return data


def inputs_of(datum: Datum) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value.to_numpy()) for name, value in datum.loss_fn_inputs.items()}


def naive_loss(
    name: str, p: torch.Tensor, tensors: dict[str, torch.Tensor], config: dict[str, float]
) -> torch.Tensor:
    """The published formulas for autograd, in one breath each."""
    if name == "cross_entropy":
        return -tensors["weights"] * p
    q, a = tensors["logprobs"], tensors["advantages"]
    r = torch.exp(p - q)
    if name == "importance_sampling":
        return -r * a
    if name == "dro":
        return -(p * a - 0.5 * config["beta"] * (p - q) ** 2)
    clipped = torch.clamp(r, config["clip_low_threshold"], config["clip_high_threshold"])
    if name == "ppo":
        return -torch.minimum(r * a, clipped * a)
    return -clipped.detach() * p * a


def judge(
    folder: Path, adapter: Adapter, data: Sequence[Datum], name: str, config: dict[str, float]
) -> tuple[list[npt.NDArray[np.float32]], dict[str, torch.Tensor]]:
    """Log-probs by datum and gradients by checkpoint name, from plain peft on a fresh model.

    One datum at a time, full logits, autograd throughout.
    """
    model = plain_peft(folder, adapter)
    logprobs = []
    for datum in data:
        tokens = torch.tensor(datum.model_input.to_numpy()).long()[None]
        tensors = inputs_of(datum)
        targets = tensors.pop("target_tokens")
        all_logprobs = model(input_ids=tokens).logits[0].float().log_softmax(-1)
        p = all_logprobs.gather(-1, targets.reshape(len(targets), -1)).reshape(targets.shape)
        naive_loss(name, p, tensors, config).sum().backward()  # type: ignore[no-untyped-call]  # torch has no types here
        logprobs.append(p.detach().numpy())
    gradients = {
        key.replace(".judge", ""): parameter.grad
        for key, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return logprobs, gradients


def plain_peft(folder: Path, adapter: Adapter) -> Any:
    import peft

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = peft.LoraConfig(
        r=adapter.lora.rank, lora_alpha=32, target_modules=adapter.config.target_modules
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tied weights: the judge never saves them
        model = peft.get_peft_model(model, config, adapter_name="judge")
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".judge" in key:
                parameter.copy_(adapter.weights[key.replace(".judge", "")])
    return model.eval()
