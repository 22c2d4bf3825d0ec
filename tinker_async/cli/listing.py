"""The first few of a listing, and whether there are more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from tinker_async.cli.output import Output

T = TypeVar("T")


async def first(
    items: AsyncIterator[T], limit: int, keep: Callable[[T], bool] = lambda _: True
) -> tuple[list[T], bool]:
    """Return the first items that are kept, at most `limit` (0 is all), and whether there are more.

    No more pages are asked for than it takes.
    """
    found: list[T] = []
    async for item in items:
        if not keep(item):
            continue
        if limit and len(found) == limit:
            return found, True
        found.append(item)
    return found, False


def tell_of_more(out: Output, shown: int, *, more: bool) -> None:
    """Say on stderr that a listing goes on."""
    if more:
        out.note(f"these are the first {shown}; --limit 0 shows all")
