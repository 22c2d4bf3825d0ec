"""The part of `RestClient` about models: training runs, samplers, and what the server offers."""

from __future__ import annotations

from collections.abc import AsyncIterator

from tinker_async.api import endpoints
from tinker_async.api.progress import DEFAULT, Timeout
from tinker_async.api.retry import RetryPolicy
from tinker_async.data.identity import HealthResponse
from tinker_async.data.records import (
    Cursor,
    GetSamplerResponse,
    TrainingRun,
    TrainingRunsResponse,
)
from tinker_async.data.results import GetServerCapabilitiesResponse
from tinker_async.rest import arguments
from tinker_async.rest.asking import PAGE, Asking
from tinker_async.rest.listing import Listing, OffsetPages


class RunCalls(Asking):
    """Training runs, samplers and the server."""

    async def get_training_run(
        self,
        training_run_id: str,
        access_scope: str = "owned",
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> TrainingRun:
        """Return one run.

        Args:
            training_run_id: As `TrainingClient.model_id` and listings have it.
            access_scope: `owned`, or `accessible` for runs of others too.
            timeout: Seconds.
            retry: When to repeat.

        Raises:
            InvalidInputError: Not a run's id.
            NotFoundError: There is no such run.
        """
        run_id = arguments.run_id(training_run_id)
        scope = arguments.access_scope(access_scope)
        return await self._caller.ask(
            "get_training_run",
            endpoints.training_run(run_id, access_scope=scope),
            answer=TrainingRun,
            timeout=timeout,
            retry=retry,
        )

    async def get_training_run_by_tinker_path(
        self,
        tinker_path: str,
        access_scope: str = "owned",
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> TrainingRun:
        """Return the run that a checkpoint is of.

        Raises:
            InvalidInputError: Not a checkpoint's path.
            NotFoundError: There is no such run.
        """
        path = arguments.path(tinker_path)
        scope = arguments.access_scope(access_scope)
        return await self._caller.ask(
            "get_training_run_by_tinker_path",
            endpoints.training_run(path.training_run_id, access_scope=scope),
            answer=TrainingRun,
            timeout=timeout,
            retry=retry,
        )

    def list_training_runs(
        self,
        *,
        access_scope: str = "owned",
        project_id: str | None = None,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> AsyncIterator[TrainingRun]:
        """Iterate over all runs, newest first, a page at a time.

        Args:
            access_scope: `owned`, or `accessible` for runs of others too.
            project_id: Only those of this project.
            timeout: Seconds for each page.
            retry: When to repeat.

        Raises:
            InvalidInputError: An argument cannot be right.
        """
        scope, project = _filters(access_scope, project_id)

        async def fetch(offset: int) -> tuple[list[TrainingRun], Cursor | None]:
            page = await self._caller.ask(
                "list_training_runs",
                endpoints.training_runs(
                    limit=PAGE, offset=offset, access_scope=scope, project_id=project
                ),
                answer=TrainingRunsResponse,
                timeout=timeout,
                retry=retry,
            )
            return page.training_runs, page.cursor

        return Listing(OffsetPages(fetch, lambda run: run.training_run_id))

    async def list_training_runs_page(
        self,
        limit: int = 20,
        offset: int = 0,
        access_scope: str = "owned",
        project_id: str | None = None,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> TrainingRunsResponse:
        """Return one page of runs, newest first, with its place among all."""
        arguments.page(limit, offset)
        scope, project = _filters(access_scope, project_id)
        return await self._caller.ask(
            "list_training_runs_page",
            endpoints.training_runs(
                limit=limit, offset=offset, access_scope=scope, project_id=project
            ),
            answer=TrainingRunsResponse,
            timeout=timeout,
            retry=retry,
        )

    async def get_sampler(
        self,
        sampler_id: str,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> GetSamplerResponse:
        """Return what a sampling session draws from.

        Raises:
            InvalidInputError: Not a sampler's id.
            NotFoundError: There is no such sampling session.
        """
        return await self._caller.ask(
            "get_sampler",
            endpoints.sampler(arguments.sampler_id(sampler_id)),
            answer=GetSamplerResponse,
            timeout=timeout,
            retry=retry,
        )

    async def get_server_capabilities(
        self,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> GetServerCapabilitiesResponse:
        """Return the models that the server offers."""
        return await self._caller.ask(
            "get_server_capabilities",
            endpoints.CAPABILITIES,
            answer=GetServerCapabilitiesResponse,
            timeout=timeout,
            retry=retry,
        )

    async def healthz(
        self,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> HealthResponse:
        """Return whether the server is ready."""
        return await self._caller.ask(
            "healthz", endpoints.healthz(), answer=HealthResponse, timeout=timeout, retry=retry
        )


def _filters(access_scope: str, project_id: str | None) -> tuple[str, str | None]:
    project = arguments.project_id(project_id) if project_id is not None else None
    return arguments.access_scope(access_scope), project
