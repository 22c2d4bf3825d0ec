"""Writes the model that all compared servers load: a random Qwen3 of two layers, with a tokenizer.

`python -m benchmarks.rivals.tiny_qwen3 FOLDER`. The same seed gives the same weights, so every
server computes the same losses; its tokens are bytes and three special ones. No token ends a text:
not all servers stop at one by themselves, and a sample shall have as many tokens from each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

VOCABULARY = 320
"""Rows of the embedding; the tokenizer uses the first 259 of them."""

_SPECIAL = ("<|pad|>", "<|begin|>", "<|end|>")


def write(folder: Path) -> Path:
    """Write the model and its tokenizer in the Hugging Face layout, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=2048,
        tie_word_embeddings=True, initializer_range=0.2, dtype="float32",
        pad_token_id=256, bos_token_id=257, eos_token_id=None,
    )  # fmt: skip
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    _write_tokenizer(folder)
    _name_for_older_readers(folder)
    return folder


def _write_tokenizer(folder: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in _SPECIAL])
    pad, begin, _ = _SPECIAL
    transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token=pad, bos_token=begin
    ).save_pretrained(folder)


def _name_for_older_readers(folder: Path) -> None:
    """Say data type, rotary base and tokenizer's class under their older names, too."""
    config = _read(folder / "config.json")
    rope = config.get("rope_parameters") or {}
    config.setdefault("rope_theta", rope.get("rope_theta", 10_000.0))
    config.setdefault("torch_dtype", "float32")
    _write(folder / "config.json", config)
    tokenizer = _read(folder / "tokenizer_config.json")
    _write(
        folder / "tokenizer_config.json",
        {**tokenizer, "tokenizer_class": "PreTrainedTokenizerFast"},
    )


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
