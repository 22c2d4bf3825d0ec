"""`tinker-async config`: the settings that a command would use, and where each comes from.

The rule: everything can be shown to others. Of what is secret there is only its kind.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from tinker_async.cli.connection import Connection, connection_options
from tinker_async.cli.output import Column, Output, iso, output_options
from tinker_async.errors import ConfigError

if TYPE_CHECKING:
    from tinker_async.config import Config

_DEFAULT = "default"
_STAND_IN = "tml-none"
_CLOUDFLARE = ("CLOUDFLARE_ACCESS_CLIENT_ID", "CLOUDFLARE_ACCESS_CLIENT_SECRET")
_SOURCES = {
    "environment": "TINKER_API_KEY",
    "command": "TINKER_CREDENTIAL_CMD",
    "stored": "the stored credentials",
}


@click.command()
@output_options
@connection_options
def config(*, out: Output, connection: Connection) -> None:
    """Show the settings in force, and where each comes from. Connects to nothing.

    Options win over the environment, the environment over defaults. Secrets are not shown.
    """
    rows = settings(connection, os.environ)
    if out.as_json:
        out.document({row["setting"]: _without_name(row) for row in rows})
    else:
        out.table(rows, COLUMNS)


def _without_name(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "setting"}


COLUMNS = (
    Column("Setting", lambda row: row["setting"]),
    Column("Value", lambda row: row["value"]),
    Column("From", lambda row: row["source"]),
)


def settings(connection: Connection, env: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return setting, value and source of each.

    Raises:
        ConfigError: One of them, other than the credential, is wrong.
    """
    from tinker_async.config import SDK_VERSION, resolve_config  # noqa: PLC0415  # not for --help

    resolved = resolve_config(connection.base_url, _STAND_IN, ca_bundle=connection.ca_bundle)
    by_option, by_env = click.core.ParameterSource.COMMANDLINE, _source(env)
    context = click.get_current_context(silent=True)
    given = context is not None and context.get_parameter_source("base_url") is by_option
    project = by_env("TINKER_PROJECT_ID") if resolved.project_id else None
    headers = [name for name, _ in resolved.headers]
    rows = [
        ("base_url", resolved.base_url, "--base-url" if given else by_env("TINKER_BASE_URL")),
        ("credential", *_credential(connection)),
        ("project_id", resolved.project_id, project),
        ("tags", list(resolved.tags), by_env("TINKER_TAGS") if resolved.tags else None),
        ("headers", headers, by_env(*_CLOUDFLARE) if headers else None),
        ("proxy", *_proxy(resolved, env)),
        ("ca_bundle", *_authorities(connection, env)),
        ("telemetry", resolved.telemetry, by_env("TINKER_TELEMETRY")),
        ("timeout_s", connection.timeout_s, "--timeout" if connection.timeout_s else _DEFAULT),
        ("backend", connection.backend, None),
        ("protocol", SDK_VERSION, None),
        ("credentials_file", *_credentials_file()),
        ("cache_folder", *_cache(env)),
    ]
    names = ("setting", "value", "source")
    return [dict(zip(names, row, strict=True)) for row in rows]


def _source(env: Mapping[str, str]) -> Callable[..., str]:
    def by_env(*names: str) -> str:
        return next((name for name in names if env.get(name)), _DEFAULT)

    return by_env


def _credential(connection: Connection) -> tuple[str, str | None]:
    """Say what kind of credential there is, or why there is none."""
    from tinker_async.config import resolve_config  # noqa: PLC0415  # not for --help
    from tinker_async.credentials.tokens import expiry_of, is_token  # noqa: PLC0415  # as above

    try:
        credential = resolve_config(connection.base_url).credential
    except ConfigError as error:
        return f"none: {error.message}", None
    source = _SOURCES.get(credential.source)
    if credential.key is None:
        return "what a command prints", source
    key = credential.key.reveal()
    if not is_token(key):
        return "an API key", source
    ends = expiry_of(key)
    if ends is None:
        return "a token", source
    return f"a token until {iso(datetime.fromtimestamp(ends, UTC))}", source


def _proxy(config: Config, env: Mapping[str, str]) -> tuple[str | None, str | None]:
    proxy = config.proxy
    if proxy is None:
        return None, None
    scheme = config.base_url.partition(":")[0]
    names = (f"{scheme}_proxy", f"{scheme}_proxy".upper(), "all_proxy", "ALL_PROXY")
    with_password = ", with a password" if proxy.password is not None else ""
    return f"{proxy.scheme}://{proxy.address}{with_password}", _source(env)(*names)


def _authorities(connection: Connection, env: Mapping[str, str]) -> tuple[str, str]:
    if connection.ca_bundle:
        return connection.ca_bundle, "--ca-bundle"
    found = [name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if env.get(name)]
    if found:
        return ", ".join(env[name] for name in found), ", ".join(found)
    return "the system's and certifi's", _DEFAULT


def _credentials_file() -> tuple[str | None, str | None]:
    from tinker_async.credentials.stored import credentials_path  # noqa: PLC0415  # not for --help

    path = credentials_path()
    if path is None:
        return None, "there is no home folder"
    return path, "exists" if os.path.exists(path) else "does not exist"  # noqa: PTH110  # as above


def _cache(env: Mapping[str, str]) -> tuple[str, str]:
    from tinker_async.local.cache import (  # noqa: PLC0415  # not for --help
        CACHE_VARIABLE,
        default_cache_dir,
    )

    return str(default_cache_dir()), _source(env)(CACHE_VARIABLE)
