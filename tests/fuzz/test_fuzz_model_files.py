"""Damaged model files at the engine's front door: refused by a ConfigError, at no cost."""

from __future__ import annotations

import functools
import json
import struct
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from fuzz.harness import fuzz
from fuzz.mutations import damaged, damaged_json

from tinker_async.errors import ConfigError
from tinker_async.local import convert
from tinker_async.local.models import build_tiny, resolve_model

HEADER = "model.safetensors"
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    build_tiny("tiny-llama", folder)
    return folder


def silent(_stage: str, _done: int, _total: int | None) -> None:
    """Report to nobody."""


def opened(folder: Path) -> None:
    assert resolve_model(f"mine={folder}").folder == folder


def with_header(rng: Random, header: bytes, data: bytes) -> bytes:
    """A safetensors file whose header is damaged, or whose header's length is."""
    if rng.random() < 0.2:
        size = rng.choice((0, 1, len(header) - 1, len(header) + 1, 10**8, 2**32, 2**60, 2**64 - 1))
        return struct.pack("<Q", size) + header + data
    hurt = damaged_json(rng, header, [header])
    return struct.pack("<Q", len(hurt)) + hurt + data[: rng.choice((0, 1, len(data)))]


def test_damaged_safetensors_headers_are_refused(folder: Path) -> None:
    """Whatever a header declares, resolve_model takes the file or raises ConfigError."""
    body = (folder / HEADER).read_bytes()
    size = int.from_bytes(body[:8], "little")
    header, data = body[8 : 8 + size], body[8 + size :]

    def read(case: bytes) -> None:
        (folder / HEADER).write_bytes(case)
        opened(folder)

    opened(folder)
    fuzz(
        "safetensors",
        lambda rng: with_header(rng, header, data),
        read,
        cases=250,
        allowed=(ConfigError,),
        memory=True,
    )


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]},
        {"dtype": "F32", "shape": [2**62, 2**62, 0], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [2**31, 2**31, 4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]},
    ],
)
def test_a_header_that_declares_too_much_is_refused(folder: Path, entry: Any) -> None:
    """Sizes that the file does not back are neither believed nor allocated."""
    header = json.dumps({"model.norm.weight": entry}).encode()
    case = struct.pack("<Q", len(header)) + header + bytes(16)
    (folder / HEADER).write_bytes(case)
    fuzz(
        f"declared-{entry['shape']}",
        lambda _rng: case,
        lambda _case: resolve_model(str(folder)) and None,
        cases=1,
        allowed=(ConfigError,),
        memory=True,
    )


@pytest.mark.parametrize("file", [CONFIG, INDEX])
def test_damaged_json_files_of_a_model_are_refused(folder: Path, file: str) -> None:
    """Wrong types anywhere in the small files are a ConfigError."""
    index = b'{"metadata":{},"weight_map":{"a":"model.safetensors","b":"model.safetensors"}}'
    config = (folder / CONFIG).read_bytes()
    more = b'{"model_type":"mistral","sliding_window":5,"layer_types":["full_attention"],'
    more += b'"architectures":["A","B"],"quantization_config":{},"is_encoder_decoder":false}'
    bodies = [config, more] if file == CONFIG else [index]

    def read(case: bytes) -> None:
        (folder / file).write_bytes(case)
        opened(folder)

    fuzz(
        f"model-{file}",
        lambda rng: damaged_json(rng, rng.choice(bodies), bodies),
        read,
        cases=600,
        allowed=(ConfigError,),
    )


SPECS = [b"tiny-llama", b"name=folder", b"~nobody-of-this-name/x", b"=", b"a=", b"x\0y", b"~", b"/"]


def test_damaged_names_of_models_are_refused(folder: Path) -> None:
    """What names no model is a ConfigError, whatever characters it has."""
    specs = [*SPECS, bytes(folder), b"m=" + bytes(folder), b"a/" * 3000, b"a" * 300]

    def read(case: bytes) -> None:
        text = case.decode("utf-8", "surrogateescape")
        if text.strip().lower() not in {"tiny-llama", "tiny-qwen3"}:
            resolve_model(text)

    fuzz(
        "model-name",
        lambda rng: damaged(rng, rng.choice(specs), specs),
        read,
        cases=600,
        allowed=(ConfigError,),
    )


# GGUF


@functools.cache
def gguf_body(folder: Path) -> bytes:
    """A GGUF file of one layer that converts."""
    import gguf

    file = folder / "whole.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab"]
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_chat_template("{{ messages }}")
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_array("some.numbers", [1, 2, 3])
    for name in convert._TOP_NAMES:
        writer.add_tensor(f"{name}.weight", np.ones((6, 32), np.float32))
    for name in convert._LAYER_NAMES:
        writer.add_tensor(f"blk.0.{name}.weight", np.ones((18, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file.read_bytes()


@pytest.fixture
def one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model has one layer, so that its file is small."""
    monkeypatch.setitem(convert.SMOLLM2_CONFIG, "num_hidden_layers", 1)


HUGE = tuple(struct.pack("<Q", n) for n in (2**60, 2**40, 2**63, 2**64 - 1, 2**32, 0, 1))


def damaged_gguf(rng: Random, body: bytes, header_bytes: int) -> bytes:
    """Damage to the header; the data behind it only matters by its size."""
    head, data = body[:header_bytes], body[header_bytes:]
    if rng.random() < 0.4:
        at = rng.choice((4, 8, 16, *(rng.randrange(len(head)) for _ in range(5))))
        head = head[:at] + rng.choice(HUGE) + head[at + 8 :]
    else:
        head = damaged(rng, head, [head])
    return head + data if rng.random() < 0.9 else (head + data)[: rng.randint(0, len(body))]


@pytest.mark.usefixtures("one_layer")
def test_damaged_gguf_headers_are_refused(tmp_path: Path) -> None:
    """A GGUF file with any damage to its header is converted or raises ConfigError."""
    body = gguf_body(tmp_path)
    header_bytes = body.index(np.ones(4, np.float32).tobytes())
    file, folder = tmp_path / "case.gguf", tmp_path / "made"
    folder.mkdir()

    def read(case: bytes) -> None:
        file.write_bytes(case)
        convert.convert_smollm2(file, folder, progress=silent)

    read(body)
    fuzz(
        "gguf",
        lambda rng: damaged_gguf(rng, body, header_bytes),
        read,
        cases=500,
        allowed=(ConfigError,),
        memory=True,
    )


@pytest.mark.parametrize(
    "head",
    [
        struct.pack("<4sIQQ", b"GGUF", 3, 2**60, 0),
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**60),
        struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"a", 9, 4, 2**60),
        struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"a", 9, 8, 2**60),
        struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"a", 9, 9, 2**60),
        struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 2**60),
        struct.pack("<4sIQQQ1sI", b"GGUF", 3, 1, 0, 1, b"a", 2**31),
        b"GGUF",
        b"",
    ],
    ids=["tensors", "fields", "numbers", "strings", "arrays", "text", "dims", "cut", "empty"],
)
def test_a_gguf_header_that_declares_too_much_is_refused(tmp_path: Path, head: bytes) -> None:
    """Counts that the file does not back are neither walked nor allocated."""
    file = tmp_path / "case.gguf"
    file.write_bytes(head + bytes(32 if head else 0))

    def read(_case: bytes) -> None:
        with pytest.raises(ConfigError):
            convert.convert_smollm2(file, tmp_path, progress=silent)

    fuzz(f"gguf-{head.hex()}", lambda _rng: head, read, cases=1, allowed=(), memory=True)
