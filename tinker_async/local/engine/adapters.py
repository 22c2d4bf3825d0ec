"""Many LoRA adapters on one base model, kept apart by peft's adapter names.

peft makes, holds and deletes them, `LoraLinear` applies them. The rule: which rows use which
adapter is state of the model, and only `AdapterSet.select` changes it. Names here are internal and
never reused.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from tinker_async.data.params import LoraConfig
from tinker_async.errors import ConfigError, InvalidInputError
from tinker_async.local.engine.lora_linear import LayerLora, LoraLinear, Routing

BASE = "__base__"
"""The adapter name that stands for the base model alone (peft's own word for it)."""

ALPHA = 32
"""LoRA's alpha, the same for every rank, so that the best learning rate does not depend on it."""

MAX_RANK = 1024

_FRAME = "frame"
"""A rank-1 adapter that is never used: it has every layer wrapped before the first real one."""

_ATTENTION_WORDS = ("attn", "attention")
_MLP_WORDS = ("mlp", "ffn", "feed_forward", "fc1", "fc2")


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter on the base model: for training, or frozen as a snapshot.

    `weights` maps the names of PEFT's checkpoint layout to the live parameters, in the
    order of the model's layers. `lora.seed` is the seed that was used, never None.
    """

    name: str
    lora: LoraConfig
    trainable: bool
    weights: Mapping[str, nn.Parameter]
    head: LayerLora | None
    config: peft.LoraConfig = field(repr=False)


class AdapterSet:
    """The adapters of one base model.

    Args:
        model: A transformers causal language model. Its Linear layers are wrapped in
            place, and its own parameters frozen.

    Raises:
        ConfigError: No attention or MLP projections were found by name.
    """

    def __init__(self, model: nn.Module) -> None:
        self._sites = _Sites.of(model)
        self._device = next(model.parameters()).device
        frame = LoraConfig(rank=1, seed=0)
        with _own_seed(0), _known_warnings():
            self.peft = peft.get_peft_model(model, self._peft_config(frame), adapter_name=_FRAME)
        self.peft.eval()  # adapters mixed in a batch are refused in training mode
        self._layers: dict[str, Any] = {
            path: layer for path, layer in model.named_modules() if isinstance(layer, LoraLayer)
        }
        self._routing = Routing(self._device)
        self._linears: dict[str, LoraLinear] = {}
        for path, layer in self._layers.items():
            self._linears[path] = layer.forward = LoraLinear(layer.base_layer, self._routing)
        self._made = 0
        self._heads: dict[str, LayerLora | None] = {BASE: None}
        self._trainable: dict[str, list[nn.Parameter]] = {}
        self._routing.freeze(BASE)
        self._settle()
        self.select(None)

    def create(self, lora: LoraConfig) -> Adapter:
        """Make an adapter for training: A random by `lora.seed`, B zero.

        The process's random state is left as it was. Without a seed one is drawn from
        the system.

        Raises:
            InvalidInputError: The rank or the seed is out of range.
        """
        if lora.rank > MAX_RANK:
            raise InvalidInputError(
                f"rank {lora.rank} is above {MAX_RANK}, the most this engine makes",
                field="lora_config.rank",
            )
        seed = secrets.randbits(31) if lora.seed is None else lora.seed
        if not -(2**63) <= seed < 2**63:
            raise InvalidInputError(
                f"seed {seed} does not fit into 64 bits", field="lora_config.seed"
            )
        return self._add(msgspec.structs.replace(lora, seed=seed), trainable=True)

    def snapshot(self, source: Adapter) -> Adapter:
        """Copy an adapter as it is now, frozen for sampling."""
        return self.restore(source.lora, source.weights, trainable=False)

    def restore(
        self, lora: LoraConfig, weights: Mapping[str, torch.Tensor], *, trainable: bool
    ) -> Adapter:
        """Make an adapter with given weights, which are copied.

        Raises:
            InvalidInputError: Names or shapes are not those of such an adapter here.
        """
        return self._add(lora, trainable=trainable, weights=weights)

    def drop(self, adapter: Adapter) -> None:
        """Free an adapter. It must not be used again."""
        self.select(None)
        self.peft.delete_adapter(adapter.name)
        for linear in self._linears.values():
            linear.forget(adapter.name)
        self._routing.forget(adapter.name)
        self._trainable.pop(adapter.name, None)
        del self._heads[adapter.name]
        self._settle()

    def select(self, names: Sequence[str] | None) -> None:
        """Choose the adapter of each row of the forward passes that follow.

        Args:
            names: One adapter name, or `BASE`, for each row; None means `BASE` for all.
        """
        self._routing.set(names or [BASE])

    def heads(self, names: Sequence[str]) -> list[LayerLora | None]:
        """Return each row's part of the output head; None where the adapter has none."""
        return [self._heads[name] for name in names]

    def _settle(self) -> None:
        """Undo what peft did to other adapters: none is active, all keep `requires_grad`."""
        for layer in self._layers.values():
            layer.set_adapter([])
        for parameters in self._trainable.values():
            for parameter in parameters:
                parameter.requires_grad_(True)

    def _add(
        self,
        lora: LoraConfig,
        *,
        trainable: bool,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> Adapter:
        self._made += 1
        name = f"adapter{self._made}"
        config = self._peft_config(lora, trainable=trainable)
        device = torch.get_default_device() if weights is None else torch.device("meta")
        with _own_seed(lora.seed or 0), device:
            for path in self._sites.paths(lora):
                # What `PeftModel.add_adapter` does for a layer that is wrapped already. Its
                # search for such layers takes a second once there are a dozen adapters.
                self._layers[path].update_layer(name, lora.rank, lora_alpha=ALPHA, config=config)
        self.peft.peft_config[name] = config
        try:
            if weights is not None:
                self._fill(name, weights)
            for _, part in self._parts(name):
                part.float()  # whatever the base's dtype, or training would stall
        except InvalidInputError:
            self.peft.delete_adapter(name)
            self._settle()
            raise
        parts = {key: part.weight for key, part in self._parts(name)}
        if trainable:
            self._trainable[name] = list(parts.values())
        else:
            self._routing.freeze(name)
        self._settle()
        self._heads[name] = head = self._connect(name)
        return Adapter(
            name=name, lora=lora, trainable=trainable, weights=parts, head=head, config=config
        )

    def _parts(self, name: str) -> Iterator[tuple[str, Any]]:
        """Yield an adapter's A and B layers with their names in a PEFT checkpoint."""
        for path, layer in self._layers.items():
            if name in layer.lora_A:
                yield f"base_model.model.{path}.lora_A.weight", layer.lora_A[name]
                yield f"base_model.model.{path}.lora_B.weight", layer.lora_B[name]

    def _fill(self, name: str, weights: Mapping[str, torch.Tensor]) -> None:
        parts = dict(self._parts(name))
        difference = sorted(parts.keys() ^ weights.keys())
        if difference:
            raise InvalidInputError(
                f"{len(difference)} weights are missing or unknown, such as {difference[0]}",
                field="weights",
            )
        for key, part in parts.items():
            if part.weight.shape != weights[key].shape:
                raise InvalidInputError(
                    f"{key} has shape {tuple(weights[key].shape)}, "
                    f"expected {tuple(part.weight.shape)}",
                    field="weights",
                )
        for key, part in parts.items():
            copy = weights[key].detach().to(self._device, torch.float32, copy=True)
            part.weight = nn.Parameter(copy, requires_grad=part.weight.requires_grad)

    def _connect(self, name: str) -> LayerLora | None:
        """Hand an adapter's final parameters to the layers; return its part of the head."""
        for path, layer in self._layers.items():
            if name in layer.lora_A:
                self._linears[path].loras[name] = LayerLora(
                    layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
                )
        return self._linears[self._sites.head].loras.get(name)

    def _peft_config(self, lora: LoraConfig, *, trainable: bool = True) -> peft.LoraConfig:
        return peft.LoraConfig(
            r=lora.rank,
            lora_alpha=ALPHA,
            target_modules=self._sites.targets(lora),
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
            inference_mode=not trainable,
        )


@dataclass(frozen=True)
class _Sites:
    """Paths of the layers that LoRA adapts, by what `LoraConfig` calls them."""

    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    head: str

    @classmethod
    def of(cls, model: Any) -> _Sites:
        output = model.get_output_embeddings()
        attention, mlp, head = [], [], ""
        for path, module in model.named_modules():
            if module is output:
                head = path
            elif not isinstance(module, nn.Linear):
                continue
            elif any(word in path for word in _ATTENTION_WORDS):
                attention.append(path)
            elif any(word in path for word in _MLP_WORDS):
                mlp.append(path)
        if not (attention and mlp and head):
            raise ConfigError(
                "no attention projections, MLP projections or output head were found",
                hint="the engine adapts Linear layers below modules named like attention or mlp",
            )
        return cls(attention=tuple(attention), mlp=tuple(mlp), head=head)

    def paths(self, lora: LoraConfig) -> list[str]:
        """Return the layers of an adapter, in the model's order by kind."""
        return [
            *(self.attention if lora.train_attn else ()),
            *(self.mlp if lora.train_mlp else ()),
            *([self.head] if lora.train_unembed else ()),
        ]

    def targets(self, lora: LoraConfig) -> list[str]:
        """Return sorted module names as PEFT configs have them: the last parts of the paths.

        One that attention and MLP share keeps its parent's name.
        """
        shared = {_last(path) for path in self.attention} & {_last(path) for path in self.mlp}
        return sorted({_last(path, 2 if _last(path) in shared else 1) for path in self.paths(lora)})


def _last(path: str, parts: int = 1) -> str:
    return ".".join(path.split(".")[-parts:])


@contextmanager
def _own_seed(seed: int) -> Iterator[None]:
    """Seed torch for the block only. peft draws on the CPU, whatever the model's device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def _known_warnings() -> Iterator[None]:
    """Quiet what peft warns about here, both harmless.

    A tied head is safe because checkpoints hold LoRA weights only, and a deprecated
    property of transformers is peft's affair.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Model (has|with) `tie_word_embeddings=True`")
        warnings.filterwarnings("ignore", message=r"`is_gradient_checkpointing` is deprecated")
        yield
