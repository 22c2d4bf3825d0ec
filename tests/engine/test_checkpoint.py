"""Checkpoints: bit-exact resumption, PEFT's layout, and damaged ones refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.training_cases import sft_data, shaken, train

from tinker_async.data.params import AdamParams, LoraConfig
from tinker_async.errors import InvalidInputError
from tinker_async.local.engine.base import BaseModel
from tinker_async.local.engine.checkpoint import (
    load_snapshot,
    load_training,
    save_sampler,
    save_training,
)
from tinker_async.local.engine.training import TrainedModel, optim_step

ADAM = AdamParams(learning_rate=1e-2, weight_decay=0.01, grad_clip_norm=0.5)


def steps(base: BaseModel, model: TrainedModel, numbers: range) -> None:
    for number in numbers:
        train(base, model, sft_data([8, 5], seed=number))
        optim_step(model, ADAM)


def saved(base: BaseModel, folder: Path, *, count: int = 2) -> TrainedModel:
    model = shaken(base, LoraConfig(rank=4, seed=3))
    steps(base, model, range(count))
    folder.mkdir()
    save_training(base, model, folder)
    return model


def logits(base: BaseModel, name: str) -> torch.Tensor:
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        return base.logits(base.hidden_states(tokens, adapter_names=[name]), [name])


def assert_same_weights(one: TrainedModel, other: TrainedModel) -> None:
    assert one.adapter.weights.keys() == other.adapter.weights.keys()
    for key, weight in one.adapter.weights.items():
        assert torch.equal(weight, other.adapter.weights[key]), key


def test_training_resumes_bit_exact_in_a_new_engine(
    base: BaseModel, model_folder: Path, tmp_path: Path
) -> None:
    """Save, load into a freshly loaded base, go on: weights and moments equal an unbroken run."""
    unbroken = saved(base, tmp_path / "at-2")
    steps(base, unbroken, range(2, 5))

    again = BaseModel.load(model_folder, name="test/tiny")
    resumed = load_training(again, tmp_path / "at-2", optimizer=True)
    assert 2 == resumed.steps
    steps(again, resumed, range(2, 5))

    assert_same_weights(unbroken, resumed)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    save_training(base, unbroken, tmp_path / "one")
    save_training(again, resumed, tmp_path / "two")
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_without_the_optimizer_only_weights_come_back(base: BaseModel, tmp_path: Path) -> None:
    """Moments and step counts start afresh."""
    model = saved(base, tmp_path / "saved")
    loaded = load_training(base, tmp_path / "saved", optimizer=False)
    assert_same_weights(model, loaded)
    assert 0 == loaded.steps
    assert {} == dict(loaded.optimizer.state)
    assert model.adapter.lora == loaded.adapter.lora


def test_a_model_never_stepped_can_be_saved_and_resumed(base: BaseModel, tmp_path: Path) -> None:
    """There are no moments yet; the first step after the load equals one without a break."""
    model = saved(base, tmp_path / "saved", count=0)
    loaded = load_training(base, tmp_path / "saved", optimizer=True)
    steps(base, model, range(1))
    steps(base, loaded, range(1))
    assert_same_weights(model, loaded)


@pytest.mark.parametrize("train_unembed", [True, False])
def test_plain_peft_loads_a_checkpoint_with_equal_logits(
    base: BaseModel, model_folder: Path, tmp_path: Path, train_unembed: bool
) -> None:
    """PeftModel.from_pretrained on the untouched base model, tied head included."""
    model = shaken(base, LoraConfig(rank=4, train_unembed=train_unembed))
    size_bytes = save_sampler(base, model.adapter, tmp_path)

    plain = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's advice about tied weights
        loaded: Any = peft.PeftModel.from_pretrained(plain, tmp_path)
    with torch.no_grad():
        theirs = loaded(input_ids=torch.arange(16)[None]).logits

    torch.testing.assert_close(logits(base, model.adapter.name), theirs, rtol=0, atol=1e-6)
    assert not torch.equal(logits(base, "__base__"), theirs)
    assert size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_the_folder_has_peft_layout_and_nothing_but_lora(base: BaseModel, tmp_path: Path) -> None:
    """Names, sorted target modules, alpha 32, the base model's name, LoRA matrices only."""
    saved(base, tmp_path / "saved")
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {
        "adapter_model.safetensors",
        "adapter_config.json",
        "optimizer.safetensors",
        "tinker.json",
    } == names
    keys = load_file(tmp_path / "saved" / "adapter_model.safetensors").keys()
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in keys
    assert all(key.endswith((".lora_A.weight", ".lora_B.weight")) for key in keys)
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == config["target_modules"]
    assert (4, 32, "test/tiny", "LORA") == (
        config["r"],
        config["lora_alpha"],
        config["base_model_name_or_path"],
        config["peft_type"],
    )


