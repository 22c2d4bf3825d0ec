"""Loading a base model: what is refused, and bfloat16."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support.training_cases import sft_data, shaken, train

from tinker_async.errors import ConfigError
from tinker_async.local.engine.base import BaseModel


def test_the_card_tells_what_is_served(base: BaseModel) -> None:
    """Vocabulary, context and end tokens come from the model's own config."""
    assert base.card.architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM")
    assert ("test/tiny", 259, 2048, (2,)) == (
        base.card.name,
        base.card.vocab_size,
        base.card.max_context_length,
        base.card.eos_token_ids,
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "t5", "architectures": ["T5Model"]}, "T5Model is not supported"),
        ({"use_sliding_window": True, "model_type": "qwen2"}, "sliding"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rotary embedding of type dynamic",
        ),
        ({"model_type": "no-such-family"}, "no-such-family"),
    ],
)
def test_unsupported_architectures_are_refused_by_name(
    model_folder: Path, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    """A ConfigError names the architecture or the reason; nothing is half loaded."""
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ConfigError, match=says):
        BaseModel.load(folder, name="changed")


def test_a_model_that_does_more_than_a_linear_head_is_refused(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One probing forward pass compares the model's own logits with ours."""
    for cls in (transformers.LlamaForCausalLM, transformers.Qwen3ForCausalLM):
        forward = cls.forward

        def scaled(self: Any, *args: Any, forward: Any = forward, **kwargs: Any) -> Any:
            output = forward(self, *args, **kwargs)
            output.logits = output.logits * 2
            return output

        monkeypatch.setattr(cls, "forward", scaled)
    with pytest.raises(ConfigError, match="more than a linear output head"):
        BaseModel.load(model_folder, name="scaled")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_an_incomplete_folder_is_a_config_error(
    model_folder: Path, tmp_path: Path, missing: str
) -> None:
    """Nothing is looked for elsewhere, and the message shows no path of the machine."""
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    (folder / missing).unlink()
    with pytest.raises(ConfigError, match="'model'"):
        BaseModel.load(folder, name="incomplete")


def test_an_unknown_dtype_is_refused(model_folder: Path) -> None:
    """The message lists the dtypes there are."""
    with pytest.raises(ConfigError, match="float32, bfloat16"):
        BaseModel.load(model_folder, name="x", dtype="int8")


def test_a_bfloat16_base_trains_float32_adapters(base: BaseModel, model_folder: Path) -> None:
    """Adapters and gradients stay float32, and log-probs are near those of a float32 base."""
    half = BaseModel.load(model_folder, name="x", dtype="bfloat16")
    exact, rough = shaken(base), shaken(half)
    data = sft_data([9, 5])
    expected, found = train(base, exact, data), train(half, rough, data)
    assert {torch.float32} == {p.dtype for p in rough.parameters}
    assert {torch.float32} == {p.grad.dtype for p in rough.parameters if p.grad is not None}
    for one, other in zip(expected.loss_fn_outputs, found.loss_fn_outputs, strict=True):
        np.testing.assert_allclose(
            one["logprobs"].to_numpy(), other["logprobs"].to_numpy(), atol=0.2
        )
