"""The part of `RestClient` that downloads checkpoints; the work is in `tinker_async.download`."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Literal

from tinker_async.api.progress import DEFAULT, Timeout
from tinker_async.api.retry import RetryPolicy
from tinker_async.rest.weights import WeightsCalls

if TYPE_CHECKING:
    from tinker_async.download.records import DownloadedCheckpoint, ShowProgress


class DownloadCalls(WeightsCalls):
    """Downloading checkpoints."""

    async def download_checkpoint(
        self,
        tinker_path: str,
        to: str | PathLike[str],
        *,
        route: Literal["auto", "external", "archive"] = "auto",
        overwrite: bool = False,
        progress: ShowProgress | None = None,
        parallel: int = 4,
        max_bytes: int = 1 << 40,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the name that all calls have
        retry: RetryPolicy | None = None,
    ) -> DownloadedCheckpoint:
        """Download a checkpoint into a folder, which appears whole or not at all.

        What is received meanwhile is in `.<name>.partial` beside it. A call that fails, is
        cancelled or killed leaves that, and the same call goes on from there: files that have
        changed on the server are received anew, never mixed.

        Memory does not depend on the size. Expired URLs are asked for anew, broken connections
        gone on from where they broke. Names, types and sizes that must not reach the disk are
        refused. No credential of ours goes to the host that has the files.

        Args:
            tinker_path: The checkpoint.
            to: The folder to make; its parents are made too. An empty folder may be there.
            route: `external`: each file by an URL of its own, which the service has for
                checkpoints of `save_weights_external`; `archive`: one tar, from servers that
                make some; `auto`: what fits the path, then the other.
            overwrite: Replace a folder that is there, once the download is whole.
            progress: Called in the event loop with a `DownloadProgress` for each MiB or so. What it
                raises ends the download.
            parallel: How many files at a time.
            max_bytes: The most that the checkpoint may have on disk; default 1 TiB.
            timeout: Seconds for all of it; default the session's, None for no limit.
            retry: When requests for the bytes are repeated. Only those count that bring nothing new.

        Returns:
            The folder, its files and their hashes, as they are on the disk.

        Raises:
            InvalidInputError: An argument cannot be right.
            TargetExistsError: There is something at `to`.
            NotFoundError: There is no such checkpoint, or no way to download it.
            UnsafeDownloadError: It holds what must not reach the disk. Nothing of it is left.
            DownloadError: What came is damaged.
            DiskError: It cannot be written: no room, or no right to.
            TransportError: A host could not be reached any more.
        """
        from tinker_async.download.checkpoint import download_checkpoint  # noqa: PLC0415  # few need it

        return await download_checkpoint(
            self,
            tinker_path,
            to,
            config=self._caller.config,
            route=route,
            overwrite=overwrite,
            progress=progress,
            parallel=parallel,
            max_bytes=max_bytes,
            retry=retry or self._caller.policy,
            timeout_s=self._caller.limit_of(timeout, retry),
        )
