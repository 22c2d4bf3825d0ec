"""The part of `RestClient` about checkpoints: listing, deleting, publishing, keeping.

The rule: a change whose answer was lost succeeds when the next attempt finds it made.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from tinker_async.api import endpoints
from tinker_async.api.progress import DEFAULT, Timeout
from tinker_async.api.retry import RetryPolicy
from tinker_async.data.paths import CheckpointPath
from tinker_async.data.records import Checkpoint, CheckpointsListResponse, Cursor
from tinker_async.errors import ConflictError, NotFoundError
from tinker_async.rest import arguments
from tinker_async.rest.asking import PAGE, Asking
from tinker_async.rest.listing import Listing, OffsetPages
from tinker_async.wire.messages import CheckpointTtlRequest


class CheckpointCalls(Asking):
    """Checkpoints of a run, and of the account."""

    def list_checkpoints(
        self,
        training_run_id: str | None = None,
        *,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> AsyncIterator[Checkpoint]:
        """Iterate over checkpoints: of one run, or (as `list_user_checkpoints`) of the account.

        Raises:
            InvalidInputError: Not a run's id.
        """
        run = None if training_run_id is None else arguments.run_id(training_run_id)
        return self._listing("list_checkpoints", run, timeout, retry)

    def list_user_checkpoints(
        self, *, timeout: Timeout = DEFAULT, retry: RetryPolicy | None = None
    ) -> AsyncIterator[Checkpoint]:
        """Iterate over the checkpoints of all runs of this account, newest first."""
        return self._listing("list_user_checkpoints", None, timeout, retry)

    def _listing(
        self, operation: str, run: str | None, timeout: Timeout, retry: RetryPolicy | None
    ) -> AsyncIterator[Checkpoint]:
        async def fetch(offset: int) -> tuple[list[Checkpoint], Cursor | None]:
            page = await self._caller.ask(
                operation,
                endpoints.checkpoints(run, limit=PAGE, offset=offset),
                answer=CheckpointsListResponse,
                timeout=timeout,
                retry=retry,
            )
            return page.checkpoints, page.cursor

        return Listing(OffsetPages(fetch, lambda one: one.tinker_path, whole=run is not None))

    async def list_checkpoints_page(
        self,
        training_run_id: str,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> CheckpointsListResponse:
        """Return the checkpoints of a run as the server gives them at once."""
        run = arguments.run_id(training_run_id)
        return await self._caller.ask(
            "list_checkpoints_page",
            endpoints.checkpoints(run, limit=PAGE, offset=0),
            answer=CheckpointsListResponse,
            timeout=timeout,
            retry=retry,
        )

    async def list_user_checkpoints_page(
        self,
        limit: int = 100,
        offset: int = 0,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> CheckpointsListResponse:
        """Return one page of the account's checkpoints, with its place among all."""
        arguments.page(limit, offset)
        return await self._caller.ask(
            "list_user_checkpoints_page",
            endpoints.checkpoints(None, limit=limit, offset=offset),
            answer=CheckpointsListResponse,
            timeout=timeout,
            retry=retry,
        )

    async def delete_checkpoint(
        self,
        training_run_id: str,
        checkpoint_id: str,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> None:
        """Delete a checkpoint for good, by its run and its id in it (`weights/<name>`).

        Raises:
            InvalidInputError: Not such ids.
            NotFoundError: There is no such checkpoint.
        """
        path = arguments.checkpoint(training_run_id, checkpoint_id)
        await self._delete("delete_checkpoint", path, timeout, retry)

    async def delete_checkpoint_from_tinker_path(
        self,
        tinker_path: str,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> None:
        """Delete a checkpoint for good.

        Raises:
            InvalidInputError: Not a checkpoint's path.
            NotFoundError: There is no such checkpoint.
        """
        path = arguments.path(tinker_path)
        await self._delete("delete_checkpoint_from_tinker_path", path, timeout, retry)

    async def publish_checkpoint_from_tinker_path(
        self,
        tinker_path: str,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> None:
        """Let everybody read a checkpoint.

        Raises:
            InvalidInputError: Not a checkpoint's path.
            NotFoundError: There is no such checkpoint.
            ConflictError: It is public already.
        """
        await self._set_public(
            "publish_checkpoint_from_tinker_path", tinker_path, True, timeout, retry
        )

    async def unpublish_checkpoint_from_tinker_path(
        self,
        tinker_path: str,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> None:
        """Let only its owner read a checkpoint again.

        Raises:
            InvalidInputError: Not a checkpoint's path.
            NotFoundError: There is no such checkpoint.
            ConflictError: It is private already.
        """
        await self._set_public(
            "unpublish_checkpoint_from_tinker_path", tinker_path, False, timeout, retry
        )

    async def _delete(
        self,
        operation: str,
        path: CheckpointPath,
        timeout: Timeout,  # noqa: ASYNC109  # the public methods' argument, as it is
        retry: RetryPolicy | None,
    ) -> None:
        endpoint = endpoints.delete_checkpoint(path.training_run_id, path.checkpoint_id)
        await self._tell(operation, endpoint, timeout=timeout, retry=retry, already=NotFoundError)

    async def _set_public(
        self,
        operation: str,
        tinker_path: str,
        public: bool,
        timeout: Timeout,  # noqa: ASYNC109  # as above
        retry: RetryPolicy | None,
    ) -> None:
        path = arguments.path(tinker_path)
        endpoint = endpoints.publish(path.training_run_id, path.checkpoint_id, public=public)
        await self._tell(operation, endpoint, timeout=timeout, retry=retry, already=ConflictError)

    async def set_checkpoint_ttl_from_tinker_path(
        self,
        tinker_path: str,
        ttl_seconds: int | None,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> None:
        """Let a checkpoint expire, counted from now.

        Args:
            tinker_path: Of the checkpoint.
            ttl_seconds: From 3600 to ten years; None keeps it for good.
            timeout: Seconds for the call.
            retry: When to repeat.

        Raises:
            InvalidInputError: Not a checkpoint's path, or no such time.
            NotFoundError: There is no such checkpoint.
        """
        path = arguments.path(tinker_path)
        arguments.ttl_seconds(ttl_seconds)
        await self._tell(
            "set_checkpoint_ttl_from_tinker_path",
            endpoints.checkpoint_ttl(path.training_run_id, path.checkpoint_id),
            CheckpointTtlRequest(ttl_seconds=ttl_seconds),
            timeout=timeout,
            retry=retry,
        )
