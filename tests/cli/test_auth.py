"""`auth` and `config`: the credential is checked, kept, forgotten, and never shown."""

from __future__ import annotations

import json
import os
import pty
import stat
from typing import TYPE_CHECKING, Any

import pytest
from cli.conftest import KEY

from tinker_async.credentials.secret import Secret
from tinker_async.credentials.stored import CredentialStore, StoredKey
from tinker_async.testing import FakeService, faults
from tinker_async.wire.messages import ClientConfigResponse

if TYPE_CHECKING:
    from pathlib import Path

    from cli.conftest import Cli, Serve


def store_of(cli: Cli) -> CredentialStore:
    return CredentialStore(cli.home / ".tinker" / "credentials.json")


# status


def test_status_says_where_the_credential_is_from_and_whose(cli: Cli) -> None:
    """The server is asked; the key is not in what is said."""
    found = cli.json("auth", "status")

    assert "TINKER_API_KEY" == found["source"]
    assert cli.env["TINKER_BASE_URL"] == found["base_url"]
    assert found["email"]
    assert KEY not in cli.ask("auth", "status").output


def test_status_of_a_token_says_the_organization(cli: Cli, serve: Serve) -> None:
    """Where the server exchanges the key, the token says more."""
    config = ClientConfigResponse(pjwt_auth_enabled=True)
    with serve(FakeService(api_key=KEY, config=config)) as url:
        cli.use(url)
        assert "tml:organization:fake" == cli.json("auth", "status")["organization"]


def test_status_with_a_wrong_key_fails_with_its_code(cli: Cli) -> None:
    """3, whatever the form of the output; nothing on stdout."""
    cli.env["TINKER_API_KEY"] = "tml-wrong-one"
    for form in ([], ["--json"]):
        result = cli.ask("auth", "status", *form)
        assert (3, "") == (result.exit_code, result.stdout)
        assert "401" in result.stderr
        assert "wrong-one" not in result.output


def test_status_without_a_credential_says_how_to_get_one(cli: Cli) -> None:
    """The same code, and nothing is sent."""
    cli.env["TINKER_API_KEY"] = None
    result = cli.ask("auth", "status")

    assert 3 == result.exit_code
    assert "tinker-async auth login" in result.stderr


def test_status_of_a_server_that_knows_no_keys_is_that_it_let_us_in(
    cli: Cli, service: FakeService
) -> None:
    """Older servers have no such endpoint."""
    service.faults.on("auth/apikey/me", faults.Status(status=404))
    found = cli.json("auth", "status")

    assert found["email"] is None
    assert "Accepted\tyes" in cli.ask("auth", "status").stdout


# login


def test_a_key_on_stdin_is_checked_and_stored(cli: Cli) -> None:
    """Then programs use it without any setting; the file is private."""
    cli.env["TINKER_API_KEY"] = None
    result = cli.ask("auth", "login", input=f"{KEY}\n")

    assert 0 == result.exit_code, result.output
    assert KEY not in result.output
    path = cli.home / ".tinker" / "credentials.json"
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert str(path) in result.stdout
    found = store_of(cli).default()
    assert found is not None
    assert KEY == found.key.reveal()
    assert "the stored credentials" == cli.json("auth", "status")["source"]


def test_a_wrong_key_is_not_stored(cli: Cli) -> None:
    """The server said no."""
    result = cli.ask("auth", "login", input="tml-wrong-one\n")

    assert 3 == result.exit_code
    assert "wrong-one" not in result.output
    assert store_of(cli).default() is None


def test_a_key_can_be_stored_without_asking(alone: Cli) -> None:
    """Nothing listens there; what it is called is said."""
    alone.env["TINKER_BASE_URL"] = "http://127.0.0.1:1"
    result = alone("auth", "login", "--no-check", "--name", "mine", "--json", input=KEY)

    assert 0 == result.exit_code, result.output
    found = json.loads(result.stdout)
    assert (False, "mine", "127.0.0.1:1") == (
        found["checked"],
        found["key_name"],
        found["key_id"],
    )


@pytest.mark.parametrize("text", ["", "\n", "tml-two words\n", "tml-\x07\n"])
def test_what_is_no_key_is_refused_before_it_is_sent(
    text: str, cli: Cli, service: FakeService
) -> None:
    """Wrong usage; it is not repeated."""
    result = cli.ask("auth", "login", input=text)

    assert 2 == result.exit_code
    assert "words" not in result.output
    assert [] == service.ledger.entries


