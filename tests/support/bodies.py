"""A fake service that keeps the JSON bodies it was sent."""

from __future__ import annotations

import json
from typing import Any

import tinker_async as ta
from tinker_async.testing import FakeService


class Bodies:
    """A fake service whose JSON bodies are kept, by endpoint."""

    def __init__(self) -> None:
        self.fake = FakeService()
        self.sent: dict[str, list[dict[str, Any]]] = {}

    def session(self, **options: Any) -> ta.Session:
        session = self.fake.session(**options)
        opened = session._open_transport

        def opening(config: Any) -> Any:
            return _Watched(opened(config), self.sent)

        session._open_transport = opening
        return session


class _Watched:
    def __init__(self, opened: Any, sent: dict[str, list[dict[str, Any]]]) -> None:
        self._opened = opened
        self._sent = sent

    async def __aenter__(self) -> Any:
        transport = await self._opened.__aenter__()
        send = transport.request

        async def watched(request: Any, *args: Any, **kwargs: Any) -> Any:
            body = b"".join(bytes(part) for part in request.body)
            name = request.path.rpartition("/")[2]
            if body.startswith(b"{"):
                self._sent.setdefault(name, []).append(json.loads(body))
            return await send(request, *args, **kwargs)

        transport.request = watched
        return transport

    async def __aexit__(self, *error: object) -> Any:
        return await self._opened.__aexit__(*error)
