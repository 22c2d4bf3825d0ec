"""The part of `RestClient` about sessions: listing, searching, ending, tracing."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import msgspec

from tinker_async.api import endpoints
from tinker_async.api.progress import DEFAULT, Progress, Timeout, within
from tinker_async.api.retry import RetryPolicy
from tinker_async.data.records import Cursor
from tinker_async.data.session_search import SessionSearchRequest, SessionSearchResponse
from tinker_async.data.sessions import GetSessionResponse, ListSessionsResponse, SessionSummary
from tinker_async.errors import InvalidInputError, RequestFailedError, ResponseError
from tinker_async.rest import arguments
from tinker_async.rest.asking import PAGE, Asking
from tinker_async.rest.listing import CursorPages, Listing, OffsetPages
from tinker_async.wire.messages import (
    FinishReason,
    FinishSessionRequest,
    SessionProjectRequest,
    TraceExportResponse,
)

_TRACE_POLL_S = 5.0


class SessionCalls(Asking):
    """Sessions of this account, and of others as far as they may be seen."""

    def list_sessions(
        self,
        *,
        access_scope: str = "owned",
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> AsyncIterator[str]:
        """Iterate over the ids of all sessions, newest first, a page at a time.

        Args:
            access_scope: `owned`, or `accessible` for sessions of others too.
            timeout: Seconds for each page.
            retry: When to repeat.

        Raises:
            InvalidInputError: No such scope.
        """
        scope = arguments.access_scope(access_scope)

        async def fetch(offset: int) -> tuple[list[str], Cursor | None]:
            page = await self._caller.ask(
                "list_sessions",
                endpoints.sessions(limit=PAGE, offset=offset, access_scope=scope),
                answer=ListSessionsResponse,
                timeout=timeout,
                retry=retry,
            )
            return page.sessions, None

        return Listing(OffsetPages(fetch, lambda session_id: session_id))

    async def list_sessions_page(
        self,
        limit: int = 20,
        offset: int = 0,
        access_scope: str = "owned",
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> ListSessionsResponse:
        """Return one page of session ids, newest first."""
        arguments.page(limit, offset)
        scope = arguments.access_scope(access_scope)
        return await self._caller.ask(
            "list_sessions_page",
            endpoints.sessions(limit=limit, offset=offset, access_scope=scope),
            answer=ListSessionsResponse,
            timeout=timeout,
            retry=retry,
        )

    async def get_session(
        self,
        session_id: str,
        access_scope: str = "owned",
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> GetSessionResponse:
        """Return the training runs and samplers of a session.

        Raises:
            InvalidInputError: Not a session's id.
            NotFoundError: There is no such session.
        """
        found = arguments.session_id(session_id)
        scope = arguments.access_scope(access_scope)
        return await self._caller.ask(
            "get_session",
            endpoints.session(found, access_scope=scope),
            answer=GetSessionResponse,
            timeout=timeout,
            retry=retry,
        )

    def search_sessions(
        self,
        request: SessionSearchRequest | None = None,
        *,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> AsyncIterator[SessionSummary]:
        """Iterate over the sessions that a search finds, newest first, a page at a time.

        Args:
            request: What for; its `limit` is the size of a page, its `cursor` where to begin.
                Default the caller's own.
            timeout: Seconds for each page.
            retry: When to repeat.

        Raises:
            InvalidInputError: Not such a request.
        """
        first = _checked(request)

        async def fetch(place: object | None) -> tuple[list[SessionSummary], object | None]:
            wanted = first if place is None else msgspec.structs.replace(first, cursor=place)
            page = await self._caller.ask(
                "search_sessions",
                endpoints.SEARCH_SESSIONS,
                wanted,
                answer=SessionSearchResponse,
                timeout=timeout,
                retry=retry,
            )
            return page.sessions, page.next_cursor

        return Listing(CursorPages(fetch))

    async def search_sessions_page(
        self,
        request: SessionSearchRequest | None = None,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> SessionSearchResponse:
        """Return one page of a search; its `next_cursor` is the next request's `cursor`."""
        return await self._caller.ask(
            "search_sessions_page",
            endpoints.SEARCH_SESSIONS,
            _checked(request),
            answer=SessionSearchResponse,
            timeout=timeout,
            retry=retry,
        )

    async def assign_session_project(
        self,
        session_id: str,
        project_id: str,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> None:
        """Move a session, with all that it has made, into a project. There is no way out of one.

        Raises:
            InvalidInputError: Not such ids.
            NotFoundError: There is no such session.
            PermissionDeniedError: The project is not for this account.
        """
        found, project = arguments.session_id(session_id), arguments.project_id(project_id)
        await self._tell(
            "assign_session_project",
            endpoints.session_project(found),
            SessionProjectRequest(project_id=project),
            timeout=timeout,
            retry=retry,
        )

    async def finish_session(
        self,
        session_id: str,
        status: str = "success",
        detail: str | None = None,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> None:
        """End a session, such as one whose program is gone. The first reason counts.

        Args:
            session_id: Of the session. A `Session` finishes its own when its block ends.
            status: `success`, `errored` or `interrupted`.
            detail: For people.
            timeout: Seconds.
            retry: When to repeat.

        Raises:
            InvalidInputError: Not a session's id, or no such status.
            NotFoundError: There is no such session.
        """
        found = arguments.session_id(session_id)
        arguments.text(detail, "detail")
        reason = FinishReason(type=arguments.finish_status(status))
        await self._tell(
            "finish_session",
            endpoints.finish(found),
            FinishSessionRequest(reason=reason, detail=detail),
            timeout=timeout,
            retry=retry,
        )

    async def export_session_trace(
        self,
        session_id: str,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> str:
        """Return the signed address of a session's timeline, a Perfetto trace.

        The server builds the trace, which may take long; it is asked again every 5 seconds, for
        as long as `timeout` allows. The address is good for about an hour, and needs no
        credential.

        Raises:
            InvalidInputError: Not a session's id.
            NotFoundError: There is no such session.
            RequestFailedError: The server could not build it.
        """
        endpoint = endpoints.trace_export(arguments.session_id(session_id))
        progress = Progress("export_session_trace")

        async def work() -> str:
            while True:
                found = await self._caller.call_json(
                    endpoint, answer=TraceExportResponse, policy=retry, progress=progress
                )
                if found.status == "failed":
                    raise _trace_error(session_id, found.error)
                if found.status == "ready":
                    return _address(found.url, endpoint.path)
                await anyio.sleep(_TRACE_POLL_S)

        return await within(self._caller.limit_of(timeout, retry), progress, work)


def _trace_error(session_id: str, reason: str | None) -> RequestFailedError:
    return RequestFailedError(
        f"the trace of session {session_id} could not be built: {reason or 'no reason given'}",
        category="unknown",
        request_id="",
        hint="call again, which starts it anew",
    )


def _address(url: str | None, path: str) -> str:
    if not url:
        raise ResponseError(f"{path} is ready and has no url", endpoint=path)
    return url


def _checked(request: SessionSearchRequest | None) -> SessionSearchRequest:
    if request is None:
        return SessionSearchRequest()
    if not isinstance(request, SessionSearchRequest):
        raise InvalidInputError(
            f"request: {type(request).__name__} is not a SessionSearchRequest", field="request"
        )
    return request
