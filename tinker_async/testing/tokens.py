"""The tokens that the fake server gives for a key: unsigned, numbered, and remembered.

The rule: a token is told by what was issued, never by what it claims; only its lifetime
depends on a clock, and only if one was asked for.
"""

from __future__ import annotations

import base64
import time

import anyio
import msgspec

_FAR_FUTURE = 4_102_444_800
"""The year 2100, in Unix time."""


class TokenBook:
    """Which tokens were issued, and until when each is let in."""

    def __init__(self) -> None:
        self._until: dict[bytes, float] = {}

    def issue(self, lifetime_s: float | None) -> str:
        """Return a new token that is let in for so long; None is for ever."""
        now = 0 if lifetime_s is None else int(time.time())
        claims = {
            "sub": "tml:user:fake",
            "org_id": "fake",
            "email": "fake@example.com",
            "iss": "passport-fake",
            "iat": now,
            "exp": _FAR_FUTURE if lifetime_s is None else now + lifetime_s,
            "jti": str(len(self._until)),
        }
        parts = (msgspec.json.encode(part) for part in ({"alg": "none"}, claims))
        encoded = [base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts]
        token = b".".join([*encoded, b""])
        until = float("inf") if lifetime_s is None else anyio.current_time() + lifetime_s
        self._until[token] = until
        return token.decode()

    def knows(self, given: bytes) -> bool:
        """Whether this is a token that is let in."""
        return anyio.current_time() < self._until.get(given, 0.0)

    def rejects(self, given: bytes) -> bool:
        """Whether this is a token of ours that is let in no more."""
        return given in self._until and not self.knows(given)

    def revoke(self) -> None:
        """Let in none of those that were issued."""
        self._until = dict.fromkeys(self._until, float("-inf"))
