"""Listings that come a page at a time, as iterators over their items.

The rule: each item is given once, also when others are added or deleted meanwhile, and the end
is where the server has nothing more, not where a page is shorter than it was asked to be.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from tinker_async.data.records import Cursor

T = TypeVar("T")


class Pages(Protocol[T]):
    """Gives one page after the other."""

    async def next(self) -> list[T] | None:
        """Return the new items of the next page, or None at the end."""
        ...


class Listing(AsyncIterator[T]):
    """Iterates over the items of pages. It holds nothing that would have to be closed."""

    def __init__(self, pages: Pages[T]) -> None:
        self._pages = pages
        self._items: deque[T] = deque()
        self._ended = False

    async def __anext__(self) -> T:
        while not self._items:
            page = None if self._ended else await self._pages.next()
            if page is None:
                self._ended = True
                raise StopAsyncIteration
            self._items.extend(page)
        return self._items.popleft()


class OffsetPages(Generic[T]):
    """Pages by offset.

    Args:
        fetch: Returns the items from an offset on, and the cursor, if the server gives one.
        key: What an item is told by.
        whole: Whether a page without a cursor is all there is.
    """

    def __init__(
        self,
        fetch: Callable[[int], Awaitable[tuple[list[T], Cursor | None]]],
        key: Callable[[T], str],
        *,
        whole: bool = False,
    ) -> None:
        self._fetch = fetch
        self._key = key
        self._whole = whole
        self._offset = 0
        self._furthest = 0
        self._total: int | None = None
        self._known: set[str] = set()
        self._ended = False

    async def next(self) -> list[T] | None:
        """Return the new items of the next page, or None at the end."""
        if self._ended:
            return None
        items, cursor = await self._fetch(self._offset)
        if cursor is not None and self._total is not None and cursor.total_count < self._total:
            # As many items are gone, perhaps by our user's hand: what follows has moved up.
            self._offset = max(0, self._offset - (self._total - cursor.total_count))
            self._total = cursor.total_count
            return []
        fresh = [item for item in items if self._key(item) not in self._known]
        self._known.update(map(self._key, fresh))
        self._offset += len(items)
        self._ended = self._is_last(items, fresh, cursor)
        self._furthest = max(self._furthest, self._offset)
        self._total = cursor.total_count if cursor is not None else None
        return fresh

    def _is_last(self, items: list[T], fresh: list[T], cursor: Cursor | None) -> bool:
        if not items:
            return True
        if cursor is None:
            return self._whole or not fresh
        if self._offset >= cursor.total_count:
            return True
        # A server that gives the same page for every offset would never end.
        grown = self._total is not None and cursor.total_count > self._total
        return not fresh and self._offset > self._furthest and not grown


class CursorPages(Generic[T]):
    """Pages of which each says where the next one starts.

    Args:
        fetch: Returns the items of a page and where the next one starts; None is the first page,
            and no next one.
    """

    def __init__(
        self, fetch: Callable[[object | None], Awaitable[tuple[list[T], object | None]]]
    ) -> None:
        self._fetch = fetch
        self._place: object | None = None
        self._ended = False

    async def next(self) -> list[T] | None:
        """Return the items of the next page, or None at the end."""
        if self._ended:
            return None
        items, place = await self._fetch(self._place)
        self._ended = place is None or place == self._place
        self._place = place
        return items
