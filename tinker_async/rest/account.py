"""The part of `RestClient` about the account: who we are, what was used, stored and done."""

from __future__ import annotations

from datetime import date, datetime

from tinker_async.api import endpoints
from tinker_async.api.calls import decode_json
from tinker_async.api.progress import DEFAULT, Progress, Timeout, within
from tinker_async.api.redirects import follow
from tinker_async.api.retry import RetryPolicy
from tinker_async.credentials.secret import Secret
from tinker_async.credentials.tokens import is_token
from tinker_async.data.identity import ApiKeyInfo, WhoamiResponse
from tinker_async.data.usage import (
    AuditLogResponse,
    BillingUsageResponse,
    CurrentCheckpointStorageUsageResponse,
)
from tinker_async.errors import AuthenticationError, CredentialError
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

        return await within(self._caller.limit_of(timeout, retry), progress, work)

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

    async def revoke_api_key(
        self,
        api_key: str | None = None,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> None:
        """End an API key, for good and for everybody who uses it.

        Nothing else is needed for that than the key itself, and no other can be ended. Where keys
        are exchanged for tokens it is the key that is sent, not the token.

        Args:
            api_key: Which; default the connection's own, with which nothing is let in any more:
                also a session that goes on with it ends (`SessionLostError`).
            timeout: Seconds.
            retry: When to repeat.

        Raises:
            InvalidInputError: Not such a key.
            CredentialError: The connection's credential is a token, which cannot be ended so.
            AuthenticationError: The server does not know the key, or not any more.
            UnsupportedByServerError: The server has no keys that could be ended.
        """
        named = arguments.api_key(api_key)
        progress = Progress("revoke_api_key")

        async def work() -> None:
            key = named or _a_key(await self._caller.authentication.given())
            endpoint = endpoints.revoke_api_key(key)
            await self._told(endpoint, None, retry, progress, AuthenticationError)

        await within(self._caller.limit_of(timeout, retry), progress, work)

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

        return await within(self._caller.limit_of(timeout, retry), progress, work)


def _a_key(credential: Secret) -> Secret:
    if is_token(credential.reveal()):
        raise CredentialError(
            "the connection's credential is a token, which ends by itself and not by a request",
            hint="to end the key that it was made of, pass it as api_key=",
        )
    return credential
