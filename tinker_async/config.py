"""Where to connect and as whom: arguments first, then the environment, then defaults.

A resolved `Config` is frozen and prints without its secrets.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from tinker_async.credentials.secret import Secret as Secret  # noqa: PLC0414  # others have it from here
from tinker_async.errors import ConfigError
from tinker_async.proxies import Proxy, ProxyRules, proxy_rules

DEFAULT_BASE_URL = "https://tinker.thinkingmachines.dev/services/tinker-prod"
SDK_VERSION = "0.38.0"
"""The official version whose protocol this client speaks; servers gate features on it."""

_KEY_HINT = "pass api_key= or set TINKER_API_KEY; a server without accounts takes any key"
_YES = {"1", "true", "yes", "on"}
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OURS = {
    *("x-api-key", "host", "connection", "content-length", "content-type", "content-encoding"),
    *("transfer-encoding", "te", "upgrade", "expect", "keep-alive", "proxy-connection", "trailer"),
    *("accept", "accept-encoding", "user-agent", "proxy-authorization"),
}
"""Headers that have a setting of their own, or say how the message is to be read."""
_OURS_BEGIN = ("x-stainless-", "x-tinker-")
_TELLING = re.compile(r"secret|token|key|password|authorization|cookie", re.IGNORECASE)
"""Names of headers whose values are taken out of texts."""


class Credential(msgspec.Struct, frozen=True, eq=False):
    """What proves who we are."""

    key: Secret | None
    """An API key or a JWT; None when only the command is there."""
    command: Secret | None = None
    """The command that prints one: used if there is no key, or if the server asks for it."""
    source: str = "argument"
    """Where it was found: `argument`, `environment`, `command` or `stored`."""


class Config(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """The checked settings of a connection."""

    base_url: str
    """Without trailing slash."""
    credential: Credential
    project_id: str | None = None
    tags: tuple[str, ...] = ()
    headers: tuple[tuple[str, Secret], ...] = ()
    """Headers of every request besides our own; lower-case names."""
    proxies: ProxyRules = ProxyRules()
    ca_bundle: str | None = None
    """File or folder of the certificate authorities to trust, instead of the usual ones."""
    telemetry: bool = False

    @property
    def base_path(self) -> str:
        """The path part of the URL, which every request's path starts with."""
        return urllib.parse.urlsplit(self.base_url).path

    @property
    def api_key(self) -> Secret:
        """The key or token.

        Raises:
            ConfigError: There is only a command that prints one.
        """
        if self.credential.key is None:
            raise ConfigError("no API key", hint=_KEY_HINT)
        return self.credential.key

    @property
    def proxy(self) -> Proxy | None:
        """The proxy between us and the server, if any."""
        return self.proxies.proxy_for(self.base_url)

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """Everything here that no text may show."""
        proxy = self.proxy
        found = [self.credential.key, *(v for k, v in self.headers if _TELLING.search(k))]
        found += [proxy.password, proxy.authorization] if proxy is not None else []
        return tuple(secret for secret in found if secret is not None)


