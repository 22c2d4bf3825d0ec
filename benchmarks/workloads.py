"""What the measured clients are asked to do, the same for each: numbers, not objects.

Needs numpy only, so that the official client's environment can use it, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

VOCABULARY = 49_152
KEY = "tml-benchmark-key"
"""Of the right form; no server here checks it."""


def prompts(number: int, tokens: int = 512) -> list[npt.NDArray[np.int32]]:
    """Return different prompts of random tokens."""
    random = np.random.default_rng(0)
    return list(random.integers(0, VOCABULARY, (number, tokens), dtype=np.int32))


def training_rows(rows: int, tokens: int) -> list[dict[str, npt.NDArray[Any]]]:
    """Return rows for cross entropy: tokens int32, targets int64, weights float32."""
    random = np.random.default_rng(0)
    return [
        {
            "tokens": random.integers(0, VOCABULARY, tokens, dtype=np.int32),
            "target_tokens": random.integers(0, VOCABULARY, tokens, dtype=np.int64),
            "weights": np.ones(tokens, dtype=np.float32),
        }
        for _ in range(rows)
    ]


def base_model(tokens: int, delay_ms: int) -> str:
    """Return the stub's name for a model of this speed."""
    return f"stub-{tokens}-tokens-{delay_ms}-ms"
