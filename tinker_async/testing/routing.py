"""Which endpoint a request is for, and the request as its handler sees it."""

from __future__ import annotations

import hashlib
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias, TypeVar

import msgspec

from tinker_async.errors import InvalidInputError
from tinker_async.testing.answers import Answer, Refusal
from tinker_async.testing.faults import Fault
from tinker_async.testing.ledger import Entry
from tinker_async.testing.promises import Promise
from tinker_async.testing.state import State
from tinker_async.wire import untagged
from tinker_async.wire.protobuf import DecodeError

T = TypeVar("T")

PREFIX = "/api/v1/"


class Call(msgspec.Struct, eq=False):
    """One request at its handler."""

    method: str
    ids: tuple[str, ...]
    """The parts of the path that stand for `{}` in its pattern."""
    query: Mapping[str, str]
    headers: Mapping[bytes, bytes]
    """Lower-case names."""
    entry: Entry
    fault: Fault | None = None
    body: bytes = b""
    delivers: Promise | None = None
    """The promise whose result the answer is."""

    @property
    def digest(self) -> bytes:
        """What tells a repetition from another request under the same number."""
        return hashlib.blake2b(self.body, digest_size=16).digest()

    def parse(self, type_: type[T]) -> T:
        """Return the JSON body.

        Raises:
            Refusal: 422, it is not of this type.
        """
        try:
            return untagged.decode(self.body, type_)
        except (DecodeError, InvalidInputError) as error:
            raise Refusal(422, str(error)) from error

    def number(self, name: str, default: int) -> int:
        """Return a number of the query.

        Raises:
            Refusal: 422, it is none.
        """
        text = self.query.get(name) or str(default)
        if not (text.isascii() and text.isdigit()):
            raise Refusal(422, f"{name} must be a number that is not negative, got {text!r}")
        return int(text)


Handler: TypeAlias = Callable[[State, Call], "Answer | Awaitable[Answer]"]


class Route(msgspec.Struct, frozen=True, eq=False):
    """An endpoint: the name that scripts and the ledger use, and where it is."""

    name: str
    method: str
    pattern: str
    """Below `/api/v1/`; `{}` is one part of the path, `{*}` all the rest."""
    handler: Handler

    def match(self, method: str, parts: list[str]) -> tuple[str, ...] | None:
        """Return the ids in the path, or None if the route is not meant."""
        if method != self.method:
            return None
        wanted = self.pattern.split("/")
        if wanted[-1] == "{*}" and len(parts) >= len(wanted):
            parts = [*parts[: len(wanted) - 1], "/".join(parts[len(wanted) - 1 :])]
        if len(parts) != len(wanted):
            return None
        ids = []
        for want, part in zip(wanted, parts, strict=True):
            if want in {"{}", "{*}"}:
                ids.append(urllib.parse.unquote(part))
            elif want != part:
                return None
        return tuple(ids)


def split_target(target: str) -> tuple[list[str], dict[str, str]]:
    """Return the parts of the path below `/api/v1/`, whatever stands before it, and the query."""
    path, _, query = target.partition("?")
    below = path.partition(PREFIX)[2]
    return below.split("/"), dict(urllib.parse.parse_qsl(query))
