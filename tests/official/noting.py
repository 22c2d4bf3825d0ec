"""Lets a conversation of the official client tell which endpoints it asked, and got an answer of.

Imported by the programs that hold the conversations, before they begin.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx

answered: set[tuple[str, str]] = set()
"""Method and path of every request that was answered well."""
beat = threading.Event()
"""Whether a heartbeat is among them."""

BEAT_S = 10
QUICK_BEAT_S = 0.3
API = "/api/v1"

_sleep = asyncio.sleep
_send = httpx.AsyncClient.send
_send_at_once = httpx.Client.send


def begin() -> None:
    """Note requests from now on; and let hearts beat every 0.3 s instead of 10."""
    httpx.AsyncClient.send = _noted  # type: ignore[assignment, method-assign]
    httpx.Client.send = _noted_at_once  # type: ignore[assignment, method-assign]
    asyncio.sleep = _sleep_less


def told() -> list[list[str]]:
    """Return what was noted, for JSON."""
    return sorted([method, path] for method, path in answered)


async def _noted(client: httpx.AsyncClient, request: httpx.Request, **options: Any) -> Any:
    response = await _send(client, request, **options)
    _note(request, response)
    return response


def _noted_at_once(client: httpx.Client, request: httpx.Request, **options: Any) -> Any:
    response = _send_at_once(client, request, **options)
    _note(request, response)
    return response


def _note(request: httpx.Request, response: httpx.Response) -> None:
    if response.is_success:
        answered.add((request.method, API + request.url.path.partition(API)[2]))
        if request.url.path.endswith("/session_heartbeat"):
            beat.set()


async def _sleep_less(delay: float, result: Any = None) -> Any:
    return await _sleep(QUICK_BEAT_S if delay == BEAT_S else delay, result)