@pytest.mark.parametrize("kind", ["training", "sampler"])
def test_a_snapshot_loads_from_either_kind(base: BaseModel, tmp_path: Path, kind: str) -> None:
    """Its logits equal the saved model's bit for bit; it is frozen."""
    model = shaken(base)
    if kind == "training":
        save_training(base, model, tmp_path)
    else:
        save_sampler(base, model.adapter, tmp_path)
    snapshot = load_snapshot(base, tmp_path)
    assert torch.equal(logits(base, model.adapter.name), logits(base, snapshot.name))
    assert not any(weight.requires_grad for weight in snapshot.weights.values())


def test_training_does_not_resume_from_a_sampler_checkpoint(
    base: BaseModel, tmp_path: Path
) -> None:
    """There is no optimizer in it: refused, also when none is asked for."""
    save_sampler(base, shaken(base).adapter, tmp_path)
    with pytest.raises(InvalidInputError, match="sampling only"):
        load_training(base, tmp_path, optimizer=False)


@pytest.mark.parametrize("expected", [LoraConfig(rank=8), LoraConfig(rank=4, train_mlp=False)])
def test_an_adapter_of_another_shape_is_refused(
    base: BaseModel, tmp_path: Path, expected: LoraConfig
) -> None:
    """A model keeps its rank and layers when it loads a checkpoint."""
    saved(base, tmp_path / "saved")
    with pytest.raises(InvalidInputError, match="rank=4"):
        load_training(base, tmp_path / "saved", optimizer=True, expected=expected)


def test_the_fingerprint_does_not_depend_on_dtype_or_adapters(
    base: BaseModel, model_folder: Path
) -> None:
    """The same weights as bfloat16, or with adapters on them, are the same base."""
    shaken(base)
    half = BaseModel.load(model_folder, name="other", dtype="bfloat16")
    assert half.fingerprint == base.fingerprint


def test_a_checkpoint_of_another_base_model_is_refused(
    base: BaseModel, model_folder: Path, tmp_path: Path
) -> None:
    """Same architecture and shapes, one weight changed: the fingerprint tells."""
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder)
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    other = BaseModel(model, name="other/model")
    (tmp_path / "saved").mkdir()
    save_training(other, shaken(other), tmp_path / "saved")
    with pytest.raises(InvalidInputError, match="'other/model', not to this 'test/tiny'"):
        load_training(base, tmp_path / "saved", optimizer=True)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _poison(path: Path) -> None:
    tensors = load_file(path)
    tensors[max(tensors)].view(-1)[0] = float("nan")
    save_file(tensors, path)


def _forget(path: Path) -> None:
    tensors = load_file(path)
    del tensors[max(tensors)]
    save_file(tensors, path)


def _reshape(path: Path) -> None:
    tensors = load_file(path)
    key = max(key for key in tensors if tensors[key].dim() == 2)
    save_file(tensors | {key: tensors[key][:1].clone()}, path)


def _add(path: Path) -> None:
    save_file(load_file(path) | {"extra": torch.zeros(1)}, path)


def _remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("tinker.json", _truncate),
        ("tinker.json", _remove),
        *(
            (file, damage)
            for file in ("adapter_model.safetensors", "optimizer.safetensors")
            for damage in (_truncate, _poison, _forget, _reshape, _add, _remove)
        ),
    ],
)
@pytest.mark.parametrize("model_folder", ["tiny-llama"], indirect=True)
def test_a_damaged_checkpoint_is_refused_and_changes_nothing(
    base: BaseModel, tmp_path: Path, file: str, damage: object
) -> None:
    """A typed error that shows only the folder's own name; no adapter is left behind."""
    saved(base, tmp_path / "saved")
    damage(tmp_path / "saved" / file)  # type: ignore[operator]  # one of the functions above
    before = sorted(base.peft.peft_config)
    with pytest.raises(InvalidInputError) as caught:
        load_training(base, tmp_path / "saved", optimizer=True)
    assert "path" == caught.value.field
    assert "saved" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert before == sorted(base.peft.peft_config)


def test_another_format_is_refused(base: BaseModel, tmp_path: Path) -> None:
    """A folder written by a later version says so."""
    saved(base, tmp_path / "saved")
    path = tmp_path / "saved" / "tinker.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(InvalidInputError, match="has format 2"):
        load_training(base, tmp_path / "saved", optimizer=True)
