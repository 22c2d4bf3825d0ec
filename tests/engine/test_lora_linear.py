"""How a layer applies its adapters: against the formula, in float32 and bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from tinker_async.local.engine.lora_linear import LayerLora, LoraLinear, Routing

INPUTS, OUTPUTS = 6, 5


@pytest.fixture
def layer() -> tuple[LoraLinear, Routing]:
    """A layer with a bias, and adapters "a" and "b" of different ranks and scales on it."""
    torch.manual_seed(0)
    routing = Routing(torch.device("cpu"))
    layer = LoraLinear(nn.Linear(INPUTS, OUTPUTS).requires_grad_(False), routing)
    for name, rank, scale in (("a", 2, 0.5), ("b", 3, 2.0)):
        a, b = torch.randn(rank, INPUTS), torch.randn(OUTPUTS, rank)
        layer.loras[name] = LayerLora(nn.Parameter(a), nn.Parameter(b), scale)
    return layer, routing


def expected(layer: LoraLinear, name: str, inputs: torch.Tensor) -> torch.Tensor:
    result = linear(inputs, layer._weight, layer._bias)
    lora = layer.loras.get(name)
    return result if lora is None else result + lora.scale * (inputs @ lora.a.T) @ lora.b.T


@pytest.mark.parametrize("name", ["a", "b", "none"])
def test_one_adapter_for_all_rows(layer: tuple[LoraLinear, Routing], name: str) -> None:
    """Outputs and all gradients are those of the formula; a missing adapter changes nothing."""
    apply, routing = layer
    routing.set([name])
    inputs = torch.randn(3, 4, INPUTS, requires_grad=True)
    lora = apply.loras.get(name)
    of = [inputs] if lora is None else [inputs, lora.a, lora.b]
    slopes = torch.randn(3, 4, OUTPUTS)
    found, wanted = apply(inputs), expected(apply, name, inputs)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(found, of, slopes), torch.autograd.grad(wanted, of, slopes)
    )


@torch.no_grad()
def test_rows_of_different_adapters_in_any_order(layer: tuple[LoraLinear, Routing]) -> None:
    """Each row gets its own adapter, also when the next batch has other rows."""
    apply, routing = layer
    for names in (["b", "a", "none", "b"], ["a", "b", "none", "b"], ["a", "a"], ["b", "none"]):
        routing.set(names)
        inputs = torch.randn(len(names), 2, INPUTS)
        single = [expected(apply, name, row) for name, row in zip(names, inputs, strict=True)]
        torch.testing.assert_close(apply(inputs), torch.stack(single))


@torch.no_grad()
@pytest.mark.parametrize("names", [["a"], ["a", "b", "none"]])
def test_a_bfloat16_layer_applies_float32_adapters(
    layer: tuple[LoraLinear, Routing], names: list[str]
) -> None:
    """The result is bfloat16, and right to its precision."""
    apply, routing = layer
    half = LoraLinear(nn.Linear(INPUTS, OUTPUTS).bfloat16(), routing)
    half.loras = apply.loras
    routing.set(names)
    inputs = torch.randn(3, 2, INPUTS).bfloat16()
    rows = names * 3 if len(names) == 1 else names
    apply._weight.copy_(half._weight)
    apply._bias.copy_(half._bias)
    single = [expected(apply, name, row.float()) for name, row in zip(rows, inputs, strict=True)]
    found = half(inputs)
    assert torch.bfloat16 == found.dtype
    torch.testing.assert_close(found.float(), torch.stack(single), rtol=2e-2, atol=2e-2)
