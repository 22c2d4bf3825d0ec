"""Checkpoints on disk: PEFT's layout, plus the optimizer and a description.

A training folder holds `adapter_model.safetensors`, `adapter_config.json`,
`optimizer.safetensors` and `tinker.json`; a sampler folder lacks the optimizer. peft and
vLLM load both. Only the LoRA matrices are in them, also with a tied head. Nothing is
pickled, equal states give equal bytes, and a load is refused before it changes anything.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tinker_async.data.params import LoraConfig
from tinker_async.errors import InvalidInputError
from tinker_async.local.engine.adapters import Adapter
from tinker_async.local.engine.base import BaseModel
from tinker_async.local.engine.training import TrainedModel

_WEIGHTS = "adapter_model.safetensors"
_PEFT = "adapter_config.json"
_OPTIMIZER = "optimizer.safetensors"
_DESCRIPTION = "tinker.json"
_FORMAT = 1
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Description(msgspec.Struct, frozen=True):
    """Content of `tinker.json`."""

    format: int
    kind: Literal["training", "sampler"]
    base_model: str
    base_sha256: str
    """`BaseModel.fingerprint`"""
    lora: LoraConfig
    steps: int
    """optimizer steps taken"""


def save_training(base: BaseModel, model: TrainedModel, folder: Path) -> int:
    """Write adapter and optimizer into an existing empty folder; return the bytes written.

    All files are on disk when this returns. Gradients not yet applied by `optim_step`
    are not saved.
    """
    _save_adapter(base, model.adapter, folder, kind="training", steps=model.steps)
    state = model.optimizer.state
    tensors = {
        # A copy, since parameters may share their step.
        f"{name}/{moment}": state[parameter][moment].to("cpu", copy=moment == "step")
        for name, parameter in model.adapter.weights.items()
        if parameter in state
        for moment in _MOMENTS
    }
    save_file(tensors, folder / _OPTIMIZER)
    return _settle(folder)


def save_sampler(base: BaseModel, adapter: Adapter, folder: Path) -> int:
    """Write an adapter alone into an existing empty folder; return the bytes written.

    All files are on disk when this returns.
    """
    _save_adapter(base, adapter, folder, kind="sampler", steps=0)
    return _settle(folder)


def load_training(
    base: BaseModel, folder: Path, *, optimizer: bool, expected: LoraConfig | None = None
) -> TrainedModel:
    """Make a model in training from a training checkpoint.

    Args:
        base: The base model it was trained on, in any dtype.
        folder: What `save_training` wrote.
        optimizer: Take up moments and step counts bit-exact; otherwise they start afresh.
        expected: Refuse checkpoints whose adapter has another rank or other layers.

    Raises:
        InvalidInputError: A file is missing or damaged, a value not finite, or the
            checkpoint belongs to another base model or kind of adapter.
    """
    description = _describe(base, folder)
    if description.kind != "training":
        raise _bad(folder, "holds weights for sampling only, training cannot resume from it")
    if expected is not None and _shape(expected) != _shape(description.lora):
        raise _bad(folder, f"holds an adapter of {description.lora}, the model has {expected}")
    moments = _read_tensors(folder, _OPTIMIZER) if optimizer else {}
    model = TrainedModel.of(_load_adapter(base, folder, description, trainable=True))
    try:
        _restore_moments(model, moments, folder)
    except InvalidInputError:
        base.adapters.drop(model.adapter)
        raise
    model.steps = description.steps if optimizer else 0
    return model


def load_snapshot(base: BaseModel, folder: Path) -> Adapter:
    """Make a frozen adapter from a checkpoint folder of either kind.

    Raises:
        InvalidInputError: As in `load_training`.
    """
    return _load_adapter(base, folder, _describe(base, folder), trainable=False)


def _save_adapter(
    base: BaseModel,
    adapter: Adapter,
    folder: Path,
    *,
    kind: Literal["training", "sampler"],
    steps: int,
) -> None:
    weights = {name: weight.detach().cpu() for name, weight in adapter.weights.items()}
    save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})
    _write_json(folder / _PEFT, _peft_json(base, adapter))
    lora = msgspec.structs.asdict(adapter.lora)
    _write_json(
        folder / _DESCRIPTION,
        {
            "format": _FORMAT,
            "kind": kind,
            "base_model": base.card.name,
            "base_sha256": base.fingerprint,
            "lora": lora,
            "steps": steps,
        },
    )


def _peft_json(base: BaseModel, adapter: Adapter) -> dict[str, object]:
    config: dict[str, object] = adapter.config.to_dict()  # type: ignore[no-untyped-call]  # peft has no types
    config["base_model_name_or_path"] = base.card.name
    config["inference_mode"] = True
    return {
        # peft holds module names in sets, whose order changes with every process
        key: sorted(value) if isinstance(value, set) else value
        for key, value in config.items()
    }


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _settle(folder: Path) -> int:
    """Flush every file of a folder to disk, then its directory; return their size in bytes."""
    size_bytes = 0
    for path in sorted(folder.iterdir()):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        size_bytes += path.stat().st_size
    if os.name == "posix":  # elsewhere a directory cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return size_bytes


def _describe(base: BaseModel, folder: Path) -> Description:
    try:
        found = msgspec.json.decode((folder / _DESCRIPTION).read_bytes(), type=Description)
    except OSError as error:
        raise _bad(folder, f"{_DESCRIPTION} cannot be read") from error
    except msgspec.MsgspecError as error:
        raise _bad(folder, f"{_DESCRIPTION} is damaged: {error}") from error
    if found.format != _FORMAT:
        raise _bad(folder, f"has format {found.format}, this version reads {_FORMAT}")
    if found.base_sha256 != base.fingerprint:
        raise _bad(
            folder,
            f"belongs to the base model {found.base_model!r}, not to this {base.card.name!r}",
        )
    return found


def _load_adapter(
    base: BaseModel, folder: Path, description: Description, *, trainable: bool
) -> Adapter:
    weights = _read_tensors(folder, _WEIGHTS)
    try:
        return base.adapters.restore(description.lora, weights, trainable=trainable)
    except InvalidInputError as error:
        raise _bad(folder, f"does not hold such an adapter: {error.message}") from error


def _read_tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    try:
        tensors = load_file(folder / name)
    except OSError as error:
        raise _bad(folder, f"{name} cannot be read") from error
    except SafetensorError as error:
        raise _bad(folder, f"{name} is damaged: {error}") from error
    for key, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
            raise _bad(folder, f"{key} in {name} is not finite float32")
    return tensors


def _restore_moments(model: TrainedModel, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """Put saved moments into a fresh optimizer. Parameters never stepped have none."""
    left = dict(tensors)
    for name, parameter in model.adapter.weights.items():
        if f"{name}/step" not in left:
            continue
        step, *averages = (left.pop(f"{name}/{moment}", None) for moment in _MOMENTS)
        if any(average is None or average.shape != parameter.shape for average in averages):
            raise _bad(folder, f"{_OPTIMIZER} does not fit {name}")
        model.optimizer.state[parameter] = {
            key: tensor.to(parameter.device)  # type: ignore[union-attr]  # checked above
            for key, tensor in zip(_MOMENTS, (step, *averages), strict=True)
        }
    if left:
        raise _bad(folder, f"{_OPTIMIZER} has {len(left)} unknown entries, such as {min(left)}")


def _shape(lora: LoraConfig) -> tuple[int, bool, bool, bool]:
    return lora.rank, lora.train_attn, lora.train_mlp, lora.train_unembed


def _bad(folder: Path, says: str) -> InvalidInputError:
    """Name the folder by its last part only: the rest is the server's own business."""
    return InvalidInputError(f"checkpoint {folder.name}: {says}", field="path")
