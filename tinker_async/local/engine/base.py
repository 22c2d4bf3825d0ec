"""The frozen base model: loading it, refusing what the engine cannot serve, and running it.

The decoder and its output head are run apart, so that nobody has to hold the logits
of every position. All adapters live on it, in `BaseModel.adapters`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers

from tinker_async.errors import ConfigError
from tinker_async.local.engine.adapters import BASE, AdapterSet
from tinker_async.local.engine.head import Head
from tinker_async.local.engine.jobs import ModelCard
from tinker_async.local.models import check_architecture

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class BaseModel:
    """One transformers decoder in evaluation mode, with its adapters. Make it with `load`."""

    card: ModelCard
    hf_config: Any
    device: torch.device
    dtype: torch.dtype
    parameters: int
    adapters: AdapterSet
    head: Head

    def __init__(self, model: Any, *, name: str) -> None:
        self.hf_config = model.config
        self.device = model.device
        self.parameters = sum(weight.numel() for weight in model.parameters())
        self.dtype = model.dtype
        output = model.get_output_embeddings()
        self.head = Head(weight=output.weight, bias=output.bias)
        self.card = _card(model, name)
        self._decoder = model.get_decoder()
        self.adapters = AdapterSet(model)

    @classmethod
    def load(cls, folder: Path, *, name: str, dtype: str = "float32") -> BaseModel:
        """Load a Hugging Face model folder onto the best device there is.

        Nothing is downloaded and no code from the folder is run.

        Args:
            folder: Holds `config.json` and safetensors weights.
            name: What users call the model.
            dtype: `float32` or `bfloat16`, of the base weights; adapters are always float32.

        Raises:
            ConfigError: The folder cannot be read, or its architecture is not a decoder
                with full attention in every layer and a plain linear head.
        """
        if dtype not in _DTYPES:
            raise ConfigError(f"dtype {dtype!r} is not one of {', '.join(_DTYPES)}")
        try:
            config = transformers.AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            check_architecture(config.to_dict())
            _check_rope(config)
            with _quiet_loading():
                model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                    folder,
                    config=config,
                    dtype=_DTYPES[dtype],
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,  # never pickle
                )
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"the model folder {folder.name!r} cannot be loaded: {error}",
                hint="give a Hugging Face folder with config.json and safetensors weights",
            ) from error
        base = cls(model.to(_best_device()).eval(), name=name)
        base._check_head(model)
        return base

    @property
    def peft(self) -> Any:
        """The model as peft wraps it."""
        return self.adapters.peft

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the base weights, their names and shapes, and the architecture.

        Weights count as bfloat16, so that it does not depend on the dtype they were
        loaded in. Computed on first use (0.3 s for 135 M parameters).
        """
        digest = hashlib.sha256(self.card.architecture.encode())
        for name, parameter in sorted(self.peft.named_parameters()):
            if ".lora_" not in name:
                plain = name.replace(".base_layer", "")
                digest.update(f"\n{plain} {tuple(parameter.shape)}\n".encode())
                rounded = parameter.detach().to("cpu", torch.bfloat16).contiguous()
                digest.update(rounded.view(torch.int16).numpy().data)
        return digest.hexdigest()

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cache: Any = None,
        adapter_names: Sequence[str] | None = None,
    ) -> torch.Tensor:
        """Run the decoder, final norm included.

        Gradients flow into the adapter when all rows use the same trainable one and the
        caller has them enabled.

        Args:
            input_ids: int64 `[rows, length]`.
            position_ids: int64 `[rows, length]`; None counts from 0.
            attention_mask: Additive, `[rows, 1, length, keys]` in the model's dtype; None
                is causal.
            cache: A transformers `Cache`, which is then written to, or None.
            adapter_names: For each row `Adapter.name` or `BASE`; None is `BASE` for all.

        Returns:
            `[rows, length, hidden]` in the model's dtype.
        """
        self.adapters.select(adapter_names)
        output = self._decoder(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def logits(
        self, hidden: torch.Tensor, adapter_names: Sequence[str] | None = None
    ) -> torch.Tensor:
        """Apply the output head with each row's adapter.

        Args:
            hidden: `[rows, ..., hidden]` from `hidden_states`.
            adapter_names: As in `hidden_states`.

        Returns:
            float32 `[rows, ..., vocab]`.
        """
        loras = self.adapters.heads(adapter_names or [BASE])
        if all(lora is loras[0] for lora in loras):
            return self.head.logits(hidden, loras[0])
        return self.head.mixed_logits(hidden, loras)

    @torch.no_grad()
    def _check_head(self, model: Any) -> None:
        """Refuse models that do more with logits than a linear head, such as scaling them."""
        tokens = torch.arange(8, device=self.device).remainder(self.card.vocab_size)[None]
        ours = self.logits(self.hidden_states(tokens))
        theirs = model(input_ids=tokens, use_cache=False).logits.float()
        if not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2):
            raise _unsupported(self.hf_config, "computes more than a linear output head")


def _check_rope(config: Any) -> None:
    """Refuse rotary embeddings that change with the longest row of a batch."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in {"dynamic", "longrope"}:
        raise _unsupported(config, f"has a rotary embedding of type {rope['rope_type']}")


def _unsupported(config: Any, reason: str) -> ConfigError:
    names = getattr(config, "architectures", None) or [config.model_type]
    return ConfigError(
        f"{names[0]} is not supported: it {reason}",
        hint="the engine runs dense decoders with full attention, such as Llama and Qwen3",
    )


def _card(model: Any, name: str) -> ModelCard:
    config = model.config
    ends = getattr(model.generation_config, "eos_token_id", None)
    if ends is None:
        ends = config.eos_token_id
    if ends is None:
        ends = []
    return ModelCard(
        name=name,
        architecture=type(model).__name__,
        vocab_size=min(
            model.get_input_embeddings().weight.shape[0],
            model.get_output_embeddings().weight.shape[0],
        ),
        max_context_length=config.max_position_embeddings,
        eos_token_ids=tuple(ends) if isinstance(ends, list) else (ends,),
    )


def _best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Keep transformers from drawing a progress bar into the server's log."""
    logging: Any = transformers.utils.logging  # its functions are untyped
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
