"""Which proxy stands between this program and a host, by argument or environment.

The rule: a proxy's password is a `Secret`, in no message and no printed form. Pure: nothing
is connected here.
"""

from __future__ import annotations

import binascii
import urllib.parse
from collections.abc import Mapping
from typing import Literal

import msgspec

from tinker_async.credentials.secret import Secret
from tinker_async.errors import ConfigError

_DEFAULT_PORTS = {"http": 80, "https": 443}
_HINT = "the form is http://[user:password@]host[:port]"


class Proxy(msgspec.Struct, frozen=True, eq=False):
    """A proxy: where it is, how it is spoken to, and what it wants to hear."""

    scheme: str
    """`http` or `https`: how we speak to the proxy, whatever is behind it."""
    host: str
    port: int
    authorization: Secret | None = None
    """The value of `Proxy-Authorization`."""
    password: Secret | None = None
    """What must not be seen in any text."""

    @property
    def address(self) -> str:
        """`host:port` as people write it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_proxy(url: str, *, name: str = "proxy") -> Proxy:
    """Read a proxy's URL; without a scheme it is `http://`.

    Args:
        url: `http(s)://[user:password@]host[:port]`.
        name: The setting that it comes from, for the error.

    Raises:
        ConfigError: It is malformed, or of a kind that is not supported (SOCKS).
    """
    text = url.strip()
    if "://" not in text:
        text = f"http://{text}"
    scheme = text.partition("://")[0].lower()
    if scheme.startswith("socks"):
        raise ConfigError(
            f"{name} names a SOCKS proxy, which is not supported",
            hint="use the proxy's http:// port, or none: proxy=False",
        )
    try:
        parts = urllib.parse.urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
        parts = urllib.parse.SplitResult("", "", "", "", "")
    sound = parts.scheme in _DEFAULT_PORTS and host and port != 0 and _plain(host)
    if not sound or host is None or parts.path not in ("", "/") or parts.query or parts.fragment:
        # The URL is not repeated here: it may hold a password.
        raise ConfigError(f"{name} is not the address of a proxy", hint=_HINT)
    user = urllib.parse.unquote(parts.username or "")
    password = urllib.parse.unquote(parts.password or "")
    authorization = None
    if user or password:
        pair = binascii.b2a_base64(f"{user}:{password}".encode(), newline=False).decode()
        authorization = Secret(f"Basic {pair}")
    return Proxy(
        parts.scheme,
        host,
        port or _DEFAULT_PORTS[parts.scheme],
        authorization,
        Secret(password) if password else None,
    )


def _plain(host: str) -> bool:
    return host.isascii() and host.isprintable() and " " not in host


class ProxyRules(msgspec.Struct, frozen=True, eq=False):
    """How the proxy for a host is chosen."""

    chosen: Proxy | Literal[False] | None = None
    """What the program chose for all hosts; False is none, None leaves it to the environment."""
    by_scheme: dict[str, Secret] = {}
    """The environment's URL by the scheme of the target."""
    exempt: tuple[str, ...] = ()
    """Hosts that `NO_PROXY` names."""

    def proxy_for(self, url: str) -> Proxy | None:
        """Return the proxy for a URL's host, or None to connect directly.

        What the environment names is not used for this machine itself.

        Raises:
            ConfigError: The environment's URL is malformed.
        """
        if self.chosen is not None:
            return self.chosen or None
        parts = urllib.parse.urlsplit(url)
        found = self.by_scheme.get(parts.scheme)
        host = (parts.hostname or "").rstrip(".")
        if found is None or is_loopback(host):
            return None
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
        if any(_exempts(entry, host, port) for entry in self.exempt):
            return None
        return parse_proxy(found.reveal(), name=f"the environment's {parts.scheme} proxy")


def proxy_rules(proxy: str | Literal[False] | None, environ: Mapping[str, str]) -> ProxyRules:
    """Read the settings: the argument, else `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`.

    Lower-case names win over upper-case ones, as in other programs. `HTTP_PROXY` in upper case
    does not count in a CGI program, where it is what a client sent.

    Raises:
        ConfigError: The argument is not a proxy's address.
    """
    if proxy is False:
        return ProxyRules(chosen=False)
    if proxy:
        return ProxyRules(chosen=parse_proxy(proxy))
    by_scheme = {}
    for scheme in _DEFAULT_PORTS:
        names = [f"{scheme}_proxy", f"{scheme}_proxy".upper(), "all_proxy", "ALL_PROXY"]
        if "REQUEST_METHOD" in environ:
            names = [name for name in names if name != "HTTP_PROXY"]
        url = next((environ[name] for name in names if environ.get(name)), None)
        if url is not None:
            by_scheme[scheme] = Secret(url)
    exempt = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    entries = tuple(entry for entry in map(str.strip, exempt.lower().split(",")) if entry)
    return ProxyRules(by_scheme=by_scheme, exempt=entries)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine itself."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    import ipaddress  # noqa: PLC0415  # only for programs behind a proxy

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _exempts(entry: str, host: str, port: int | None) -> bool:
    """Whether one entry of `NO_PROXY` means a host: a name and all below it, or a network."""
    if entry == "*":
        return True
    name, colon, number = entry.rpartition(":")
    if colon and number.isdigit() and name.count(":") in (0, 7):
        if int(number) != port:
            return False
        entry = name
    entry = entry.strip("[]").removeprefix("*").lstrip(".")
    if host == entry or host.endswith(f".{entry}"):
        return bool(entry)
    return _in_network(entry, host)


def _in_network(entry: str, host: str) -> bool:
    import ipaddress  # noqa: PLC0415  # as above

    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
