"""Log-probs of the prompt's own tokens, gathered while the prompt is read.

The rule: the logits of all positions are never held at once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tinker_async.data.results import TopkLogprobs

_LOGITS_AT_ONCE = 2**23
"""32 MB in float32"""


class PromptScores:
    """Scores of one prompt, at temperature 1.

    Args:
        prompt: int64 `(P,)`.
        top: How many of the most likely tokens to keep for each position.
    """

    def __init__(self, prompt: Tensor, *, top: int) -> None:
        length = len(prompt)
        self._prompt = prompt
        self._top = top
        self.logprobs = np.full(length, np.nan, dtype=np.float32)
        """float32 `(P,)`; NaN at position 0, which nothing predicts"""
        self._ids = np.zeros((length, top), dtype=np.int32)
        self._values = np.full((length, top), TopkLogprobs.EMPTY, dtype=np.float32)

    @property
    def topk(self) -> TopkLogprobs:
        """The most likely tokens at each position; position 0 is empty."""
        return TopkLogprobs(self._ids, self._values)

    def add(self, hidden: Tensor, start: int, head: Callable[[Tensor], Tensor]) -> None:
        """Score the tokens that follow positions `start`, `start + 1`, and so on.

        Args:
            hidden: `(T, hidden)`, the states of adjacent positions.
            start: The first of these positions.
            head: Gives float32 `(n, vocab)` logits of `(n, hidden)` states.
        """
        stop = min(start + len(hidden), len(self._prompt) - 1)  # the last one predicts no prompt
        size = 1
        while start < stop:
            logprobs = head(hidden[:size]).log_softmax(-1)  # (n, vocab)
            count = min(len(logprobs), stop - start)
            self._keep(start + 1, logprobs[:count])
            start, hidden = start + count, hidden[count:]
            size = max(1, _LOGITS_AT_ONCE // logprobs.shape[1])

    def _keep(self, first: int, logprobs: Tensor) -> None:
        places = slice(first, first + len(logprobs))
        targets = self._prompt[places, None].to(logprobs.device)
        self.logprobs[places] = logprobs.gather(1, targets).squeeze(1).numpy(force=True)
        if self._top:
            best = torch.topk(logprobs, self._top, dim=-1)
            self._ids[places] = best.indices.numpy(force=True)
            self._values[places] = best.values.numpy(force=True)
