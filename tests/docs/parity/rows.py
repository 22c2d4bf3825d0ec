"""The rows: each official name with what we have in its place, by the rules and `official.toml`."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from docs.parity import official, ours

FOLDER = Path(__file__).parent
TAG = "a tag of the body, and no field"


class Row(msgspec.Struct, frozen=True):
    """One name. With neither a counterpart nor a reason it is not decided, which is an error."""

    name: str
    counterparts: tuple[str, ...] = ()
    note: str = ""
    """Why there is nothing, or what is different."""

    @property
    def decided(self) -> bool:
        return bool(self.counterparts or self.note)

    @property
    def missing(self) -> list[str]:
        """The counterparts that do not exist."""
        return [one for one in self.counterparts if not ours.exists(one)]


@functools.cache
def data(name: str) -> Mapping[str, Any]:
    """Return a table of exceptions to the rules."""
    found: Mapping[str, Any] = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    return found


def _row(name: str, value: Any) -> Row:
    """`"ours"`, `["one", "two"]`, or a table with `ours` and `note`."""
    if isinstance(value, dict):
        row = _row(name, value.get("ours", []))
        return msgspec.structs.replace(row, note=value["note"])
    return Row(name, (value,) if isinstance(value, str) else tuple(value))


# Names of the package, by rules


def names() -> Iterator[Row]:
    """Return the rows of classes, members, functions and values."""
    for name in official.names():
        yield _by_rules(name)


def _by_rules(name: str) -> Row:
    """What is written; else the twin's row, the base's row, the same name, a tag."""
    written = {**data("official")["names"], **data("official")["members"]}
    if name in written:
        return _row(name, written[name])
    if name in official.objects():
        found = _same_name(name)
        return Row(name, (found,) if found else ())
    cls, _, member = name.rpartition(".")
    if member.endswith("_async"):
        return msgspec.structs.replace(_by_rules(name.removesuffix("_async")), name=name)
    return _member(name, cls, member, written)


def _member(name: str, cls: str, member: str, written: Mapping[str, Any]) -> Row:
    for base in official.bases(cls):
        if f"{base}.{member}" in written:
            return _row(name, written[f"{base}.{member}"])
    for home in _by_rules(cls).counterparts:
        if ours.exists(f"{home}.{member}"):
            return Row(name, (f"{home}.{member}",))
    for base in official.bases(cls):
        if f"{base}.{member}" in official.names():
            return msgspec.structs.replace(_by_rules(f"{base}.{member}"), name=name)
    if not _by_rules(cls).counterparts:
        return Row(name, (), _by_rules(cls).note)
    return Row(name, (), TAG if member == "type" else "")


def _same_name(name: str) -> str | None:
    """Ours of the same name: public, or else a message of the wire."""
    for home in ("", "data.results.", "wire.messages."):
        if ours.exists(f"{home}{name}"):
            return f"{home}{name}"
    return None


# What is in no namespace


def endpoints() -> Iterator[Row]:
    """Return the rows of the endpoints that the official client asks."""
    for name in official.endpoints():
        written = data("official")["endpoints"].get(name)
        known = name in ours.client_endpoints() & ours.server_endpoints()
        yield _row(name, written) if written else Row(name, (name,) if known else ())


def variables() -> Iterator[Row]:
    """Return the rows of the environment variables."""
    for name in official.variables():
        yield _row(name, data("official")["variables"].get(name, f"env: {name}"))


def commands() -> Iterator[Row]:
    """Return the rows of the command line."""
    for name in official.commands():
        written = data("official")["commands"].get(name)
        yield _row(name, written if written is not None else f"cli: {name}")


def unused() -> list[str]:
    """Return what is written of names that are no more."""
    known = {
        *official.names(), *official.endpoints(), *official.variables(), *official.commands(),
    }  # fmt: skip
    return [name for part in data("official").values() for name in part if name not in known]


# Tinkex


def tinkex() -> Iterator[tuple[str, list[Row]]]:
    """Return its sections with their rows."""
    for section, entries in data("tinkex").items():
        yield section, [_row(name, value) for name, value in entries.items()]
