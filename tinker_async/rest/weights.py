"""The part of `RestClient` about what is in checkpoints: facts, copies, and signed addresses."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta

from tinker_async.api import endpoints
from tinker_async.api.calls import Endpoint
from tinker_async.api.features import says_no_endpoint
from tinker_async.api.progress import DEFAULT, Progress, Timeout, within
from tinker_async.api.retry import RetryPolicy
from tinker_async.data.records import (
    CheckpointArchiveUrlResponse,
    ExternalWeightsUrlsResponse,
    WeightsInfoResponse,
)
from tinker_async.errors import InvalidInputError, NotFoundError, ResponseError
from tinker_async.rest import arguments
from tinker_async.rest.asking import Asking
from tinker_async.transport import Response
from tinker_async.wire.messages import CopyWeightsRequest, CopyWeightsResponse, WeightsInfoRequest

_ARCHIVE_LASTS = timedelta(minutes=15)
"""How long a signed address is good if the server does not say."""


class WeightsCalls(Asking):
    """What is in checkpoints."""

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
        arguments.path(tinker_path)
        return await self._caller.ask(
            "get_weights_info_by_tinker_path",
            endpoints.WEIGHTS_INFO,
            WeightsInfoRequest(tinker_path=tinker_path),
            answer=WeightsInfoResponse,
            timeout=timeout,
            retry=retry,
        )

    async def copy_weights(
        self,
        path: str,
        destination_project_id: str | None = None,
        *,
        ttl_seconds: int | None = None,
        weights_access_token: str | None = None,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> str:
        """Copy a checkpoint into a project; no bytes are doubled.

        The copy is of the same kind, and of a new run that cannot be trained. However often the
        request is repeated, it is one copy.

        Args:
            path: Of the checkpoint.
            destination_project_id: Default the connection's `project_id`, else `TINKER_PROJECT_ID`.
            ttl_seconds: The copy expires after so long, from 3600 to ten years; None keeps it.
            weights_access_token: Lets read the checkpoint of another account. It is sent in a
                header of its own, and shown nowhere.
            timeout: Seconds.
            retry: When to repeat.

        Returns:
            The path of the copy.

        Raises:
            InvalidInputError: Not a checkpoint's path, no project, or no such time.
            NotFoundError, PermissionDeniedError: Not there, or not to be read.
        """
        arguments.path(path, "path")
        arguments.ttl_seconds(ttl_seconds)
        arguments.access_token(weights_access_token)
        project = destination_project_id
        if project is None or project == "":
            project = self._caller.config.project_id
        if project is None:
            raise InvalidInputError(
                "destination_project_id: there is no project to copy to",
                field="destination_project_id",
                hint="give one, or set TINKER_PROJECT_ID",
            )
        request = CopyWeightsRequest(
            source_path=path,
            destination_project_id=arguments.project_id(project, "destination_project_id"),
            ttl_seconds=ttl_seconds,
        )
        answer = await self._caller.ask(
            "copy_weights",
            endpoints.copy_weights(str(uuid.uuid4()), weights_access_token),
            request,
            answer=CopyWeightsResponse,
            timeout=timeout,
            retry=retry,
        )
        return answer.tinker_path

    async def get_external_weights_urls(
        self,
        tinker_path: str,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> ExternalWeightsUrlsResponse:
        """Return a signed address for each file of an external checkpoint.

        Raises:
            InvalidInputError: Not the path of an external checkpoint.
            NotFoundError: There is no such checkpoint.
        """
        path = arguments.path(tinker_path, expect="external")
        return await self._caller.ask(
            "get_external_weights_urls",
            endpoints.external_weights_urls(path.training_run_id, path.checkpoint_id),
            answer=ExternalWeightsUrlsResponse,
            timeout=timeout,
            retry=retry,
        )

    async def get_checkpoint_archive_url(
        self,
        tinker_path: str,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> CheckpointArchiveUrlResponse:
        """Return the signed address of a checkpoint's tar archive.

        Servers that speak the protocol of the official 0.38 have none: see
        `get_external_weights_urls`. While the archive is built (503) the request is repeated. Some
        servers have archives of samplers alone, under the bare name: that is tried next.

        Raises:
            InvalidInputError: Not a checkpoint's path.
            NotFoundError: There is no such checkpoint, or no archive of it.
        """
        path = arguments.archived_path(tinker_path)
        progress = Progress("get_checkpoint_archive_url")

        async def ask(checkpoint_id: str) -> CheckpointArchiveUrlResponse:
            endpoint = endpoints.checkpoint_archive(path.training_run_id, checkpoint_id)
            response = await self._caller.call(endpoint, policy=retry, progress=progress)
            return _archive_of(response, endpoint)

        async def work() -> CheckpointArchiveUrlResponse:
            try:
                return await ask(path.checkpoint_id)
            except NotFoundError as error:
                if path.checkpoint_type != "sampler" or not says_no_endpoint(error):
                    raise
                return await _or(error, ask(path.name))

        return await within(self._caller.limit_of(timeout, retry), progress, work)


async def _or(
    first: NotFoundError, second: Awaitable[CheckpointArchiveUrlResponse]
) -> CheckpointArchiveUrlResponse:
    """Return what the second attempt gives; if there is no such endpoint either, the first counts."""
    try:
        return await second
    except NotFoundError as error:
        raise first if says_no_endpoint(error) else error from None


def _archive_of(response: Response, endpoint: Endpoint) -> CheckpointArchiveUrlResponse:
    place = response.header(b"location")
    if response.status < 300 or not place:
        raise ResponseError(
            f"{endpoint.path} answered {response.status} without the archive's address",
            endpoint=endpoint.path,
        )
    return CheckpointArchiveUrlResponse(
        url=place.decode("latin-1"), expires=_expiry(response.header(b"expires"))
    )


def _expiry(header: bytes | None) -> datetime:
    if header is not None:
        import email.utils  # noqa: PLC0415  # many modules for one header

        try:
            found = email.utils.parsedate_to_datetime(header.decode("latin-1"))
        except (ValueError, TypeError, OverflowError):
            pass
        else:
            return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
    return datetime.now(UTC) + _ARCHIVE_LASTS