def resolve_config(
    base_url: str | None = None,
    api_key: str | None = None,
    *,
    project_id: str | None = None,
    tags: Sequence[str] | None = None,
    headers: Mapping[str, str] | None = None,
    proxy: str | Literal[False] | None = None,
    ca_bundle: str | os.PathLike[str] | None = None,
    telemetry: bool | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Resolve and check the settings of a connection. Empty strings count as unset.

    Args:
        base_url: Else `TINKER_BASE_URL`, else the Tinker service.
        api_key: Key or JWT; else `TINKER_API_KEY`, else `TINKER_CREDENTIAL_CMD`, else the stored key.
        project_id: Else `TINKER_PROJECT_ID`.
        tags: Else `TINKER_TAGS`, comma-separated.
        headers: Of every request, besides our own. `CLOUDFLARE_ACCESS_CLIENT_ID` and
            `CLOUDFLARE_ACCESS_CLIENT_SECRET` add theirs.
        proxy: The proxy's URL; False for none; else `HTTPS_PROXY` and its kin.
        ca_bundle: File or folder of certificate authorities; else `SSL_CERT_FILE`, `SSL_CERT_DIR`.
        telemetry: Whether to tell the service how the session goes; else `TINKER_TELEMETRY`,
            else not.
        environ: The environment; default the process's.

    Raises:
        ConfigError: No key, a malformed key, header or proxy, a URL that is not http(s)://host, or
            anything of another type.
    """
    env = os.environ if environ is None else environ
    _check_types(
        base_url=(base_url, _TEXT, "https://host[:port][/path]"),
        api_key=(api_key, _TEXT, "tml-..."),
        project_id=(project_id, _TEXT, "its id, as the console shows it"),
        tags=(tags, (list, tuple, set, frozenset, _NONE), '["sft", "night run"]'),
        headers=(headers, (Mapping, _NONE), '{"X-Team": "red"}'),
        proxy=(
            None if proxy is False else proxy,
            _TEXT,
            "http://[user:password@]host[:port], or False for none",
        ),
        ca_bundle=(ca_bundle, (*_TEXT, os.PathLike), "the path of a file or folder"),
        telemetry=(telemetry, (bool, _NONE), "True or False"),
    )
    _check_texts("tags", tags or ())
    _check_texts("headers", [one for pair in (headers or {}).items() for one in pair])
    url = check_base_url(base_url or env.get("TINKER_BASE_URL") or DEFAULT_BASE_URL)
    named = (env.get("TINKER_TAGS") or "").split(",")
    config = Config(
        base_url=url,
        credential=_credential(url, api_key, env, environ),
        project_id=_checked_project(project_id or env.get("TINKER_PROJECT_ID") or None),
        tags=tuple(tags) if tags is not None else tuple(filter(None, map(str.strip, named))),
        headers=_headers(headers or {}, env),
        proxies=proxy_rules(proxy, env),
        ca_bundle=os.fspath(ca_bundle or "") or None,
        telemetry=_switch(env.get("TINKER_TELEMETRY")) if telemetry is None else telemetry,
    )
    _ = config.proxy  # raises for what the environment says wrongly of this server's proxy
    return config


_NONE = type(None)
_TEXT = (str, _NONE)


def _check_types(**settings: tuple[object, tuple[type, ...], str]) -> None:
    """Refuse settings of other types: each with those that it may be of, and the right form.

    No value is repeated: some of them are secrets.
    """
    for name, (value, kinds, form) in settings.items():
        if not isinstance(value, kinds):
            raise ConfigError(
                f"{name} cannot be of the type {type(value).__name__}", hint=f"the form is {form}"
            )


def _check_texts(name: str, values: Iterable[object]) -> None:
    for value in values:
        if not isinstance(value, str):
            raise ConfigError(f"{name} has a {type(value).__name__}, where there are texts only")


def _checked_project(project_id: str | None) -> str | None:
    if project_id is not None and (not project_id.isprintable() or {*project_id} & {" ", "/"}):
        raise ConfigError(
            f"project_id {project_id!r} is not the id of a project",
            hint="the form is that of the console, or of TINKER_PROJECT_ID: no spaces, no slashes",
        )
    return project_id


def _switch(text: str | None) -> bool:
    return (text or "").strip().lower() in _YES


def _credential(
    url: str, api_key: str | None, env: Mapping[str, str], given_env: Mapping[str, str] | None
) -> Credential:
    """Find the credential: argument, environment, command, stored key, in this order."""
    line = (env.get("TINKER_CREDENTIAL_CMD") or "").strip()
    command = Secret(line) if line else None
    given = (api_key or "").strip()
    key, source = given or (env.get("TINKER_API_KEY") or "").strip(), "argument"
    if not given:
        source = "environment"
    if key:
        try:
            return Credential(_checked_key(key, url), command, source)
        except ConfigError:
            if command is None:
                raise
    if command is not None:
        return Credential(None, command, "command")
    from tinker_async.credentials.stored import (  # noqa: PLC0415  # the last resort
        CredentialStore,
        credentials_path,
    )

    stored = credentials_path(given_env)
    found = CredentialStore(stored).default() if stored is not None else None
    if found is None:
        raise ConfigError("no API key", hint=_KEY_HINT)
    return Credential(_checked_key(found.key.reveal(), url), None, "stored")


def _checked_key(key: str, url: str) -> Secret:
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError("the API key has characters that no key has", hint=_KEY_HINT)
    if url == DEFAULT_BASE_URL and not key.startswith(("tml-", "eyJ")):
        raise ConfigError(
            "the API key is malformed: keys of the Tinker service start with tml-",
            hint=_KEY_HINT,
        )
    return Secret(key)


def _headers(given: Mapping[str, str], env: Mapping[str, str]) -> tuple[tuple[str, Secret], ...]:
    cloudflare = {
        "cf-access-client-id": env.get("CLOUDFLARE_ACCESS_CLIENT_ID"),
        "cf-access-client-secret": env.get("CLOUDFLARE_ACCESS_CLIENT_SECRET"),
    }
    found = {name: value for name, value in cloudflare.items() if value}
    for name, value in given.items():
        lower = name.lower()
        if not _HEADER_NAME.fullmatch(name):
            raise ConfigError(f"headers has {name!r}, which cannot be a header's name")
        if lower in _OURS or lower.startswith(_OURS_BEGIN):
            raise ConfigError(
                f"headers has {name!r}, which the client sets itself",
                hint="for the credential pass api_key=, for a proxy's proxy=",
            )
        found[lower] = value
    for name, value in found.items():
        if not (value.isascii() and value.isprintable()) or value != value.strip():
            # The value is not repeated here: it may be a secret.
            raise ConfigError(f"the value of the header {name!r} is malformed")
    return tuple((name, Secret(value)) for name, value in found.items())


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
