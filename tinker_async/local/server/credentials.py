"""Who is let in: the key, tokens made from it, and signed addresses of downloads.

Tokens and signatures are made with a secret of this process: nothing that is given out tells
anything of the key, and none of it outlives the server. Clients fetch new ones.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from urllib.parse import quote

import msgspec

from tinker_async.local.server.refusal import Refusal
from tinker_async.local.server.rows import OWNER

DOWNLOADS = "/api/v1/downloads/"
"""Where addresses begin that need a signature and no key."""

TOKEN_LIFETIME = timedelta(hours=1)
LINK_LIFETIME = timedelta(hours=1)

_TOKEN_HEAD = b'{"alg":"HS256","typ":"JWT"}'


class _Claims(msgspec.Struct, frozen=True):
    iat: int
    exp: int
    iss: str = "passport-tinker-async-local"
    """`passport-`: the official client reads who it is only from such tokens."""
    sub: str = OWNER
    org_id: str = "local"
    email: str = ""


class Link(msgspec.Struct, frozen=True):
    """A signed address on this server."""

    url: str
    expires_at: datetime


class Credentials:
    """The key of one server process and what goes with it. Without a key nobody is let in."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._key: bytes | None = None
        self._clock = clock
        self._secret = secrets.token_bytes(32)

    def accept(self, api_key: str) -> None:
        """Let in whoever has this key."""
        self._key = api_key.encode()

    def admits(self, presented: bytes) -> bool:
        """Whether a value of `X-API-Key` is the key, or a token made here that still holds."""
        if self._key is None:
            return False
        return self.is_key(presented) or self._is_live_token(presented)

    def is_key(self, presented: bytes) -> bool:
        """Whether a value of `X-API-Key` is the key itself."""
        return self._key is not None and hmac.compare_digest(presented, self._key)

    def invites(self, presented: bytes) -> bool:
        """Whether a value that is refused is a token, for which there would be a new one."""
        return self._key is not None and presented.startswith(b"eyJ")

    def revoke(self) -> None:
        """Let nobody in any more: the key and its tokens are over, until the server is restarted."""
        self._key = None

    def mint(self) -> str:
        """Return a new token."""
        now_s = int(self._clock().timestamp())
        claims = _Claims(iat=now_s, exp=now_s + int(TOKEN_LIFETIME.total_seconds()))
        signed = b".".join((_b64(_TOKEN_HEAD), _b64(msgspec.json.encode(claims))))
        return b".".join((signed, _b64(self._sign(signed)))).decode()

    def _is_live_token(self, presented: bytes) -> bool:
        signed, _, signature = presented.rpartition(b".")
        if not signed or not hmac.compare_digest(signature, _b64(self._sign(signed))):
            return False
        # It is of our own making from here on.
        payload = signed.partition(b".")[2]
        claims = msgspec.json.decode(
            base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)), type=_Claims
        )
        return self._clock().timestamp() < claims.exp

    def link(self, base_url: str, path: str) -> Link:
        """Return a signed address of `path` (decoded, from the root) that needs no key."""
        expires_at = (self._clock() + LINK_LIFETIME).replace(microsecond=0)
        stamp = int(expires_at.timestamp())
        url = f"{base_url.rstrip('/')}{quote(path)}?expires={stamp}&signature={self._seal(path, stamp)}"
        return Link(url, expires_at)

    def check_link(self, path: str, expires: str, signature: str) -> None:
        """Refuse an address that was not signed here, or is too old.

        Raises:
            Refusal: 403.
        """
        stamp = int(expires) if expires.isascii() and expires.isdigit() and len(expires) < 12 else 0
        if not hmac.compare_digest(signature.encode(), self._seal(path, stamp).encode()):
            raise Refusal(403, "the address is not signed by this server", field="signature")
        if self._clock().timestamp() >= stamp:
            raise Refusal(403, "the address has expired: ask for a new one", field="expires")

    def _seal(self, path: str, stamp: int) -> str:
        return self._sign(f"{stamp}\n{path}".encode()).hex()

    def _sign(self, text: bytes) -> bytes:
        return hmac.digest(self._secret, text, hashlib.sha256)


def _b64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
