"""`tinker-async auth`: store a credential, say whether the one in force is good, forget it.

The rule: a key is read where nobody sees it, goes to the server that was named and into the
private file, and is never printed.
"""

from __future__ import annotations

import sys
import urllib.parse
from typing import TYPE_CHECKING, Any

import click

from tinker_async.cli.asking import agree, check_terminal, yes_option
from tinker_async.cli.connection import Connection, connection_options
from tinker_async.cli.exits import one_line
from tinker_async.cli.lazy import PortedGroup
from tinker_async.cli.output import Column, Output, output_options
from tinker_async.errors import (
    ConfigError,
    CredentialError,
    NotFoundError,
    UnsupportedByServerError,
)

if TYPE_CHECKING:
    import tinker_async as ta
    from tinker_async.credentials.stored import CredentialStore, StoredKey

_LOGIN_HINT = "run tinker-async auth login, or set TINKER_API_KEY or TINKER_CREDENTIAL_CMD"
_CONSOLE = "https://tinker.thinkingmachines.ai/keys"
_SOURCES = {
    "environment": "TINKER_API_KEY",
    "command": "TINKER_CREDENTIAL_CMD",
    "stored": "the stored credentials",
}
_LONGEST = 64 << 10


@click.group(cls=PortedGroup, ported={"whoami": "status"})
def auth() -> None:
    """Store, check and forget the credential that commands and programs use.

    It is kept in ~/.tinker/credentials.json, which only you can read. TINKER_API_KEY and
    TINKER_CREDENTIAL_CMD win over it.
    """


# status


@auth.command()
@output_options
@connection_options
def status(*, out: Output, connection: Connection) -> None:
    """Ask the server whom the credential stands for. Fails if there is none, or a bad one."""
    from tinker_async.config import resolve_config  # noqa: PLC0415  # not for --help

    try:
        resolved = resolve_config(connection.base_url, ca_bundle=connection.ca_bundle)
    except ConfigError as error:
        if "no API key" not in error.message:
            raise
        raise CredentialError("there is no credential", hint=_LOGIN_HINT) from error
    source = _SOURCES[resolved.credential.source]
    out.record({"base_url": resolved.base_url, "source": source, **connection.ask(_who)}, _STATUS)


async def _who(rest: ta.RestClient) -> dict[str, Any]:
    """Return what the server says of the credential; many servers know only that it is good."""
    try:
        found = await rest.whoami()
    except (NotFoundError, UnsupportedByServerError):
        await rest.get_server_capabilities()
        return dict.fromkeys(("user", "organization", "email", "key_id", "key_name"))
    key = found.api_key
    return {
        "user": found.user_urn,
        "organization": (key and key.organization) or found.org_urn,
        "email": found.email or None,
        "key_id": key.key_id if key else None,
        "key_name": key.name if key else None,
    }


_STATUS = (
    Column("Server", lambda found: found["base_url"]),
    Column("Credential from", lambda found: found["source"]),
    Column("Accepted", lambda _: True),
    Column("User", lambda found: found["user"]),
    Column("Organization", lambda found: found["organization"]),
    Column("Email", lambda found: found["email"]),
    Column("Key", lambda found: found["key_name"]),
    Column("Key id", lambda found: found["key_id"]),
)


# login


