"""What a JSON Web Token says of itself: who it is for, and how long it lasts.

The rule: a token is read, never verified; that is the server's to do. What cannot be read
says nothing.
"""

from __future__ import annotations

import binascii
from typing import Any

import msgspec

PREFIX = "eyJ"
"""How every token starts: the base64 of `{"`."""
MARGIN_S = 60.0
"""So long before its end a token is not used for new requests any more."""


def is_token(credential: str) -> bool:
    """Whether a credential is a JWT, by its form."""
    return credential.startswith(PREFIX)


def claims_of(token: str) -> dict[str, Any]:
    """Return what a token claims; nothing if it cannot be read."""
    parts = token.split(".")
    if len(parts) < 2:
        return {}
    text = parts[1].replace("-", "+").replace("_", "/")
    try:
        found = msgspec.json.decode(binascii.a2b_base64(text + "=" * (-len(text) % 4)))
    except (ValueError, msgspec.DecodeError, RecursionError):  # binascii.Error is a ValueError
        return {}
    return found if isinstance(found, dict) else {}


def expiry_of(token: str) -> float | None:
    """Return when a token ends, in seconds of Unix time; None if it does not say."""
    return _number(claims_of(token).get("exp"))


def lifetime_of(token: str) -> float | None:
    """Return how long a token lasts from its issue, in seconds; None if it does not say."""
    claims = claims_of(token)
    ends, begins = _number(claims.get("exp")), _number(claims.get("iat"))
    if ends is None or begins is None or ends <= begins:
        return None
    return ends - begins


def left_of(token: str, *, now: float) -> float:
    """Return for how many seconds a token that came just now is good.

    The token's own two times beat this machine's clock where that cannot be right: a clock that
    is wrong by hours must not cost a new token with each request.

    Args:
        token: What the server gave.
        now: Unix time, in seconds.
    """
    ends, lifetime_s = expiry_of(token), lifetime_of(token)
    if ends is None:
        return 2 * MARGIN_S
    left_s = ends - now
    if lifetime_s is not None and not 0 < left_s <= lifetime_s:
        return lifetime_s
    return max(0.0, left_s)


def usable_of(left_s: float) -> float:
    """Return for how many of a token's seconds it is used for new requests.

    That is until a minute before its end, or a quarter of its time if it has less than four.
    """
    return left_s - min(MARGIN_S, left_s / 4)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if -1e15 < value < 1e15 else None
