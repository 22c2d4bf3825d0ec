"""The fused head: log-probs and gradients against full logits and autograd."""

from __future__ import annotations

import pytest
import torch

from tinker_async.local.engine.head import Head, score
from tinker_async.local.engine.lora_linear import LayerLora

POSITIONS, HIDDEN, VOCAB, RANK = 23, 16, 50, 4


def draw(width: int, *, bias: bool) -> tuple[Head, LayerLora, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    head = Head(torch.randn(VOCAB, HIDDEN) / 4, torch.randn(VOCAB) if bias else None)
    lora = LayerLora(
        torch.nn.Parameter(torch.randn(RANK, HIDDEN) / 4),
        torch.nn.Parameter(torch.randn(VOCAB, RANK)),
        0.5,
    )
    hidden = torch.randn(POSITIONS, HIDDEN, requires_grad=True)
    return head, lora, hidden, torch.randint(0, VOCAB, (POSITIONS, width))


def squared(logprobs: torch.Tensor, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """A loss whose slope depends on the log-prob and the position."""
    weight = torch.arange(POSITIONS)[part, None] / POSITIONS
    return weight * logprobs.square(), 2 * weight * logprobs


@pytest.mark.parametrize("chunk_tokens", [1, 5, 23, 100])
@pytest.mark.parametrize(("width", "bias"), [(1, False), (3, True)])
def test_scores_and_gradients_equal_autograd_over_full_logits(
    chunk_tokens: int, width: int, bias: bool
) -> None:
    """Whatever the chunks, with several targets a position, repeated ones and a bias too."""
    head, lora, hidden, targets = draw(width, bias=bias)
    targets[3] = targets[3, 0]  # the same target in every column
    logits = hidden @ head.weight.T + lora.scale * (hidden @ lora.a.T) @ lora.b.T
    logits = logits if head.bias is None else logits + head.bias
    expected = logits.log_softmax(-1).gather(-1, targets)
    losses, _ = squared(expected, slice(None))
    losses.sum().backward()  # type: ignore[no-untyped-call]  # torch has no types here

    scores = score(head, lora, hidden, targets, squared, gradients=True, chunk_tokens=chunk_tokens)

    torch.testing.assert_close(scores.logprobs, expected.detach())
    torch.testing.assert_close(scores.losses, losses.detach())
    torch.testing.assert_close(scores.grad_hidden, hidden.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores.grad_a, lora.a.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores.grad_b, lora.b.grad, rtol=1e-4, atol=1e-5)


def test_no_chunk_holds_more_positions_than_asked() -> None:
    """The loss sees the positions in order, a chunk at a time, each once."""
    head, lora, hidden, targets = draw(1, bias=False)
    parts: list[slice] = []

    def spy(logprobs: torch.Tensor, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        parts.append(part)
        return logprobs, torch.ones_like(logprobs)

    score(head, lora, hidden, targets, spy, gradients=True, chunk_tokens=10)

    assert [(0, 10), (10, 20), (20, 23)] == [(part.start, part.stop) for part in parts]


def test_without_gradients_only_scores_are_computed() -> None:
    """forward gives the same log-probs and no gradients."""
    head, lora, hidden, targets = draw(2, bias=False)
    with_gradients = score(head, lora, hidden, targets, squared, gradients=True)
    without = score(head, lora, hidden, targets, squared, gradients=False)
    assert torch.equal(with_gradients.logprobs, without.logprobs)
    assert (None, None, None) == (without.grad_hidden, without.grad_a, without.grad_b)


def test_mixed_rows_get_their_own_adapter() -> None:
    """Each row's logits equal those with its adapter alone; None is the base head."""
    head, lora, hidden, _ = draw(1, bias=False)
    other = LayerLora(torch.nn.Parameter(lora.a * 2), lora.b, 0.5)
    loras = [lora, None, other, lora]
    with torch.no_grad():
        mixed = head.mixed_logits(hidden[:4], loras)
        for row, one in enumerate(loras):
            torch.testing.assert_close(mixed[row], head.logits(hidden[row], one))
