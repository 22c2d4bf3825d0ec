"""`RestClient`: reading and managing what is on the server. Plain requests, no queue.

The rule: every call is within its own time; an iterator's time is that of each page.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller
from tinker_async.api.progress import DEFAULT, Progress, Timeout, within
from tinker_async.api.retry import RetryPolicy
from tinker_async.data.paths import parse_path
from tinker_async.data.results import Checkpoint, TrainingRun, WeightsInfoResponse
from tinker_async.errors import NotFoundError
from tinker_async.wire.messages import (
    CheckpointsResponse,
    TrainingRunsResponse,
    WeightsInfoRequest,
)

_PAGE = 100


class RestClient:
    """Runs and checkpoints of this account. Made by `Session.rest`.

    All methods take `timeout` (seconds; an iterator's is for each page; default the
    session's) and `retry` (a policy of its own).
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def get_training_run(
        self,
        training_run_id: str,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> TrainingRun:
        """Return one run.

        Raises:
            NotFoundError: There is no such run.
        """
        return await self._caller.ask(
            "get_training_run",
            endpoints.training_run(training_run_id),
            answer=TrainingRun,
            timeout=timeout,
            retry=retry,
        )

    async def list_training_runs(
        self,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> AsyncIterator[TrainingRun]:
        """Iterate over all runs, newest first, a page at a time."""
        offset = 0
        while True:
            page = await self._caller.ask(
                "list_training_runs",
                endpoints.training_runs(limit=_PAGE, offset=offset),
                answer=TrainingRunsResponse,
                timeout=timeout,
                retry=retry,
            )
            for run in page.training_runs:
                yield run
            offset += len(page.training_runs)
            if len(page.training_runs) < _PAGE:
                return

    async def list_checkpoints(
        self,
        training_run_id: str | None = None,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> AsyncIterator[Checkpoint]:
        """Iterate over checkpoints: of one run, or of the account, newest first."""
        offset = 0
        while True:
            page = await self._caller.ask(
                "list_checkpoints",
                endpoints.checkpoints(training_run_id, limit=_PAGE, offset=offset),
                answer=CheckpointsResponse,
                timeout=timeout,
                retry=retry,
            )
            for checkpoint in page.checkpoints:
                yield checkpoint
            offset += len(page.checkpoints)
            if training_run_id is not None or len(page.checkpoints) < _PAGE:
                return

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
        path = parse_path(tinker_path, field="tinker_path")
        endpoint = endpoints.delete_checkpoint(path.training_run_id, path.checkpoint_id)
        progress = Progress("delete_checkpoint_from_tinker_path")

        async def work() -> None:
            try:
                await self._caller.call(endpoint, policy=retry, progress=progress)
            except NotFoundError as error:
                if not error.delivery_in_doubt:
                    raise  # else an earlier attempt, whose answer was lost, has deleted it

        await within(self._caller.limit_of(timeout), progress, work)

    async def get_weights_info_by_tinker_path(
        self,
        tinker_path: str,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> WeightsInfoResponse:
        """Return what a checkpoint was trained on and how.

        Raises:
            InvalidInputError: Not a checkpoint's path.
            NotFoundError: There is no such checkpoint.
        """
        parse_path(tinker_path, field="tinker_path")
        return await self._caller.ask(
            "get_weights_info_by_tinker_path",
            endpoints.WEIGHTS_INFO,
            WeightsInfoRequest(tinker_path=tinker_path),
            answer=WeightsInfoResponse,
            timeout=timeout,
            retry=retry,
        )