def test_on_a_terminal_the_key_is_asked_for_and_not_shown(alone: Cli) -> None:
    """A real one: what is typed is not echoed."""
    ours, theirs = pty.openpty()
    alone.env["TINKER_BASE_URL"] = "http://127.0.0.1:1"
    with alone.process("auth", "login", "--no-check", stdin=theirs, stderr=theirs) as child:
        os.close(theirs)
        seen = b""
        while b"not shown" not in seen.partition(b"API key")[2]:
            seen += os.read(ours, 1 << 16)
        os.write(ours, f"{KEY}\n".encode())
        assert child.stdout is not None
        told = child.stdout.read()
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # Linux's end of a terminal that nobody holds
                break
            seen += part
    os.close(ours)
    assert 0 == child.returncode, seen
    assert KEY.encode() not in seen
    assert KEY not in told
    assert "Stored the key" in told


# logout


def test_logout_forgets_the_key_in_use(alone: Cli) -> None:
    """The others stay, until all are to go."""
    for number in (1, 2, 3):
        store_of(alone).add(StoredKey(str(number), Secret(f"tml-{number}"), f"key {number}"))

    told = alone("auth", "logout")
    assert (0, True) == (told.exit_code, "'key 3'" in told.stdout)
    assert store_of(alone).default() is None
    assert ["1", "2"] == [key["key_id"] for key in json.loads(logout_all(alone))]
    assert [] == store_of(alone).list_keys()


def logout_all(cli: Cli) -> str:
    return cli("auth", "logout", "--all", "--json").stdout


def test_logout_without_a_key_is_no_failure(alone: Cli) -> None:
    """What was asked for is so."""
    result = alone("auth", "logout")
    assert (0, "") == (result.exit_code, result.stdout)
    assert "no stored key" in result.stderr
    assert "[]\n" == logout_all(alone)


def logged_in(cli: Cli, *keys: str) -> None:
    """Store keys; the last one is in use."""
    cli.env["TINKER_API_KEY"] = None
    for key in keys:
        store_of(cli).add(StoredKey(key[-3:], Secret(key), f"key {key[-3:]}"))


def test_logout_can_end_the_key_on_the_server(cli: Cli, service: FakeService) -> None:
    """Then nobody is let in with it; and it is forgotten here."""
    logged_in(cli, KEY)
    told = cli.ask("auth", "logout", "--revoke", "--yes")

    assert 0 == told.exit_code, told.output
    assert "nobody" in told.stdout
    assert KEY not in told.output
    assert {KEY.encode()} == service.state.revoked_keys
    assert [] == store_of(cli).list_keys()
    cli.use(cli.env["TINKER_BASE_URL"] or "")
    assert 3 == cli.ask("auth", "status").exit_code


def test_logout_asks_before_it_ends_a_key(cli: Cli, service: FakeService) -> None:
    """Without a terminal it refuses; nothing is sent, nothing is forgotten."""
    logged_in(cli, KEY)
    told = cli.ask("auth", "logout", "--revoke")

    assert 2 == told.exit_code
    assert "--yes" in told.stderr
    assert "--dry-run" not in told.stderr
    assert [] == service.ledger.entries
    assert 1 == len(store_of(cli).list_keys())


def test_a_key_that_the_server_does_not_know_stays_stored(cli: Cli, service: FakeService) -> None:
    """It may be the key of another server, and as good as before."""
    service.state.revoked_keys.add(KEY.encode())
    logged_in(cli, KEY)
    told = cli.ask("auth", "logout", "--revoke", "--yes")

    assert 3 == told.exit_code, told.output
    assert 1 == len(store_of(cli).list_keys())


def test_keys_are_ended_one_by_one(cli: Cli, service: FakeService) -> None:
    """None is shown to a server that is not its own."""
    logged_in(cli, "tml-of-another-001", KEY)
    told = cli.ask("auth", "logout", "--all", "--revoke", "--yes")

    assert 2 == told.exit_code, told.output
    assert [] == service.ledger.entries
    assert 2 == len(store_of(cli).list_keys())


