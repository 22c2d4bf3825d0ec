"""Where the bytes come from: signed URLs, which run out and are then asked for anew.

The rule: whoever is refused says which URL it was, so that tasks which are refused together
ask the server once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final, Protocol, TypeAlias
from urllib.parse import urljoin

import anyio
import msgspec

from tinker_async.download.records import Route
from tinker_async.errors import DownloadError

ARCHIVE: Final = "archive"
"""The one file's name on the archive's route."""
_MARGIN_S = 30.0
"""A URL is not used any more when it has so little time left."""


class ExternalUrls(Protocol):
    """What `get_external_weights_urls` returns."""

    @property
    def urls(self) -> dict[str, str]:
        """URL by file, relative to the checkpoint."""

    @property
    def expires(self) -> datetime | None:
        """When they run out."""


class ArchiveUrl(Protocol):
    """What `get_checkpoint_archive_url` returns."""

    @property
    def url(self) -> str:
        """The archive's URL."""

    @property
    def expires(self) -> datetime | None:
        """When it runs out."""


class AsksForUrls(Protocol):
    """The part of `RestClient` that a download needs."""

    async def get_external_weights_urls(self, tinker_path: str) -> ExternalUrls:
        """Ask for URLs of a checkpoint's files."""

    async def get_checkpoint_archive_url(self, tinker_path: str) -> ArchiveUrl:
        """Ask for a URL of all of a checkpoint as one archive."""


class SignedUrls(msgspec.Struct, frozen=True):
    """URLs by file, and when they run out."""

    urls: dict[str, str]
    expires: datetime | None


Sign: TypeAlias = Callable[[], Awaitable[SignedUrls]]


def signing(rest: AsksForUrls, tinker_path: str, route: Route, *, base_url: str) -> Sign:
    """Return what asks for URLs on a route; relative ones are the server's own."""

    async def external() -> SignedUrls:
        answer = await rest.get_external_weights_urls(tinker_path)
        urls = {name: _absolute(url, base_url) for name, url in answer.urls.items()}
        return SignedUrls(urls, answer.expires)

    async def archive() -> SignedUrls:
        answer = await rest.get_checkpoint_archive_url(tinker_path)
        return SignedUrls({ARCHIVE: _absolute(answer.url, base_url)}, answer.expires)

    return external if route == "external" else archive


def _absolute(url: str, base_url: str) -> str:
    return urljoin(base_url, url) if url.startswith("/") else url


class Source:
    """The URLs of one checkpoint's files, as fresh as need be.

    Args:
        sign: Asks the server for URLs.
        signed: The first ones.
    """

    def __init__(self, sign: Sign, signed: SignedUrls) -> None:
        self._sign = sign
        self._lock = anyio.Lock()
        self._urls: dict[str, str] = {}
        self._runs_out_at: float | None = None
        self._take(signed)

    @property
    def files(self) -> list[str]:
        """The names of the files, sorted."""
        return sorted(self._urls)

    async def url(self, file: str, *, refused: str | None = None) -> str:
        """Return a URL of a file.

        Args:
            file: Its name.
            refused: The URL that a host would not take any more: another is returned.

        Raises:
            DownloadError: The server does not offer the file any more.
            TinkerError: As the request for URLs.
        """
        async with self._lock:
            ran_out = self._runs_out_at is not None and anyio.current_time() >= self._runs_out_at
            if ran_out or self._urls.get(file) in (None, refused):
                self._take(await self._sign())
        if file not in self._urls:
            raise DownloadError(f"the server does not offer {file!a} of this checkpoint any more")
        return self._urls[file]

    def _take(self, signed: SignedUrls) -> None:
        self._urls, self._runs_out_at = signed.urls, None
        if signed.expires is not None and signed.expires.tzinfo is not None:
            left_s = (signed.expires - datetime.now(UTC)).total_seconds() - _MARGIN_S
            # Out already: the clocks differ, so let the host judge.
            if left_s > 0:
                self._runs_out_at = anyio.current_time() + left_s
