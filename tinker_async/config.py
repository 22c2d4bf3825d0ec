"""Where to connect and as whom: arguments first, then the environment, then defaults.

A resolved `Config` is frozen and prints without its secret.
"""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Mapping

import msgspec

from tinker_async.errors import ConfigError

DEFAULT_BASE_URL = "https://tinker.thinkingmachines.dev/services/tinker-prod"
SDK_VERSION = "0.38.0"
"""The official version whose protocol this client speaks; servers gate features on it."""

_KEY_HINT = "pass api_key= or set TINKER_API_KEY; a server without accounts takes any key"


class Secret:
    """A string that never prints itself."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the string, for the one place that sends it."""
        return self._value

    def __repr__(self) -> str:
        return "Secret('…')"

    __str__ = __repr__


class Config(msgspec.Struct, frozen=True, eq=False):
    """A checked base URL (without trailing slash) and credential."""

    base_url: str
    api_key: Secret

    @property
    def base_path(self) -> str:
        """The path part of the URL, which every request's path starts with."""
        return urllib.parse.urlsplit(self.base_url).path


def resolve_config(
    base_url: str | None = None,
    api_key: str | None = None,
    *,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Resolve and check the settings of a session. Empty strings count as unset.

    Raises:
        ConfigError: No key, a malformed key, or a URL that is not http(s)://host.
    """
    env = os.environ if environ is None else environ
    url = check_base_url(base_url or env.get("TINKER_BASE_URL") or DEFAULT_BASE_URL)
    key = (api_key or env.get("TINKER_API_KEY") or "").strip()
    if not key:
        raise ConfigError("no API key", hint=_KEY_HINT)
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError("the API key has characters that no key has", hint=_KEY_HINT)
    if url == DEFAULT_BASE_URL and not key.startswith(("tml-", "eyJ")):
        raise ConfigError(
            "the API key is malformed: keys of the Tinker service start with tml-",
            hint=_KEY_HINT,
        )
    return Config(base_url=url, api_key=Secret(key))


def check_base_url(url: str) -> str:
    """Return the URL without a trailing slash.

    Raises:
        ConfigError: It is not of the form http(s)://host[:port][/path].
    """
    try:
        parts = urllib.parse.urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        sound = False
    else:
        sound = sound and not (parts.query or parts.fragment or "@" in parts.netloc)
    if not sound:
        raise ConfigError(
            f"base_url {_without_secrets(url)!r} is not a server's address",
            hint="the form is https://host[:port][/path], without query or user name",
        )
    return url.rstrip("/")


def _without_secrets(url: str) -> str:
    """Return a refused URL as far as it may be shown: no user name, password or query."""
    scheme, mark, rest = url.partition("://")
    rest = rest if mark else scheme
    shown = rest.rpartition("@")[2].partition("?")[0].partition("#")[0]
    return f"{scheme}://{shown}" if mark else shown
