"""Everything that a fake service is asked, as it arrived."""

from __future__ import annotations

import json
import urllib.parse
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from tinker_async.testing.exchange import Exchange


class Request(msgspec.Struct, frozen=True):
    """One request."""

    method: str
    path: str
    """With the query, from `/api/v1` on."""
    headers: dict[str, str]
    body: bytes

    @property
    def query(self) -> dict[str, str]:
        return dict(urllib.parse.parse_qsl(self.path.partition("?")[2]))

    @property
    def json(self) -> Any:
        """The body; None if there is none."""
        return json.loads(self.body) if self.body else None


Requests = dict[str, list[Request]]
"""By the name of the endpoint, in order."""


@contextmanager
def recorded() -> Generator[Requests]:
    """Note all requests to fake services for the length of a block."""
    requests: Requests = defaultdict(list)
    answer = Exchange.answer

    async def noted(exchange: Exchange, body: bytes) -> Any:
        call = exchange._call
        headers = {name.decode(): value.decode() for name, value in call.headers.items()}
        request = Request(call.method, exchange.entry.path, headers, bytes(body))
        requests[exchange.entry.endpoint].append(request)
        return await answer(exchange, body)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Exchange, "answer", noted)
        yield requests
