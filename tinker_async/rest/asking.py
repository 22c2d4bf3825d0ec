"""What all parts of `RestClient` share: how they ask, and what an error means in doubt.

The rule: every call is within its own time; an iterator's time is that of each page.
"""

from __future__ import annotations

from functools import partial

from tinker_async.api.calls import Caller, Endpoint
from tinker_async.api.progress import DEFAULT, Progress, Timeout, within
from tinker_async.api.retry import RetryPolicy
from tinker_async.errors import APIStatusError
from tinker_async.wire import json as wire_json

PAGE = 100
"""Items that are asked for at once."""


class Asking:
    """The base of the parts of `RestClient`."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def _tell(
        self,
        operation: str,
        endpoint: Endpoint,
        body: object = None,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the public methods' argument, as it is
        retry: RetryPolicy | None = None,
        already: type[APIStatusError] | None = None,
    ) -> None:
        """Send a request whose answer says nothing more.

        Args:
            operation: The public method.
            endpoint: Where to.
            body: What, if anything.
            timeout: Seconds for all of it.
            retry: When to repeat.
            already: What a server answers that has done it before: no error if an earlier
                attempt of this call, whose answer was lost, may have been it.
        """
        progress = Progress(operation)
        work = partial(self._told, endpoint, body, retry, progress, already)
        await within(self._caller.limit_of(timeout, retry), progress, work)

    async def _told(
        self,
        endpoint: Endpoint,
        body: object,
        policy: RetryPolicy | None,
        progress: Progress,
        already: type[APIStatusError] | None,
    ) -> None:
        """As `_tell`, within the time of a call that has more to do."""
        buffers = () if body is None else (wire_json.encode(body),)
        try:
            await self._caller.call(endpoint, buffers, policy=policy, progress=progress)
        except APIStatusError as error:
            if already is None or not isinstance(error, already):
                raise
            if not error.delivery_in_doubt:
                raise
