"""How long a context each model of the server takes: asked once, for all of a session.

The rule: it only serves to refuse early what the server would refuse anyway. A server that does
not say, or cannot be asked, is no reason to fail.
"""

from __future__ import annotations

import anyio

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller
from tinker_async.api.retry import RetryPolicy
from tinker_async.data.results import GetServerCapabilitiesResponse
from tinker_async.errors import TinkerError
from tinker_async.logs import log

_ONCE = RetryPolicy(max_attempts=1)
PATIENCE_S = 5.0
"""For each question whose answer is nice to know."""


class ContextLengths:
    """The `max_context_length` of the server's models."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._asking = anyio.Lock()
        self._lengths: dict[str, int] | None = None

    async def any_known(self) -> bool:
        """Whether the server tells the length of any model."""
        return bool(await self._asked())

    async def of(self, model_name: str | None) -> int | None:
        """Return the most tokens that a model takes at once, or None where that is not known."""
        return None if model_name is None else (await self._asked()).get(model_name)

    async def _asked(self) -> dict[str, int]:
        if self._lengths is None:
            async with self._asking:
                if self._lengths is None:
                    self._lengths = await self._ask()
        return self._lengths

    async def _ask(self) -> dict[str, int]:
        with anyio.move_on_after(PATIENCE_S):
            try:
                told = await self._caller.call_json(
                    endpoints.CAPABILITIES, answer=GetServerCapabilitiesResponse, policy=_ONCE
                )
            except TinkerError as error:
                log.info("context_lengths_not_told", error=type(error).__name__)
                return {}
            return {
                model.model_name: model.max_context_length
                for model in told.supported_models
                if model.model_name and model.max_context_length
            }
        return {}
