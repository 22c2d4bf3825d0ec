"""Lets the session poller be used for a single sample: else the first few ask for themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tinker_async.background import roll


@contextmanager
def all_listed() -> Iterator[None]:
    """Let no sample ask for itself before it has waited to be told."""
    before, roll.FEW_ASKING = roll.FEW_ASKING, 0
    try:
        yield
    finally:
        roll.FEW_ASKING = before
