"""Naming a model: what is accepted, and that each refusal says what to do."""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tinker_async.errors import ConfigError, MissingExtraError
from tinker_async.local.cache import default_cache_dir
from tinker_async.local.models import (
    BUILT_IN,
    SUPPORTED_FAMILIES,
    build_tiny,
    check_architecture,
    resolve_model,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "my-model"
    made.mkdir()
    build_tiny("tiny-llama", made)
    return made


def test_a_folder_is_served_under_its_own_name_or_under_the_given_one(folder: Path) -> None:
    """A path and NAME=FOLDER both give the folder; names may have a slash."""
    assert ("my-model", folder) == _pair(str(folder))
    assert ("org/Fox-1B", folder) == _pair(f"org/Fox-1B={folder}")


def _pair(spec: str) -> tuple[str, Path]:
    found = resolve_model(spec)
    return found.name, found.folder


def test_the_environment_chooses_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`$TINKER_ASYNC_CACHE` wins; without it the platform's cache folder is used."""
    monkeypatch.setenv("TINKER_ASYNC_CACHE", str(tmp_path / "here"))
    assert tmp_path / "here" == default_cache_dir()
    assert resolve_model("Tiny-Llama").folder.is_relative_to(tmp_path / "here")
    monkeypatch.delenv("TINKER_ASYNC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert tmp_path / "xdg" / "tinker-async" == default_cache_dir()


@pytest.mark.parametrize("spec", ["gpt-7", "", "=", "name=", "=folder", "./nowhere"])
def test_an_unknown_name_is_answered_with_the_known_ones(spec: str) -> None:
    """The message lists the built-in names and the form for a folder."""
    with pytest.raises(ConfigError, match="unknown model") as caught:
        resolve_model(spec)
    assert all(name in str(caught.value) for name in (*BUILT_IN, "NAME=FOLDER"))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    """NAME=FOLDER with a wrong path says which path."""
    with pytest.raises(ConfigError, match=r"there is no folder .*absent"):
        resolve_model(f"x={tmp_path / 'absent'}")


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_an_incomplete_folder_names_the_missing_file(folder: Path, missing: str) -> None:
    """Each file that the engine needs is asked for by name."""
    (folder / missing).unlink()
    with pytest.raises(ConfigError, match=f"{missing} is missing"):
        resolve_model(str(folder))


def test_all_shards_of_an_index_must_be_there(folder: Path) -> None:
    """Weights in several files count as complete when each of them is there, and whole."""
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"model-2\.safetensors is missing"):
        resolve_model(str(folder))
    (folder / "model-2.safetensors").touch()
    with pytest.raises(ConfigError, match=r"model-2\.safetensors cannot be read"):
        resolve_model(str(folder))
    shutil.copy(folder / "model-1.safetensors", folder / "model-2.safetensors")
    assert folder == resolve_model(str(folder)).folder


@pytest.mark.parametrize("content", ["{", "[]", "\udc80"])
def test_a_broken_configuration_is_an_error_with_its_path(folder: Path, content: str) -> None:
    """Neither bad JSON, nor a list, nor bytes that are not text leak a foreign exception."""
    (folder / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=r"cannot read .*config\.json"):
        resolve_model(str(folder))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "encoder-decoder": (
        {"model_type": "t5", "is_encoder_decoder": True, "architectures": ["T5ForX"]},
        "T5ForX is not supported: it is an encoder-decoder",
    ),
    "linear attention": (
        {"model_type": "qwen3_next", "layer_types": ["linear_attention", "full_attention"]},
        "qwen3_next is not supported: it has layers of linear_attention",
    ),
    "sliding layers": (
        {"model_type": "olmo2", "layer_types": ["sliding_attention", "full_attention"]},
        "layers of sliding_attention",
    ),
    "sliding window": ({"model_type": "qwen2", "use_sliding_window": True}, "sliding attention"),
    "mistral 7B v0.1": ({"model_type": "mistral", "sliding_window": 4096}, "sliding attention"),
    "mistral by default": ({"model_type": "mistral"}, "sliding attention"),
    "mixture of experts": ({"model_type": "mixtral"}, "does not know the family 'mixtral'"),
    "other": ({"model_type": "mamba"}, "does not know the family 'mamba'"),
    "nothing": ({}, "does not know the family 'unknown'"),
    "quantised": ({"model_type": "llama", "quantization_config": {"bits": 4}}, "quantised"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_unsupported_architecture_is_refused_by_name(case: str) -> None:
    """The reason is given, and the families that do work are listed."""
    config, reason = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        check_architecture(config)
    assert reason in str(caught.value)
    assert all(family in str(caught.value) for family in SUPPORTED_FAMILIES)


@pytest.mark.parametrize("family", SUPPORTED_FAMILIES)
def test_each_supported_family_is_full_attention_with_the_known_projections(family: str) -> None:
    """transformers agrees that a plain model of each family is what the engine runs."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    extra = {"sliding_window": None} if family == "mistral" else {}
    config = AutoConfig.for_model(
        family,
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=2,
        **extra,
    )
    check_architecture(config.to_dict())
    with torch.device("meta"):
        auto: Any = AutoModelForCausalLM  # its methods have no annotations
        model = auto.from_config(config)
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    expected = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert expected | {"lm_head"} == names


@pytest.mark.parametrize(
    ("spec", "module"), [("smollm2-135m", "gguf"), ("tiny-llama", "tokenizers")]
)
def test_a_missing_extra_is_answered_with_the_command(
    spec: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is noticed before anything is downloaded."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=module) as caught:
        resolve_model(spec, cache_dir=tmp_path)
    assert "pip install 'tinker-async[local]'" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
