"""Choosing tokens: the distributions are exact, checked with evenly spaced uniforms."""

from __future__ import annotations

import math

import pytest
import torch

from tinker_async.data.params import SamplingParams
from tinker_async.local.engine.choosing import Uniforms, choose

GRID = 20_000
VOCAB = 40


def logits_of(seed: int, vocab: int = VOCAB) -> torch.Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * 2


def frequencies(logits: torch.Tensor, params: SamplingParams, *, grid: int = GRID) -> torch.Tensor:
    """How often each token is drawn by uniforms that cover [0, 1) evenly."""
    uniforms = [(i + 0.5) / grid for i in range(grid)]
    choice = choose(logits.expand(grid, -1), [params] * grid, uniforms)
    return torch.bincount(torch.tensor(choice.tokens), minlength=len(logits)) / grid


def reference(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The textbook: temperature, top-k, renormalise, top-p by exclusive sums, renormalise."""
    probs = (logits.double() / params.temperature).softmax(-1)
    order = probs.argsort(descending=True).tolist()
    if params.top_k > 0:
        order = order[: params.top_k]
    mass = sum(float(probs[token]) for token in order)
    kept: list[int] = []
    before = 0.0
    for token in order:
        if kept and params.top_p < 1 and before >= params.top_p:
            break
        kept.append(token)
        before += float(probs[token]) / mass
    expected = torch.zeros(len(logits), dtype=torch.float64)
    expected[kept] = probs[kept]
    return expected / expected.sum()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.5),
        SamplingParams(temperature=1.8),
        SamplingParams(top_k=1),
        SamplingParams(top_k=5),
        SamplingParams(top_k=10_000),
        SamplingParams(top_p=0.6),
        SamplingParams(top_p=1e-6),
        SamplingParams(top_p=0.999),
        SamplingParams(top_k=7, top_p=0.8, temperature=0.7),
        SamplingParams(top_k=4, top_p=0.6, temperature=3.0),
    ],
)
def test_draws_follow_the_textbook_distribution(params: SamplingParams) -> None:
    """Each token is drawn as often as temperature, top-k and top-p in this order demand."""
    logits = logits_of(1)
    expected = reference(logits, params)
    found = frequencies(logits, params)
    torch.testing.assert_close(expected, found.double(), atol=2 / GRID, rtol=0)


def test_top_p_looks_beyond_the_tokens_it_sorts_first() -> None:
    """With a flat distribution over a large vocabulary, top-p keeps the right share of it."""
    logits = torch.linspace(0, 0.5, 2000)
    params = SamplingParams(top_p=0.5)
    found = frequencies(logits, params, grid=2500)
    kept = int((reference(logits, params) > 0).sum())
    assert kept > 500
    assert abs(kept - int((found > 0).sum())) <= 1  # float32 may round across the limit
    assert int(found.nonzero().min()) == 2000 - int((found > 0).sum())


def test_rows_with_different_parameters_do_not_mix() -> None:
    """A batch of unlike rows gives what each row gives alone."""
    every = [
        SamplingParams(temperature=0),
        SamplingParams(),
        SamplingParams(top_k=3),
        SamplingParams(top_p=0.4),
        SamplingParams(temperature=0.3, top_k=300, top_p=0.9),
        SamplingParams(temperature=2.0),
    ]
    logits = torch.stack([logits_of(row, 600) for row in range(len(every))])
    uniforms = [0.05, 0.93, 0.5, 0.999999, 0.7, 0.0]
    together = choose(logits, every, uniforms, top=4)
    for row, params in enumerate(every):
        alone = choose(logits[row : row + 1], [params], [uniforms[row]], top=4)
        assert alone.tokens[0] == together.tokens[row]
        assert alone.logprobs[0] == pytest.approx(together.logprobs[row], abs=1e-6)
        assert alone.top_ids[0] == together.top_ids[row]


def test_greedy_takes_the_best_token_and_reports_it_at_temperature_one() -> None:
    """Temperature 0 ignores the uniform number; its log-prob is that of temperature 1."""
    logits = logits_of(2)[None]
    choice = choose(logits, [SamplingParams(temperature=0)], [0.99])
    best = int(logits.argmax())
    assert [best] == choice.tokens
    assert choice.logprobs[0] == pytest.approx(float(logits.log_softmax(-1)[0, best]), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 0.9, 1.0, 1.8])
def test_logprobs_are_those_of_the_temperature_scaled_distribution(temperature: float) -> None:
    """Differences of log-probs are those at temperature 1, divided by the temperature."""
    logits = logits_of(3)
    params = SamplingParams(temperature=temperature, top_k=VOCAB, top_p=0.999999)
    choice = choose(logits.expand(2, -1), [params] * 2, [0.2, 0.9], top=VOCAB)
    one = logits.log_softmax(-1)
    first, second = choice.tokens
    assert first != second
    expected = float(one[first] - one[second]) / temperature
    assert choice.logprobs[0] - choice.logprobs[1] == pytest.approx(expected, abs=1e-5)
    assert sum(map(math.exp, choice.top_logprobs[0])) == pytest.approx(1, abs=1e-5)


def test_truncation_does_not_change_the_reported_logprobs() -> None:
    """Top-k and top-p decide what can be drawn; the log-prob is that before them."""
    logits = logits_of(4)[None]
    choice = choose(logits, [SamplingParams(top_k=1)], [0.5])
    assert choice.logprobs[0] == pytest.approx(float(logits.log_softmax(-1).max()), abs=1e-6)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_a_token_without_probability_is_never_drawn(uniform: float) -> None:
    """Not even at the ends of the uniform range, where rounding would reach it."""
    logits = torch.full((1, 100), -math.inf)
    logits[0, 30:60] = logits_of(5, 30)
    for params in (SamplingParams(), SamplingParams(top_p=0.9), SamplingParams(temperature=1e-30)):
        (token,) = choose(logits, [params], [uniform]).tokens
        assert 30 <= token < 60


def test_rows_without_finite_logits_are_marked() -> None:
    """NaN and infinity in one row are reported, and leave the other rows alone."""
    logits = torch.stack([logits_of(6), torch.full((VOCAB,), math.nan), logits_of(7)])
    logits[2, 5] = math.inf
    choice = choose(logits, [SamplingParams(top_p=0.5)] * 3, [0.3] * 3)
    assert choice.finite == [True, False, False]
    assert choose(logits[:1], [SamplingParams(top_p=0.5)], [0.3]).tokens[0] == choice.tokens[0]


def test_seeds_repeat_and_all_their_bits_count() -> None:
    """Equal seeds give equal numbers, also negative ones; a high bit makes a difference."""

    def numbers(seed: int | None) -> list[float]:
        uniforms = Uniforms(seed)
        return [uniforms.next() for _ in range(100)]

    assert numbers(7) == numbers(7)
    assert numbers(-1) == numbers(-1)
    assert len({tuple(numbers(seed)) for seed in (7, 8, 7 + 2**32, 7 - 2**63)}) == 4
    assert numbers(None) != numbers(None)
    assert all(0 <= number < 1 for number in numbers(7))
