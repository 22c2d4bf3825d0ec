"""The stored credentials: `~/.tinker/credentials.json`, in the official client's format.

The rule: the file is replaced as a whole, readable by its owner only, in a folder that only
the owner can enter. Fields that a newer program wrote are kept.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any

import msgspec

from tinker_async.credentials.secret import Secret
from tinker_async.errors import ConfigError

_FOLDER_MODE = 0o700
_FILE_MODE = 0o600


class StoredKey(msgspec.Struct, frozen=True, eq=False):
    """One stored API key and what the server said of it."""

    key_id: str
    key: Secret
    name: str = ""
    note: str | None = None
    organization: str | None = None
    email: str | None = None
    kind: str = "manual"
    """`manual` (typed in) or `generated` (made by an old version of the official command)."""


def credentials_path(environ: Mapping[str, str] | None = None) -> str | None:
    """Return where the file is, or None for an environment without a home."""
    if environ is not None:
        home = environ.get("HOME") or environ.get("USERPROFILE")
    else:
        home = os.path.expanduser("~")  # noqa: PTH111  # pathlib costs more than all of this
        home = None if home == "~" else home
    return os.path.join(home, ".tinker", "credentials.json") if home else None  # noqa: PTH118


class CredentialStore:
    """The stored keys of this user. Small files: its methods do not wait.

    Args:
        path: The file; default `~/.tinker/credentials.json`. It need not exist.

    Every method reads the file anew.

    Raises:
        ConfigError: There is no home, or the file is not what it should be, or it cannot be
            read or written.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        found = os.fspath(path) if path is not None else credentials_path()
        if found is None:
            raise ConfigError("there is no home folder for stored credentials", hint="set HOME")
        self.path = found

    def default(self) -> StoredKey | None:
        """Return the key that is used when nothing else is given; None if there is none."""
        content = self._load()
        chosen = content.get("default")
        return self._key(content, chosen) if isinstance(chosen, str) else None

    def list_keys(self) -> list[StoredKey]:
        """Return all keys, in the file's order."""
        content = self._load()
        found = [self._key(content, key_id) for key_id in content["keys"]]
        return [key for key in found if key is not None]

    def add(self, key: StoredKey, *, default: bool = True) -> None:
        """Store a key, in place of one with its id, and by default let it be used."""
        record: dict[str, Any] = {"type": "manual", "key": key.key.reveal(), "name": key.name}
        if key.note is not None:
            record["note"] = key.note
        if key.organization is not None and key.email is not None:
            record["details"] = {
                "org_details": {"name": key.organization},
                "user_details": {"email": key.email},
            }
        if key.kind == "generated" and "details" in record:
            record["type"] = "generated"
        content = self._load()
        content["keys"][key.key_id] = record
        if default:
            content["default"] = key.key_id
        self._save(content)

    def remove(self, key_id: str) -> bool:
        """Forget a key, also as the default. Returns whether there was one."""
        content = self._load()
        if content["keys"].pop(key_id, None) is None:
            return False
        if content.get("default") == key_id:
            del content["default"]
        self._save(content)
        return True

    def _key(self, content: dict[str, Any], key_id: str) -> StoredKey | None:
        record = content["keys"].get(key_id)
        if record is None:
            return None
        if not isinstance(record, dict) or not isinstance(record.get("key"), str):
            raise self._malformed(f"its entry {key_id!r} has no key")
        details = record.get("details")
        return StoredKey(
            key_id=key_id,
            key=Secret(record["key"]),
            name=_text(record, "name") or "",
            note=_text(record, "note"),
            organization=_text(_part(details, "org_details"), "name"),
            email=_text(_part(details, "user_details"), "email"),
            kind=_text(record, "type") or "manual",
        )

    def _load(self) -> dict[str, Any]:
        try:
            with open(self.path, "rb") as file:  # noqa: PTH123  # as above
                text = file.read()
        except FileNotFoundError:
            return {"version": 1, "keys": {}}
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be read: {error.strerror}") from error
        try:
            content = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            # From None: the decoder's words may repeat the text, and the text is a key.
            raise self._malformed("it is not JSON") from None
        if not isinstance(content, dict) or content.get("version", 1) != 1:
            raise self._malformed("it is not of version 1")
        if not isinstance(content.setdefault("keys", {}), dict):
            raise self._malformed("its keys are no object")
        return content

    def _malformed(self, reason: str) -> ConfigError:
        return ConfigError(
            f"the stored credentials in {self.path} cannot be used: {reason}",
            hint="repair or remove the file, or pass api_key= or set TINKER_API_KEY",
        )

    def _save(self, content: dict[str, Any]) -> None:
        import tempfile  # noqa: PLC0415  # only who logs in or out needs it

        text = msgspec.json.format(msgspec.json.encode({"version": 1, **content}), indent=2)
        folder = os.path.dirname(self.path) or "."  # noqa: PTH120  # as above
        try:
            if not os.path.isdir(folder):  # noqa: PTH112  # as above
                os.makedirs(folder, _FOLDER_MODE, exist_ok=True)  # noqa: PTH103  # as above
                os.chmod(folder, _FOLDER_MODE)  # noqa: PTH101  # the mask may have taken bits
            # A file of its own name, complete and private before it takes the place of the old.
            descriptor, new = tempfile.mkstemp(dir=folder, prefix=".credentials.")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    os.chmod(new, _FILE_MODE)  # noqa: PTH101  # as above
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(new, self.path)  # noqa: PTH105  # as above
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(new)  # noqa: PTH108  # as above
                raise
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be written: {error.strerror}") from error


def _part(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, dict) else None


def _text(value: object, name: str) -> str | None:
    found = _part(value, name)
    return found if isinstance(found, str) else None
