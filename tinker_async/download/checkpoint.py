"""`download_checkpoint`: from a path of the server to a folder of this machine.

The rule: the folder appears whole and checked, or not at all; what a broken, cancelled or
killed call has received stays beside it, and the same call goes on from there.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import anyio

from tinker_async.api.progress import Progress, check_timeout
from tinker_async.api.retry import RetryPolicy, check_policy
from tinker_async.data import given
from tinker_async.data.paths import CheckpointPath, parse_sampler_path
from tinker_async.download.records import DownloadedCheckpoint, Route, ShowProgress, Tally
from tinker_async.errors import (
    APIStatusError,
    InvalidInputError,
    RequestTimeoutError,
    TinkerError,
    UnsafeDownloadError,
)

if TYPE_CHECKING:
    from tinker_async.config import Config
    from tinker_async.download.disk import Aside, Disk
    from tinker_async.download.fetch import Reach
    from tinker_async.download.sources import AsksForUrls, Sign, SignedUrls

OPERATION = "download_checkpoint"
MAX_BYTES = 1 << 40
"""The most that a checkpoint may have on disk, unless the caller says otherwise: 1 TiB."""
_DISK_THREADS = 2
_NO_SUCH_ROUTE = {400, 404, 405, 410, 422, 501}
"""What servers answer that do not have a route, or not for this kind of checkpoint."""
_HINT = (
    "is the path right? Servers without archives have files only of external checkpoints: "
    "make one with save_weights_external"
)


async def download_checkpoint(
    rest: AsksForUrls,
    tinker_path: str,
    to: str | os.PathLike[str],
    *,
    config: Config,
    route: Literal["auto", "external", "archive"] = "auto",
    overwrite: bool = False,
    progress: ShowProgress | None = None,
    parallel: int = 4,
    max_bytes: int = MAX_BYTES,
    retry: RetryPolicy | None = None,
    timeout_s: float | None = None,
) -> DownloadedCheckpoint:
    """Download a checkpoint into a folder; see `RestClient.download_checkpoint`.

    Args:
        rest: Asks the server for URLs.
        tinker_path: The checkpoint.
        to: The folder to make.
        config: The connection's settings, for proxies, authorities and encryption.
        route: How; `auto` tries both.
        overwrite: Whether a folder that is there is replaced.
        progress: Told how far it is.
        parallel: How many files at a time.
        max_bytes: The most that is accepted.
        retry: For the bytes; default the usual.
        timeout_s: For all of it; None is no limit.
    """
    path = parse_sampler_path(tinker_path, field="tinker_path")
    target = _checked_target(to)
    check_timeout(timeout_s)
    check_policy(retry)
    given.whole(parallel, "parallel", least=1)
    given.whole(max_bytes, "max_bytes", least=1)
    given.flag(overwrite, "overwrite")
    if progress is not None:
        given.function(progress, "progress", "progress(DownloadProgress)")
    if route not in ("auto", "external", "archive"):
        raise InvalidInputError(
            f"route: {route!r} is no route", field="route", hint="auto, external or archive"
        )
    download = _Download(
        rest,
        path,
        target,
        config=config,
        overwrite=overwrite,
        tally=Tally(progress),
        parallel=parallel,
        max_bytes=max_bytes,
        policy=retry or RetryPolicy(),
    )
    routes = (route,) if route != "auto" else _routes(path)
    try:
        with anyio.move_on_after(timeout_s):
            return await download.run(routes)
    except TinkerError as error:
        error.operation = OPERATION
        download.progress.describe(error)
        raise
    raise download.progress.describe(
        RequestTimeoutError(
            f"{OPERATION} was not done after {timeout_s:g} s",
            hint="call again: what was received is kept and gone on from",
        )
    )


def _checked_target(to: str | os.PathLike[str]) -> Path:
    given.path(to, "to")
    target = Path(os.path.abspath(to))  # noqa: PTH100  # `resolve` would follow a link at the target
    if not target.name or Path.cwd().is_relative_to(target):
        raise InvalidInputError(
            f"to: {os.fspath(to)!r} cannot be replaced by a checkpoint",
            field="to",
            hint="give the name of a new folder",
        )
    return target


def _routes(path: CheckpointPath) -> tuple[Route, ...]:
    return ("external", "archive") if path.checkpoint_type == "external" else ("archive",)


class _Download:
    """One call."""

    def __init__(
        self,
        rest: AsksForUrls,
        path: CheckpointPath,
        target: Path,
        *,
        config: Config,
        overwrite: bool,
        tally: Tally,
        parallel: int,
        max_bytes: int,
        policy: RetryPolicy,
    ) -> None:
        self._rest = rest
        self._path = path
        self._target = target
        self._config = config
        self._overwrite = overwrite
        self._tally = tally
        self._parallel = parallel
        self._max_bytes = max_bytes
        self._policy = policy
        self.progress = Progress(OPERATION)
        """Counts the requests to the hosts of the files."""

    async def run(self, routes: tuple[Route, ...]) -> DownloadedCheckpoint:
        from tinker_async.download.disk import Aside, Disk, check_target  # noqa: PLC0415  # loads much

        disk = Disk(_DISK_THREADS)
        await disk.run(partial(check_target, self._target, overwrite=self._overwrite))
        route, sign, signed = await self._first_urls(routes)
        aside = await disk.run(
            partial(Aside, self._target, str(self._path), overwrite=self._overwrite)
        )
        try:
            return await self._fill(disk, aside, route, sign, signed)
        except UnsafeDownloadError:
            await disk.run(aside.remove)
            raise
        finally:
            with anyio.CancelScope(shield=True):  # it does not wait for anybody
                await disk.run(aside.close)

    async def _first_urls(self, routes: tuple[Route, ...]) -> tuple[Route, Sign, SignedUrls]:
        """Ask for URLs, by the first of the routes that the server has."""
        from tinker_async.download.sources import signing  # noqa: PLC0415  # as above

        missing: APIStatusError | None = None
        for route in routes:
            sign = signing(self._rest, str(self._path), route, base_url=self._config.base_url)
            try:
                return route, sign, await sign()
            except APIStatusError as error:
                if error.status not in _NO_SUCH_ROUTE:
                    raise
                missing = missing or error
        if missing is None:
            raise InvalidInputError("route: there is none", field="route")
        missing.hint = _HINT
        raise missing

    async def _fill(
        self, disk: Disk, aside: Aside, route: Route, sign: Sign, signed: SignedUrls
    ) -> DownloadedCheckpoint:
        from tinker_async.download.fetch import open_fetcher  # noqa: PLC0415  # loads httpcore
        from tinker_async.download.sources import Source  # noqa: PLC0415  # as above
        from tinker_async.download.stages import (  # noqa: PLC0415  # as above
            check,
            receive,
            unpack,
        )
        from tinker_async.download.transfer import Work  # noqa: PLC0415  # as above

        notes = await disk.run(partial(aside.open_notes, route))
        async with open_fetcher(self._reach(), max_connections=self._parallel) as fetcher:
            work = Work(
                fetcher=fetcher,
                source=Source(sign, signed),
                disk=disk,
                aside=aside,
                notes=notes,
                policy=self._policy,
                progress=self.progress,
                tally=self._tally,
                max_bytes=self._max_bytes,
            )
            received = await receive(work, route, parallel=self._parallel)
        if route == "archive":
            received = await unpack(work)
        sha256 = await check(work, received)
        size_bytes = self._tally.done_bytes
        await disk.run(aside.put_in_place)
        return DownloadedCheckpoint(
            path=self._target,
            files=tuple(sorted(sha256)),
            size_bytes=size_bytes,
            sha256=sha256,
            resumed_from_bytes=work.resumed_from_bytes,
            route=route,
        )

    def _reach(self) -> Reach:
        from tinker_async.download.fetch import Reach  # noqa: PLC0415  # as above
        from tinker_async.transport.trust import trusting_context  # noqa: PLC0415  # loads ssl

        return Reach(
            proxies=self._config.proxies,
            make_ssl_context=partial(trusting_context, self._config.ca_bundle),
            plain_allowed=self._config.base_url.startswith("http:"),
        )