@auth.command()
@click.option("--name", help="What to call the key here. Default: its name on the server.")
@click.option("--no-check", is_flag=True, help="Store it without asking the server.")
@output_options
@connection_options
def login(*, name: str | None, no_check: bool, out: Output, connection: Connection) -> None:
    """Store a key, which commands and programs then use.

    It is asked for on a terminal, without showing it; otherwise it is the line on standard
    input. The server is asked whether it is good before it is stored.
    """
    from tinker_async.config import resolve_config  # noqa: PLC0415  # not for --help

    # Before the question: a wrong address is no use to who has typed the key.
    server = resolve_config(connection.base_url, "tml-none").base_url
    key = _read_key(out)
    resolve_config(connection.base_url, key)  # its form
    who = {} if no_check else connection.ask_as(key, _who)
    stored = _to_store(key, who, name, server)
    store = _store()
    store.add(stored)
    found = {
        "key_id": stored.key_id,
        "key_name": stored.name,
        "email": stored.email,
        "organization": stored.organization,
        "checked": not no_check,
        "path": store.path,
    }
    if out.as_json:
        out.document(found)
        return
    whose = f" of {stored.email or stored.organization}" if stored.email else ""
    out.text(f"Stored the key {stored.name!r}{whose} in {store.path}.")
    if no_check:
        out.note("The server was not asked whether it is good: tinker-async auth status does.")


def _read_key(out: Output) -> str:
    """Read the key without showing it; the terminal is asked, a pipe is read."""
    if sys.stdin.isatty():
        out.note(f"Keys of the Tinker service are made at {_CONSOLE}")
        key: str = click.prompt("API key (not shown)", hide_input=True, err=True)
    else:
        key = sys.stdin.readline(_LONGEST)
    key = key.strip()
    if not key:
        raise click.UsageError("there is no key on standard input")
    return key


def _to_store(key: str, who: dict[str, Any], name: str | None, server: str) -> StoredKey:
    from tinker_async.credentials.secret import Secret  # noqa: PLC0415  # not for --help
    from tinker_async.credentials.stored import StoredKey  # noqa: PLC0415  # as above

    # A server that does not number its keys: one for each server, which the next one replaces.
    host = urllib.parse.urlsplit(server).netloc
    key_id = who.get("key_id")
    return StoredKey(
        key_id=host if key_id is None else str(key_id),
        key=Secret(key),
        name=name or who.get("key_name") or host,
        organization=who.get("organization"),
        email=who.get("email"),
    )


# logout


@auth.command()
@click.option("--all", "forget_all", is_flag=True, help="Forget every stored key.")
@click.option("--revoke", is_flag=True, help="First end the key on the server, for everybody.")
@yes_option
@output_options
@connection_options
def logout(
    *, forget_all: bool, revoke: bool, yes: bool, out: Output, connection: Connection
) -> None:
    """Forget the stored key. Without --revoke it stays good: delete it where it was made to end it.

    --revoke cannot be undone. A key that the server does not know, or could not be told of, stays
    stored.
    """
    if revoke and forget_all:
        hint = "the server that is asked need not be that of every key"
        raise click.UsageError(f"--revoke is for the key in use, without --all: {hint}")
    store = _store()
    default = store.default()
    keys = store.list_keys() if forget_all else [default] if default is not None else []
    if not keys and not out.as_json:
        out.note("There is no stored key to forget.")
    if revoke and keys and not yes:
        _ask_to_revoke(keys)
    for key in keys:
        if revoke:
            _revoke(connection, key)
        store.remove(key.key_id)
        state = "The server lets nobody in with it any more." if revoke else _STILL_GOOD
        out.text(f"Forgot the key {one_line(key.name)!r}. {state}")
    if out.as_json:
        out.document(
            [{"key_id": key.key_id, "key_name": key.name, "revoked": revoke} for key in keys]
        )


_STILL_GOOD = "It is still good until it is deleted."


def _ask_to_revoke(keys: list[StoredKey]) -> None:
    check_terminal(dry_run=False)
    names = ", ".join(repr(one_line(key.name)) for key in keys)
    agree(f"End {names} on the server, for every program that uses it?")


def _revoke(connection: Connection, key: StoredKey) -> None:
    """End a key on the server."""

    async def work(rest: ta.RestClient) -> None:
        await rest.revoke_api_key(key.key.reveal())

    connection.ask_as(key.key.reveal(), work)


def _store() -> CredentialStore:
    from tinker_async.credentials.stored import CredentialStore  # noqa: PLC0415  # not for --help

    return CredentialStore()
