"""Turns the GGUF file of SmolLM2 into a plain Hugging Face folder of float32 weights.

The file is pinned by its hash, so this knows one layout and checks that it met all of
it. torch is not needed: gguf dequantises with numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tinker_async.errors import ConfigError
from tinker_async.local.gguf_header import check_gguf
from tinker_async.local.tiny import write_metadata

if TYPE_CHECKING:
    from pathlib import Path

    from tinker_async.local.cache import Progress

_BAD_FILE = (ValueError, LookupError, TypeError, OverflowError, AttributeError)
"""What `gguf`, numpy and `tokenizers` make of bytes that are not what they seem."""

SMOLLM2_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "dtype": "float32",
}

_TOP_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

_CONTROL_TOKEN = 3
"""GGUF's token type of special tokens."""


def convert_smollm2(gguf_file: Path, folder: Path, *, progress: Progress) -> None:
    """Write weights, tokenizer and configuration into `folder` (538 MB, some seconds).

    Raises:
        ConfigError: The file is not GGUF, or its tensors are not those of the model.
    """
    from safetensors.numpy import save_file  # noqa: PLC0415  # an optional extra, loaded on use

    progress("reading", 0, None)
    try:
        check_gguf(gguf_file)
        weights, tokenizer, template = _read(gguf_file, progress)
    except _BAD_FILE as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{gguf_file.name} is not a GGUF file of the model: {error}") from error
    progress("saving", 0, None)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    write_metadata(folder, SMOLLM2_CONFIG, chat_template=template)


def _read(
    gguf_file: Path, progress: Progress
) -> tuple[dict[str, npt.NDArray[np.float32]], Any, str]:
    from gguf import GGUFReader  # noqa: PLC0415  # an optional extra, loaded on use

    reader = GGUFReader(gguf_file)
    weights = _weights(reader, progress)
    return weights, _tokenizer(reader), str(_field(reader, "tokenizer.chat_template"))


def _field(reader: Any, name: str) -> Any:
    return reader.fields[name].contents()


def _weights(reader: Any, progress: Progress) -> dict[str, npt.NDArray[np.float32]]:
    from gguf.quants import dequantize  # noqa: PLC0415  # an optional extra, loaded on use

    weights: dict[str, npt.NDArray[np.float32]] = {}
    total = len(reader.tensors)
    for done, tensor in enumerate(reader.tensors):
        progress("converting", done, total)
        values = dequantize(tensor.data, tensor.tensor_type)
        name, heads = _target(tensor.name)
        weights[name] = _unpermute(values, heads) if heads else np.ascontiguousarray(values)
    progress("converting", total, total)
    expected = len(_TOP_NAMES) + len(_LAYER_NAMES) * SMOLLM2_CONFIG["num_hidden_layers"]
    if len(weights) != expected:
        raise ConfigError(f"the GGUF file has {len(weights)} tensors, expected {expected}")
    return weights


def _target(gguf_name: str) -> tuple[str, int]:
    """Return the Hugging Face name, and the number of heads whose rows GGUF has interleaved (or 0)."""
    stem = gguf_name.removesuffix(".weight")
    if stem in _TOP_NAMES:
        return f"{_TOP_NAMES[stem]}.weight", 0
    prefix, _, rest = stem.partition(".")
    number, _, part = rest.partition(".")
    if prefix != "blk" or part not in _LAYER_NAMES:
        raise ConfigError(f"the GGUF file has an unexpected tensor {gguf_name}")
    heads = {
        "attn_q": SMOLLM2_CONFIG["num_attention_heads"],
        "attn_k": SMOLLM2_CONFIG["num_key_value_heads"],
    }.get(part, 0)
    return f"model.layers.{number}.{_LAYER_NAMES[part]}.weight", heads


def _unpermute(values: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Undo GGUF's row order of rotary projections.

    GGUF pairs rows (0, 1), (2, 3), ... of a head for the rotation; Hugging Face pairs row i
    of the first half with row i of the second.
    """
    rows, columns = values.shape
    paired = values.reshape(heads, rows // heads // 2, 2, columns)  # (head, pair, half, in)
    return np.ascontiguousarray(paired.swapaxes(1, 2).reshape(rows, columns))


def _tokenizer(reader: Any) -> Any:
    """Byte-level BPE that keeps digits apart (GGUF's pre-tokenizer `smollm`)."""
    from tokenizers import (  # noqa: PLC0415  # an optional extra, loaded on use
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
    )

    tokens = _field(reader, "tokenizer.ggml.tokens")
    kinds = _field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(pair.split(" ")) for pair in _field(reader, "tokenizer.ggml.merges")]
    vocab = {token: number for number, token in enumerate(tokens)}
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    except Exception as error:  # the library raises bare Exception for all failures
        raise ConfigError(f"the GGUF file's tokenizer makes no sense: {error}") from error
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens(special)
    return tokenizer
