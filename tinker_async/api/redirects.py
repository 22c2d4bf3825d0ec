"""Answers that are kept at another place: the server names it, and it is asked in its stead.

The rule: another place never gets our credential, a signed address is in no message, and no
https becomes http.
"""

from __future__ import annotations

import urllib.parse

import anyio

from tinker_async.api.calls import Caller, Failures
from tinker_async.api.progress import Progress
from tinker_async.api.retry import RetryPolicy
from tinker_async.errors import ResponseError, TinkerError, status_error
from tinker_async.transport import Request, Response
from tinker_async.transport.opening import open_transport

_MOST_PLACES = 5
_SILENCE_S = 60.0


async def follow(
    caller: Caller,
    response: Response,
    path: str,
    *,
    policy: RetryPolicy | None = None,
    progress: Progress,
) -> Response:
    """Return what a redirection leads to.

    Args:
        caller: Whose connection has given it: proxies and authorities are the same.
        response: The redirection.
        path: Of the endpoint, for errors.
        policy: When to repeat.
        progress: Where attempts are counted.

    Raises:
        ResponseError: It leads nowhere, in circles, or from https to http.
        APIStatusError: The place refuses.
        TransportError: The place cannot be reached.
    """
    url = caller.config.base_url + path
    for _ in range(_MOST_PLACES):
        url = _place(response, url, path)
        response = await _repeatedly(caller, url, policy or caller.policy, progress)
        if response.status < 300:
            return response
    raise ResponseError(
        f"{path} leads from one place to the next, {_MOST_PLACES} times", endpoint=path
    )


def _place(response: Response, url: str, path: str) -> str:
    """Return the absolute address that a redirection names."""
    place = (response.header(b"location") or b"").decode("latin-1")
    try:
        found = urllib.parse.urljoin(url, place) if place else ""
        parts = urllib.parse.urlsplit(found)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        sound = False
    if not sound or not (place.isascii() and place.isprintable()) or " " in place:
        raise ResponseError(
            f"{path} answered {response.status} without a place to go to", endpoint=path
        )
    if url.startswith("https:") and parts.scheme != "https":
        raise ResponseError(f"{path} leads from https to http", endpoint=path)
    return found


async def _repeatedly(
    caller: Caller, url: str, policy: RetryPolicy, progress: Progress
) -> Response:
    failures: Failures | None = None
    while True:
        progress.attempts += 1
        try:
            return await _once(caller, url)
        except TinkerError as error:
            failures = failures or Failures(policy, caller.billing)
            delay_s = failures.next_delay(error, progress.operation)
            if delay_s is None:
                raise
        await anyio.sleep(delay_s)


async def _once(caller: Caller, url: str) -> Response:
    parts = urllib.parse.urlsplit(url)
    config = caller.config
    origin = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    request = Request(
        method="GET",
        path=target,
        headers=((b"accept", b"application/json"), (b"user-agent", b"tinker-async")),
    )
    async with open_transport(
        origin, ca_bundle=config.ca_bundle, proxy=config.proxies.proxy_for(url)
    ) as transport:
        response = await transport.request(request, silence_s=_SILENCE_S)
    if response.status >= 400:
        # Not what it says: that may repeat the signed address.
        raise status_error(response.status, endpoint=origin, detail="")
    return response
