"""Tiny random models with a byte tokenizer, for tests and for trying things out at once.

The same name gives the same bytes on every run. Only numpy writes the weights, so that
making one does not take the import of torch.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pathlib import Path

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Ids 0, 1 and 2; byte b of UTF-8 text is token 3 + b."""

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TINY_CONFIGS: dict[str, dict[str, Any]] = {
    "tiny-llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "tiny-qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"},
}
"""What sets one tiny model apart; `_SHAPE` is the same for all."""

_SHAPE: dict[str, Any] = {
    "vocab_size": len(SPECIAL_TOKENS) + 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "attention_bias": False,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "dtype": "float32",
}


def build_tiny(name: str, folder: Path) -> None:
    """Write the tiny model `name` (a key of `TINY_CONFIGS`) into an existing folder.

    90 thousand float32 parameters, 0.4 MB, some 20 ms.
    """
    from safetensors.numpy import save_file  # noqa: PLC0415  # an optional extra, loaded on use

    config = TINY_CONFIGS[name] | _SHAPE
    weights = _weights(config)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = byte_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    write_metadata(folder, config, chat_template=CHATML_TEMPLATE)


def write_metadata(folder: Path, config: dict[str, Any], *, chat_template: str) -> None:
    """Write the small files of a Hugging Face folder whose end token is `<|im_end|>`."""
    special_ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", special_ids)
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def byte_tokenizer() -> Any:
    """Return a `tokenizers.Tokenizer` that has one token for each byte; any text round-trips."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415  # an extra

    tokens = [*SPECIAL_TOKENS, *_byte_alphabet()]
    vocab = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _byte_alphabet() -> list[str]:
    """The characters that stand for bytes 0 to 255 in byte-level BPE.

    Visible Latin-1 characters stand for themselves, the others are moved to U+0100 and up.
    """
    moved = iter(range(256, 512))
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    return [chr(byte if byte in visible else next(moved)) for byte in range(256)]


def _weights(config: dict[str, Any]) -> dict[str, npt.NDArray[np.float32]]:
    """Random weights, scaled so that the next token depends on the whole context.

    Smaller ones would leave the input embedding in charge, and a model with tied
    embeddings then repeats its last token for ever.
    """
    rng = np.random.default_rng(0)
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head

    def linear(rows: int, columns: int) -> npt.NDArray[np.float32]:
        return rng.normal(0, columns**-0.5, (rows, columns)).astype(np.float32)

    def norm(size: int = hidden) -> npt.NDArray[np.float32]:
        return np.ones(size, dtype=np.float32)

    embedding = rng.normal(0, config["initializer_range"], (config["vocab_size"], hidden))
    weights = {"model.embed_tokens.weight": embedding.astype(np.float32)}
    for number in range(config["num_hidden_layers"]):
        layer = {
            "input_layernorm": norm(),
            "self_attn.q_proj": linear(queries, hidden),
            "self_attn.k_proj": linear(keys, hidden),
            "self_attn.v_proj": linear(keys, hidden),
            "self_attn.o_proj": linear(hidden, queries),
            "post_attention_layernorm": norm(),
            "mlp.gate_proj": linear(inner, hidden),
            "mlp.up_proj": linear(inner, hidden),
            "mlp.down_proj": linear(hidden, inner),
        }
        if config["model_type"] == "qwen3":
            layer |= {"self_attn.q_norm": norm(head), "self_attn.k_norm": norm(head)}
        weights |= {f"model.layers.{number}.{key}.weight": value for key, value in layer.items()}
    weights["model.norm.weight"] = norm()
    return weights


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
