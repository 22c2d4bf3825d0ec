"""Checkpoints of the embedded engine, downloaded by both routes and loaded by other programs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from safetensors.torch import load_file
from support.embedded_engine import Engine

from tinker_async import (
    AdamParams,
    Datum,
    InvalidInputError,
    ModelInput,
    NotFoundError,
    SamplingParams,
    TrainingClient,
)
from tinker_async.local.models import build_tiny

TOKENS = list(range(40, 56))
PROMPT = ModelInput.from_ints(TOKENS)


async def train(trainer: TrainingClient, steps: int) -> None:
    data = [Datum(ModelInput.from_ints(TOKENS[:-1]), {"target_tokens": TOKENS[1:]})]
    for _ in range(steps):
        await trainer.train_step(data, "cross_entropy", AdamParams(learning_rate=1e-2))


def logprobs_by_peft(adapter: Path, base: Path) -> list[float]:
    """What transformers and peft compute, without anything of ours."""
    import peft
    import transformers

    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's advice about tied weights
        model: Any = peft.PeftModel.from_pretrained(plain, adapter)
    with torch.no_grad():
        table = model(input_ids=torch.tensor([TOKENS])).logits[0].log_softmax(-1)
    return [float(table[place, token]) for place, token in enumerate(TOKENS[1:])]


@pytest.mark.parametrize("route", ["external", "archive", "auto"])
async def test_a_downloaded_checkpoint_is_the_model_that_was_trained(
    engine: Engine, tmp_path: Path, route: Any
) -> None:
    """Other programs compute the log-probabilities that the server does."""
    with anyio.fail_after(120):
        async with engine.session() as session:
            trainer = await session.create_lora_training_client(engine.model, rank=4, seed=1)
            await train(trainer, 10)
            saved = await trainer.save_weights_external(f"export-{route}-{id(tmp_path)}")
            sampler = await trainer.save_weights_and_get_sampling_client()
            ours = await sampler.compute_logprobs(PROMPT)
            done = await session.rest.download_checkpoint(
                saved.path, tmp_path / "adapter", route=route
            )
    (tmp_path / "base").mkdir()
    build_tiny(engine.model, tmp_path / "base")

    assert ("archive" if route == "archive" else "external") == done.route
    assert {"adapter_model.safetensors", "adapter_config.json"} <= {*done.files}
    theirs = logprobs_by_peft(tmp_path / "adapter", tmp_path / "base")
    assert theirs == pytest.approx([float(value) for value in ours[1:] if value], abs=1e-4)


async def test_checkpoints_of_all_kinds_come_as_archives(engine: Engine, tmp_path: Path) -> None:
    """For training, with the optimizer; for sampling, without; equal weights in both."""
    with anyio.fail_after(120):
        async with engine.session() as session:
            trainer = await session.create_lora_training_client(engine.model, rank=4, seed=2)
            await train(trainer, 1)
            state = await trainer.save_state(f"state-{id(tmp_path)}")
            weights = await trainer.save_weights_for_sampler(f"sampler-{id(tmp_path)}")
            rest = session.rest
            one = await rest.download_checkpoint(state.path, tmp_path / "state")
            two = await rest.download_checkpoint(weights.path, tmp_path / "sampler")

    name = "adapter_model.safetensors"
    assert "optimizer.safetensors" in one.files
    assert "optimizer.safetensors" not in two.files
    assert one.sha256[name] == two.sha256[name]
    assert load_file(tmp_path / "state" / name).keys()


async def test_a_download_that_was_cut_goes_on_at_the_embedded_server(
    engine: Engine, tmp_path: Path
) -> None:
    """Its archives are the same bytes each time, and have ranges."""
    with anyio.fail_after(120):
        async with engine.session() as session:
            trainer = await session.create_lora_training_client(engine.model, rank=32, seed=3)
            state = await trainer.save_state(f"cut-{id(tmp_path)}")
            await train(trainer, 1)
            rest = session.rest
            with anyio.CancelScope() as scope:
                await rest.download_checkpoint(
                    state.path,
                    tmp_path / "x",
                    progress=lambda step: scope.cancel() if step.done_bytes else None,
                )
            assert scope.cancelled_caught
            done = await rest.download_checkpoint(state.path, tmp_path / "x")

    assert done.resumed_from_bytes > 0
    assert (tmp_path / "x" / "adapter_model.safetensors").is_file()


async def test_what_is_not_there_is_not_downloaded(engine: Engine, tmp_path: Path) -> None:
    """Nor is a sampler checkpoint by the route for external ones."""
    with anyio.fail_after(120):
        async with engine.session() as session:
            rest = session.rest
            for kind in ("weights", "sampler_weights", "external_weights"):
                with pytest.raises(NotFoundError):
                    await rest.download_checkpoint(f"tinker://none/{kind}/x", tmp_path / "x")
            with pytest.raises(InvalidInputError):
                await rest.download_checkpoint(
                    "tinker://none/weights/x", tmp_path / "x", route="external"
                )
            sampler = await session.create_sampling_client(base_model=engine.model)
            await sampler.sample(PROMPT, SamplingParams(max_tokens=1))

    assert not (tmp_path / "x").exists()
