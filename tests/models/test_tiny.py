"""The tiny random models: same bytes every time, and real enough to train and sample."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinker_async.local.models import BUILT_IN, build_tiny, check_architecture, resolve_model
from tinker_async.local.tiny import byte_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

TINY = [name for name in BUILT_IN if name.startswith("tiny-")]
PARAMETERS = {"tiny-llama": 90_624, "tiny-qwen3": 90_688}


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(params=TINY)
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    resolved = resolve_model(request.param, cache_dir=tmp_path)
    assert request.param == resolved.name
    return resolved.name, resolved.folder


@pytest.mark.parametrize("name", TINY)
def test_tiny_model_has_the_same_bytes_in_every_process(name: str, tmp_path: Path) -> None:
    """Two builds, one of them in a fresh process with another hash seed, do not differ."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    build_tiny(name, here)
    code = "import sys, pathlib; from tinker_async.local.models import build_tiny; build_tiny(sys.argv[1], pathlib.Path(sys.argv[2]))"
    subprocess.run([sys.executable, "-c", code, name, str(there)], check=True, timeout=60)
    assert _digests(here) == _digests(there)
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= _digests(here).keys()


def test_building_a_tiny_model_loads_no_torch(tmp_path: Path) -> None:
    """Making a model is cheap: neither torch nor transformers is imported for it."""
    code = (
        "import sys, pathlib\n"
        "from tinker_async.local.models import resolve_model\n"
        "resolve_model('tiny-llama', cache_dir=pathlib.Path(sys.argv[1]))\n"
        "sys.exit(len({'torch', 'transformers'} & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "tiny-llama-1" / "config.json").is_file()


def test_tiny_model_loads_with_transformers_and_is_not_degenerate(tiny: tuple[str, Path]) -> None:
    """Its loss is near that of a uniform guess, and its output depends on the context."""
    import torch
    from transformers import AutoModelForCausalLM

    name, folder = tiny
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert PARAMETERS[name] == sum(parameter.numel() for parameter in model.parameters())
    ids = torch.tensor([byte_tokenizer().encode("The quick brown fox jumps.").ids])
    with torch.no_grad():
        assert 5.0 < float(model(ids, labels=ids).loss) < 6.5
        first, second = (model(ids[:, start:]).logits[0, -1] for start in (0, 3))
        greedy = model.generate(
            ids, max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=2
        )
    assert float((first - second).abs().max()) > 0.1
    assert len(set(greedy[0, ids.shape[1] :].tolist())) >= 4


def test_tiny_tokenizer_is_read_by_transformers_with_its_chat_template(
    tiny: tuple[str, Path],
) -> None:
    """The folder's tokenizer ends turns with `<|im_end|>`, in ChatML."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny[1])
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.eos_token_id == 2
    assert tokenizer.encode(chat) == byte_tokenizer().encode(chat).ids


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_byte_tokenizer_round_trips_any_text(text: str) -> None:
    """Byte b is token 3 + b, so all of Unicode survives."""
    tokenizer = byte_tokenizer()
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    if not any(token in text for token in special):
        assert [3 + byte for byte in text.encode()] == tokenizer.encode(text).ids
    assert text == tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False)


def test_tiny_configuration_passes_the_architecture_check(tiny: tuple[str, Path]) -> None:
    """What we build is what the engine runs, at the size that tests count on."""
    config = json.loads((tiny[1] / "config.json").read_text())
    check_architecture(config)
    assert (config["vocab_size"], config["hidden_size"], config["num_hidden_layers"]) == (
        259,
        64,
        2,
    )
    assert config["max_position_embeddings"] == 2048
    assert config["tie_word_embeddings"] is True
