"""The embedded server as the tests see it."""

from __future__ import annotations

import msgspec

from tinker_async import Session


class Engine(msgspec.Struct, frozen=True):
    """Where the embedded server is."""

    url: str
    api_key: str
    model: str

    def session(self, *, http2: bool = True, check_inputs: bool = True) -> Session:
        """A session with it, not entered yet."""
        return Session(self.url, self.api_key, http2=http2, check_inputs=check_inputs)
