"""The part of `RestClient` about the account: who we are, what was used, stored and done."""

from __future__ import annotations

from datetime import date, datetime

from tinker_async.api import endpoints
from tinker_async.api.calls import decode_json
from tinker_async.api.progress import DEFAULT, Progress, Timeout, within
from tinker_async.api.redirects import follow
from tinker_async.api.retry import RetryPolicy
from tinker_async.data.identity import ApiKeyInfo, WhoamiResponse
from tinker_async.data.usage import (
    AuditLogResponse,
    BillingUsageResponse,
    CurrentCheckpointStorageUsageResponse,
)
from tinker_async.rest import arguments
from tinker_async.rest.asking import Asking
from tinker_async.wire.messages import ApiKeyResponse

_AUDIT = endpoints.audit_log("all", None).path.partition("?")[0]


class AccountCalls(Asking):
    """The account. What is for administrators raises `PermissionDeniedError` for others."""

    async def whoami(
        self,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> WhoamiResponse:
        """Return whom the credential stands for.

        Of a token it is read from its claims, without a request; the signature is not verified,
        for nothing is decided by it. Of an API key it is asked for, and has no URNs.

        Raises:
            AuthenticationError: The key is wrong.
        """
        progress = Progress("whoami")

        async def work() -> WhoamiResponse:
            claims = await self._caller.authentication.claims() or {}
            user, organization, email = (claims.get(key) for key in ("sub", "org_id", "email"))
            if isinstance(user, str) and user:
                return WhoamiResponse(
                    user_urn=user,
                    org_urn=f"tml:organization:{organization}" if organization else None,
                    email=email if isinstance(email, str) and email else None,
                )
            key = await self._api_key(progress, retry)
            return WhoamiResponse(email=key.email, api_key=key)

        return await within(self._caller.limit_of(timeout), progress, work)

    async def _api_key(self, progress: Progress, retry: RetryPolicy | None) -> ApiKeyInfo:
        found = await self._caller.call_json(
            endpoints.api_key_info(), answer=ApiKeyResponse, policy=retry, progress=progress
        )
        organization = found.details.org_details if found.details else None
        user = found.details.user_details if found.details else None
        return ApiKeyInfo(
            key_id=found.key_id,
            name=found.name,
            note=found.note,
            organization=organization.name if organization else None,
            email=user.email if user else None,
        )

    async def get_billing_usage(
        self,
        starting_on: datetime | str,
        ending_before: datetime | str,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> BillingUsageResponse:
        """Return what the organisation has used, by hour.

        Args:
            starting_on: A full hour: an aware datetime, or text such as "2026-07-13T00:00:00Z".
            ending_before: Another, up to 14 days later.
            timeout: Seconds.
            retry: When to repeat.

        Raises:
            InvalidInputError: Not such times.
            PermissionDeniedError: Not an administrator of the organisation or its billing.
        """
        start, end = arguments.hours(starting_on, ending_before)
        return await self._caller.ask(
            "get_billing_usage",
            endpoints.billing_usage(start, end),
            answer=BillingUsageResponse,
            timeout=timeout,
            retry=retry,
        )

    async def get_current_checkpoint_storage_usage(
        self,
        project_id: str | None = None,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> CurrentCheckpointStorageUsageResponse:
        """Return what the organisation stores now, by project and owner.

        Args:
            project_id: Only this project.
            timeout: Seconds.
            retry: When to repeat.

        Raises:
            InvalidInputError: Not a project's id.
            PermissionDeniedError: Not an administrator of the organisation or its billing.
        """
        project = arguments.project_id(project_id) if project_id is not None else None
        return await self._caller.ask(
            "get_current_checkpoint_storage_usage",
            endpoints.storage_usage(project),
            answer=CurrentCheckpointStorageUsageResponse,
            timeout=timeout,
            retry=retry,
        )

    async def get_audit_log(
        self,
        event_type: str = "all",
        day: date | None = None,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> AuditLogResponse:
        """Return what was done in the organisation on a day.

        A server may keep the log at another place, which is then asked, without our credential.

        Args:
            event_type: `all`, `checkpoints`, `projects`, `teams` or `organizations`.
            day: In UTC; default today.
            timeout: Seconds.
            retry: When to repeat.

        Raises:
            InvalidInputError: No such events, or not a day.
            PermissionDeniedError: Not an administrator of the organisation.
        """
        endpoint = endpoints.audit_log(arguments.event_type(event_type), arguments.day(day))
        progress = Progress("get_audit_log")

        async def work() -> AuditLogResponse:
            response = await self._caller.call(endpoint, policy=retry, progress=progress)
            if response.status >= 300:
                response = await follow(
                    self._caller, response, _AUDIT, policy=retry, progress=progress
                )
            return decode_json(response.body, AuditLogResponse, _AUDIT, progress)

        return await within(self._caller.limit_of(timeout), progress, work)
