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


@torch.no_grad()
def test_rows_of_one_position_each_get_their_own_frozen_adapter(
    layer: tuple[LoraLinear, Routing],
) -> None:
    """Frozen adapters are applied at once: of any rank, any number of rows, in any order."""
    apply, routing = layer
    for name in ("a", "b", "none"):
        routing.freeze(name)
    for names in (
        ["none", "a"],
        ["b", "a", "none", "b", "b"],  # one more: copied anew
        ["a", "b", "b"],  # fewer, within the same copies
        ["a", "a", "a", "a", "b"],
        ["b", "none", "b"],
    ):
        routing.set(names)
        inputs = torch.randn(len(names), 1, INPUTS)
        single = [expected(apply, name, row) for name, row in zip(names, inputs, strict=True)]
        torch.testing.assert_close(apply(inputs), torch.stack(single))
        assert routing.stacking() is not None


@torch.no_grad()
def test_adapters_in_training_are_never_read_from_a_copy(
    layer: tuple[LoraLinear, Routing],
) -> None:
    """What changes an adapter between two passes shows in the second."""
    apply, routing = layer
    routing.freeze("a")
    names = ["a", "b"]
    inputs = torch.randn(2, 1, INPUTS)
    for _ in range(2):
        routing.set(names)
        single = [expected(apply, name, row) for name, row in zip(names, inputs, strict=True)]
        torch.testing.assert_close(apply(inputs), torch.stack(single))
        apply.loras["b"].b.add_(1.0)


@torch.no_grad()
def test_more_adapters_than_are_kept_side_by_side(layer: tuple[LoraLinear, Routing]) -> None:
    """They are applied in turn, to the same result."""
    apply, routing = layer
    names = [f"many{number}" for number in range(9)]
    for name in names:
        a, b = torch.randn(2, INPUTS), torch.randn(OUTPUTS, 2)
        apply.loras[name] = LayerLora(nn.Parameter(a), nn.Parameter(b), 1.5)
        routing.freeze(name)
    rows = [*names, *reversed(names)]
    routing.set(rows)
    inputs = torch.randn(len(rows), 1, INPUTS)
    single = [expected(apply, name, row) for name, row in zip(rows, inputs, strict=True)]
    torch.testing.assert_close(apply(inputs), torch.stack(single))
    assert routing.stacking() is None


@torch.no_grad()
def test_a_forgotten_adapter_leaves_no_copy_behind(layer: tuple[LoraLinear, Routing]) -> None:
    """Its name is unknown afterwards, and the others are as before."""
    apply, routing = layer
    for name in ("a", "b"):
        routing.freeze(name)
    inputs = torch.randn(2, 1, INPUTS)
    routing.set(["a", "b"])
    apply(inputs)
    apply.forget("b")
    routing.forget("b")
    assert apply._stack is None
    for names in (["a", "b"], ["b", "a"]):
        routing.set(names)
        single = [expected(apply, name, row) for name, row in zip(names, inputs, strict=True)]
        torch.testing.assert_close(apply(inputs), torch.stack(single))
