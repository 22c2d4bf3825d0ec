"""The five losses: values and slopes against the published formulas, and their settings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.training_cases import naive_loss

from tinker_async.errors import InvalidInputError
from tinker_async.local.engine.losses import make_loss

CASES = [
    ("cross_entropy", {}),
    ("importance_sampling", {}),
    ("ppo", {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}),
    ("ppo", {"clip_low_threshold": 0.5, "clip_high_threshold": 3.0}),
    ("cispo", {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0}),
    ("dro", {"beta": 0.05}),
]


def draw(shape: tuple[int, ...]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    p = -torch.rand(shape, generator=generator) * 4
    tensors = {
        "weights": torch.randn(shape, generator=generator),
        "logprobs": p + torch.randn(shape, generator=generator),
        "advantages": torch.randn(shape, generator=generator),
    }
    return p, tensors


@pytest.mark.parametrize("shape", [(400,), (100, 3)])
@pytest.mark.parametrize(("name", "config"), CASES)
def test_loss_and_slope_equal_the_published_formula(
    name: str, config: dict[str, float], shape: tuple[int, ...]
) -> None:
    """Losses equal the formula; slopes equal its derivative by autograd."""
    p, tensors = draw(shape)
    p.requires_grad_()
    expected = naive_loss(name, p, tensors, config)
    expected.sum().backward()  # type: ignore[no-untyped-call]  # torch has no types here

    losses, slopes = make_loss(name, config)(p.detach(), tensors)

    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(slopes, p.grad)


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        ("ppo", {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}),
        ("cispo", {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0}),
        ("dro", {"beta": 0.05}),
        ("cross_entropy", {}),
    ],
)
def test_defaults_are_the_documented_ones(name: str, defaults: dict[str, float]) -> None:
    """An empty config means the documented defaults."""
    assert defaults == dict(make_loss(name, {}).config)


@pytest.mark.parametrize("name", ["importance_sampling", "ppo", "cispo"])
def test_a_position_without_advantage_adds_nothing_even_if_its_ratio_overflows(name: str) -> None:
    """Where A = 0, loss and slope are exactly 0, though exp(p - q) is infinite."""
    tensors = {"logprobs": torch.tensor([-1000.0]), "advantages": torch.tensor([0.0])}
    losses, slopes = make_loss(name, {})(torch.tensor([-1.0]), tensors)
    assert (0.0, 0.0) == (losses.item(), slopes.item())


def test_dro_keeps_its_quadratic_term_on_prompt_positions() -> None:
    """As published: A = 0 and q = 0 still give beta/2 p^2."""
    tensors = {"logprobs": torch.zeros(1), "advantages": torch.zeros(1)}
    losses, slopes = make_loss("dro", {"beta": 0.1})(torch.tensor([-3.0]), tensors)
    np.testing.assert_allclose([0.45, -0.3], [losses.item(), slopes.item()], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "config", "field", "says"),
    [
        ("no_such_loss", {}, "loss_fn", "cispo, cross_entropy, dro, gspo, importance_sampling"),
        ("stable_reinforce", {}, "loss_fn", "is not published, so that this server cannot do it"),
        ("stable_reinforce", {}, "loss_fn", "take ppo, cispo or gspo, or upload a loss"),
        ("ppo", {"epsilon": 0.2}, "loss_fn_config['epsilon']", "clip_low_threshold"),
        ("cross_entropy", {"beta": 1}, "loss_fn_config['beta']", "no settings"),
        ("dro", {"beta": "big"}, "loss_fn_config['beta']", "'big'"),
        ("dro", {"beta": float("nan")}, "loss_fn_config['beta']", "finite"),
        ("ppo", {"clip_high_threshold": 0.2}, "loss_fn_config['clip_low_threshold']", "above"),
    ],
)
def test_unknown_losses_and_settings_are_refused_with_what_is_allowed(
    name: str, config: dict[str, float | str], field: str, says: str
) -> None:
    """The error names the field and lists what there is."""
    with pytest.raises(InvalidInputError) as caught:
        make_loss(name, config)
    assert field == caught.value.field
    assert says in str(caught.value)