@pytest.mark.parametrize(("status", "code"), [(503, 8), (403, 4), (404, 11)])
def test_a_key_that_could_not_be_ended_stays_stored(
    status: int, code: int, cli: Cli, service: FakeService
) -> None:
    """Else nobody could try again; a server that has no such thing is said to have none."""
    fault = faults.Status(status=status, detail="Not Found", should_retry=False)
    service.faults.on("revoke_api_key", fault)
    logged_in(cli, KEY)
    told = cli.ask("auth", "logout", "--revoke", "--yes")

    assert code == told.exit_code, told.output
    assert KEY not in told.output
    assert [KEY] == [one.key.reveal() for one in store_of(cli).list_keys()]


def test_a_damaged_file_is_told_without_its_content(alone: Cli) -> None:
    """It may hold a key."""
    path = alone.home / ".tinker" / "credentials.json"
    path.parent.mkdir()
    path.write_text('{"keys": {"1": {"key": "tml-secret"', encoding="utf-8")
    result = alone("auth", "logout")
    assert 2 == result.exit_code
    assert str(path) in result.stderr
    assert "tml-secret" not in result.output


# config


def settings(cli: Cli, *options: str) -> Any:
    result = cli("config", "--json", *options)
    assert 0 == result.exit_code, result.output
    return json.loads(result.stdout)


def test_settings_come_with_their_source(alone: Cli, tmp_path: Path) -> None:
    """Option, environment or default, and none that is secret."""
    alone.env |= {
        "TINKER_BASE_URL": "https://one.invalid",
        "TINKER_API_KEY": KEY,
        "TINKER_TAGS": "a, b",
        "TINKER_TELEMETRY": "1",
        "CLOUDFLARE_ACCESS_CLIENT_ID": "cf-secret-id",
        "CLOUDFLARE_ACCESS_CLIENT_SECRET": "cf-secret-word",
        "HTTPS_PROXY": "http://user:proxy-word@proxy.invalid:3128",
        "SSL_CERT_FILE": str(tmp_path),
        "TINKER_ASYNC_CACHE": str(tmp_path / "models"),
    }
    found = settings(alone)
    assert {"value": "https://one.invalid", "source": "TINKER_BASE_URL"} == found["base_url"]
    assert {"value": "an API key", "source": "TINKER_API_KEY"} == found["credential"]
    assert ["a", "b"] == found["tags"]["value"]
    assert ["cf-access-client-id", "cf-access-client-secret"] == found["headers"]["value"]
    proxy = {"value": "http://proxy.invalid:3128, with a password", "source": "HTTPS_PROXY"}
    assert proxy == found["proxy"]
    assert "SSL_CERT_FILE" == found["ca_bundle"]["source"]
    assert {"value": True, "source": "TINKER_TELEMETRY"} == found["telemetry"]
    assert {
        "value": str(tmp_path / "models"),
        "source": "TINKER_ASYNC_CACHE",
    } == found["cache_folder"]
    text = alone("config").output + json.dumps(found)
    assert not [word for word in (KEY, "cf-secret", "proxy-word") if word in text]

    changed = settings(alone, "--base-url", "https://two.invalid/", "--ca-bundle", str(tmp_path))
    assert {"value": "https://two.invalid", "source": "--base-url"} == changed["base_url"]
    assert {"value": str(tmp_path), "source": "--ca-bundle"} == changed["ca_bundle"]


def test_without_any_setting_there_are_defaults_and_no_credential(alone: Cli) -> None:
    """Which is said, and is no failure of this command."""
    found = settings(alone)
    assert "default" == found["base_url"]["source"]
    assert {"value": "none: no API key", "source": None} == found["credential"]
    assert "does not exist" == found["credentials_file"]["source"]
    assert "the system's and certifi's" == found["ca_bundle"]["value"]


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("TINKER_CREDENTIAL_CMD", "print-a-secret", "what a command prints"),
        ("TINKER_API_KEY", "eyJhbGciOiJub25lIn0.eyJleHAiOjQxMDI0NDQ4MDB9.", "a token until 2100-"),
        ("TINKER_API_KEY", "eyJhbGciOiJub25lIn0.e30.", "a token"),
    ],
)
def test_the_kind_of_the_credential_is_told(name: str, value: str, kind: str, alone: Cli) -> None:
    """Not the credential, nor the command, which may hold a password."""
    alone.env[name] = value
    found = settings(alone)["credential"]
    assert (name, True) == (found["source"], found["value"].startswith(kind))
    assert value not in alone("config").output


def test_a_wrong_setting_is_named(alone: Cli) -> None:
    """With its form."""
    result = alone("config", "--base-url", "ftp://x")
    assert 2 == result.exit_code
    assert "https://host" in result.stderr
