"""What of a checkpoint is a LoRA adapter as peft reads it, and the card that goes with it.

The rule: only files that belong to an adapter are published; optimizer state and whatever else a
server keeps with a checkpoint stay behind.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from tinker_async.errors import InvalidInputError

CONFIG = "adapter_config.json"
CARD = "README.md"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_BELONGING = (
    *("adapter_*", CARD, "LICENSE*", "*.jinja", "merges.txt", "vocab.*", "added_tokens.json"),
    *("tokenizer*", "special_tokens_map.json", "new_embeddings.safetensors"),
)
_MAX_HEADER_BYTES = 16 << 20


class Described(NamedTuple):
    """What is said of an adapter."""

    path: str
    base_model: str
    lora_rank: int | None = None
    trained: str | None = None
    """`attention, MLP`"""


class Patterns(NamedTuple):
    """Which files the user wants."""

    allow: Sequence[str] = ()
    ignore: Sequence[str] = ()

    def choose(self, names: Iterable[str]) -> list[str]:
        """Return the names that are to be uploaded, sorted. Pure."""
        allow = self.allow or _BELONGING
        return sorted(
            name for name in names if _matches(name, allow) and not _matches(name, self.ignore)
        )


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_adapter(folder: Path) -> dict[str, Any]:
    """Return an adapter's configuration.

    Raises:
        InvalidInputError: The folder is not an adapter that peft reads.
    """
    if any(folder.glob("*.age")):
        raise _no_adapter("its files are encrypted", "decrypt them with `age -d`")
    config = _config(folder / CONFIG)
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise _no_adapter(f"it has no {_WEIGHTS[0]}")
    if weights.suffix == ".safetensors":
        _check_tensors(weights)
    return config


def _config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _no_adapter(f"it has no {CONFIG}") from None
    except (OSError, ValueError) as error:
        raise _no_adapter(f"its {CONFIG} cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise _no_adapter(f"its {CONFIG} is not one of peft for LoRA")
    return config


def _check_tensors(file: Path) -> None:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = stream.read(length) if length <= _MAX_HEADER_BYTES else b""
    try:
        names = list(json.loads(header))
    except ValueError:
        names = []
    if not any(".lora_A" in name for name in names):
        raise _no_adapter(f"its {file.name} holds no LoRA weights")


def _no_adapter(problem: str, hint: str | None = None) -> InvalidInputError:
    return InvalidInputError(
        f"the checkpoint is no adapter that peft reads: {problem}",
        field="path",
        hint=hint or "save one with save_weights_external or `checkpoint save --as external`",
    )


def patched(config: dict[str, Any], base_model: str) -> bytes | None:
    """Return the configuration with the base model's name; None if it has one already."""
    if isinstance(config.get("base_model_name_or_path"), str) and config["base_model_name_or_path"]:
        return None
    named = {**config, "base_model_name_or_path": base_model}
    return (json.dumps(named, indent=2, sort_keys=True) + "\n").encode()


def card(adapter: Described, repo: str) -> str:
    """Return a model card: what it is, how to load it, where it comes from."""
    quoted = json.dumps(adapter.base_model)  # is YAML, too, whatever is in it
    tag = json.dumps(f"base_model:adapter:{adapter.base_model}")
    facts = [f"- Base model: `{adapter.base_model}`"]
    facts += [f"- LoRA rank: {adapter.lora_rank}"] if adapter.lora_rank is not None else []
    facts += [f"- Trained: {adapter.trained}"] if adapter.trained else []
    return "\n".join(
        [
            *("---", f"base_model: {quoted}", "library_name: peft", "tags:"),
            *("- tinker", "- peft", "- lora", f"- {tag}", "---", ""),
            *(f"# {repo.rpartition('/')[2]}", "", "A LoRA adapter that was trained with Tinker."),
            *("", *facts, f"- Checkpoint: `{adapter.path}`", "", "```python"),
            "from peft import AutoPeftModelForCausalLM",
            "",
            f"model = AutoPeftModelForCausalLM.from_pretrained({json.dumps(repo)})",
            *("```", ""),
        ]
    )
