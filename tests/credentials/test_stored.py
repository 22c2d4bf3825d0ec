"""The credentials file: the official client's format, private, and never half written."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from tinker.lib.credentials import ApiKeyDetails, GeneratedKey, JsonCredentialStore, ManualKey

from tinker_async import ConfigError
from tinker_async.config import resolve_config
from tinker_async.credentials.secret import Secret
from tinker_async.credentials.stored import CredentialStore, StoredKey

DETAILS = ApiKeyDetails.model_validate(
    {"org_details": {"name": "Org"}, "user_details": {"email": "a@b.c"}}
)
KEY = StoredKey("7", Secret("tml-stored"), "laptop", "a note", "Org", "a@b.c")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".tinker" / "credentials.json"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_official_client_reads_what_we_write(path: Path) -> None:
    """The key, what is known of it, and that it is the default."""
    CredentialStore(path).add(KEY)

    read = JsonCredentialStore(path)
    assert "7" == read.get_default_key_id()
    expected = ManualKey(key="tml-stored", name="laptop", note="a note", details=DETAILS)
    assert expected == read.get_default_key()


def test_we_read_what_the_official_client_writes(path: Path) -> None:
    """Both kinds of keys, and the default."""
    written = JsonCredentialStore(path)
    written.add_key("1", ManualKey(key="tml-one", name="one"))
    written.add_key("2", GeneratedKey(key="tml-two", name="two", details=DETAILS))
    written.set_default("2")

    store = CredentialStore(path)
    found = store.default()
    assert found is not None
    assert ("2", "tml-two", "two", "generated") == (
        found.key_id,
        found.key.reveal(),
        found.name,
        found.kind,
    )
    assert ("Org", "a@b.c") == (found.organization, found.email)
    assert ["tml-one", "tml-two"] == [key.key.reveal() for key in store.list_keys()]


def test_only_the_owner_can_read_it(path: Path) -> None:
    """Whatever the mask says, also after a second writing; and nothing else is left there."""
    before = os.umask(0)
    try:
        CredentialStore(path).add(KEY)
        assert (0o700, 0o600) == (mode(path.parent), mode(path))
        path.chmod(0o644)
        CredentialStore(path).add(KEY)
    finally:
        os.umask(before)

    assert 0o600 == mode(path)
    assert ["credentials.json"] == [file.name for file in path.parent.iterdir()]


def test_a_write_that_fails_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new one takes its place when it is complete, or never."""
    store = CredentialStore(path)
    store.add(KEY)
    before = path.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        store.add(StoredKey("8", Secret("tml-other")))
    assert before == path.read_bytes()
    assert ["credentials.json"] == [file.name for file in path.parent.iterdir()]


def test_a_removed_key_is_gone_and_is_the_default_no_more(path: Path) -> None:
    """Others stay; removing what is not there says so."""
    store = CredentialStore(path)
    store.add(StoredKey("1", Secret("tml-one")))
    store.add(KEY)

    assert store.remove("7")
    assert not store.remove("7")
    assert store.default() is None
    assert ["1"] == [key.key_id for key in store.list_keys()]
    assert "tml-stored" not in path.read_text()
    assert JsonCredentialStore(path).get_default_key() is None


def test_without_a_file_there_are_no_keys(path: Path) -> None:
    """And reading does not make one."""
    assert CredentialStore(path).default() is None
    assert [] == CredentialStore(path).list_keys()
    assert not path.parent.exists()


def test_fields_of_newer_programs_are_kept(path: Path) -> None:
    """Of the file and of other keys."""
    path.parent.mkdir()
    other = {"type": "manual", "key": "tml-o", "name": "o", "scopes": ["x"]}
    path.write_text(json.dumps({"version": 1, "keys": {"o": other}, "theme": "dark"}))

    CredentialStore(path).add(KEY)

    written = json.loads(path.read_text())
    assert "dark" == written["theme"]
    assert other == written["keys"]["o"]


@pytest.mark.parametrize(
    "text",
    [
        '{"key": "tml-hidden',
        '["tml-hidden"]',
        '{"version": 2, "default": "1", "keys": {"1": {"key": "tml-hidden"}}}',
        '{"default": "1", "keys": ["tml-hidden"]}',
        '{"default": "1", "keys": {"1": "tml-hidden"}}',
        '{"default": "1", "keys": {"1": {"key": ["tml-hidden"]}}}',
        "\udcff tml-hidden",
    ],
)
def test_a_damaged_file_is_named_and_not_repeated(path: Path, text: str) -> None:
    """The error says which file, and nothing of what is in it."""
    path.parent.mkdir()
    path.write_bytes(text.encode("utf-8", "surrogateescape"))

    with pytest.raises(ConfigError, match=r"credentials\.json") as caught:
        CredentialStore(path).default()
    assert "tml-hidden" not in str(caught.value) + repr(caught.value.__cause__)


def test_the_stored_key_is_the_last_that_is_asked(tmp_path: Path, path: Path) -> None:
    """Argument, environment, command, stored key, in this order."""
    CredentialStore(path).add(KEY)
    env = {"HOME": str(tmp_path)}

    def found(api_key: str | None = None, **more: str) -> tuple[str, str | None]:
        credential = resolve_config(None, api_key, environ={**env, **more}).credential
        return credential.source, credential.key.reveal() if credential.key else None

    assert ("stored", "tml-stored") == found()
    assert ("command", None) == found(TINKER_CREDENTIAL_CMD="echo x")
    assert ("environment", "tml-e") == found(TINKER_API_KEY="tml-e", TINKER_CREDENTIAL_CMD="x")
    assert ("argument", "tml-a") == found("tml-a", TINKER_API_KEY="tml-e")
    # A malformed key gives way to a command, but not to a stored key.
    assert ("command", None) == found(TINKER_API_KEY="sk-e", TINKER_CREDENTIAL_CMD="x")
    with pytest.raises(ConfigError, match="malformed"):
        found(TINKER_API_KEY="sk-e")
