"""What an answer means for the bytes that are on disk already. Pure.

The rule: bytes are appended only to the same version of the same file. Each request that goes
on asks for a little that is there already, so that even a server without ETags is caught at
another version, and a tail that a crash has damaged is found.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Final, TypeAlias

import msgspec

OVERLAP_BYTES: Final = 1 << 16
"""How much of what is on disk is asked for again and compared."""

_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
_UNSATISFIED = re.compile(r"bytes \*/(\d{1,19})")
_DIGEST = re.compile(r"(sha-256)=:?([A-Za-z0-9+/]{43}=):?", re.IGNORECASE)


class Version(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a server said of one version of a file: as much as it says."""

    etag: str | None = None
    """With its quotes, and only if it is a strong one."""
    total_bytes: int | None = None
    sha256: str | None = None
    """In hex."""

    def differs(self, other: Version) -> bool:
        """Whether the two cannot be the same version."""
        return any(
            mine is not None and theirs is not None and mine != theirs
            for mine, theirs in (
                (self.etag, other.etag),
                (self.total_bytes, other.total_bytes),
                (self.sha256, other.sha256),
            )
        )

    def joined(self, other: Version) -> Version:
        """Return all that is known from both."""
        return Version(
            self.etag or other.etag,
            other.total_bytes if self.total_bytes is None else self.total_bytes,
            self.sha256 or other.sha256,
        )


class Ask(msgspec.Struct, frozen=True):
    """A request for a file of which `have_bytes` are on disk."""

    have_bytes: int
    version: Version

    @property
    def offset(self) -> int:
        """Where the wanted range begins; 0 may be a request without a range."""
        return max(0, self.have_bytes - OVERLAP_BYTES)

    def headers(self) -> dict[str, str]:
        """Return the headers that ask for what is missing, from `offset` on."""
        if not self.have_bytes:
            return {}
        wanted = {"range": f"bytes={self.offset}-"}
        if self.version.etag is not None:
            wanted["if-range"] = self.version.etag  # another version is sent whole
        return wanted


class Append(msgspec.Struct, frozen=True):
    """The content begins at `offset`: compare what is there, then append the rest."""

    version: Version
    length_bytes: int | None = None
    """Of the content; None where it is not announced."""


class FromStart(msgspec.Struct, frozen=True):
    """The content is the whole file, perhaps another version: what is on disk is void."""

    version: Version


class Whole(msgspec.Struct, frozen=True):
    """What is on disk is all of it; the content of this answer is of no interest."""


class Void(msgspec.Struct, frozen=True):
    """Neither the answer nor what is on disk is of use: remove it and ask for all."""

    reason: str


Meaning: TypeAlias = Append | FromStart | Whole | Void


def meaning_of(ask: Ask, status: int, headers: Mapping[str, str]) -> Meaning | None:
    """Say what an answer is good for.

    Args:
        ask: What was asked for.
        status: The answer's status.
        headers: The answer's headers, names in lower case.

    Returns:
        None for a status that is neither a success nor about ranges.
    """
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        return Void("it is compressed, which was not asked for") if status < 300 else None
    if status == 200:
        return FromStart(version_of(headers, total_bytes=_length(headers)))
    if status == 206:
        return _partial(ask, headers)
    if status == 416:
        return _unsatisfied(ask, headers)
    return None


def _partial(ask: Ask, headers: Mapping[str, str]) -> Meaning:
    found = _RANGE.fullmatch(headers.get("content-range", "").strip())
    if found is None or not ask.have_bytes:
        return Void("a range was sent that was not asked for")
    first, last = int(found[1]), int(found[2])
    total = None if found[3] == "*" else int(found[3])
    if first != ask.offset or last < first or (total is not None and last >= total):
        return Void("another range was sent than the one asked for")
    length = last - first + 1
    if _length(headers) not in (None, length):
        return Void("the range and the length contradict each other")
    version = version_of(headers, total_bytes=total)
    if version.differs(ask.version):
        return Void("the file has changed on the server")
    if total is not None and total < ask.have_bytes:
        return Void("the file is shorter than what there is of it")
    return Append(version.joined(ask.version), length)


def _unsatisfied(ask: Ask, headers: Mapping[str, str]) -> Meaning:
    found = _UNSATISFIED.fullmatch(headers.get("content-range", "").strip())
    whole = ask.version.total_bytes
    if found is not None and int(found[1]) == ask.have_bytes == whole:
        return Whole()
    return Void("the server has no more than what there is, and does not say how much")


def version_of(headers: Mapping[str, str], *, total_bytes: int | None) -> Version:
    """Read what an answer says of the whole file."""
    etag: str | None = headers.get("etag", "").strip()
    if not re.fullmatch(r'"[\x21\x23-\x7e]*"', etag or ""):  # absent, weak or malformed
        etag = None
    return Version(etag, total_bytes, _sha256(headers))


def _sha256(headers: Mapping[str, str]) -> str | None:
    for name in ("repr-digest", "digest"):
        found = _DIGEST.search(headers.get(name, ""))
        if found is not None:
            return _hex(found[2])
    amazon = headers.get("x-amz-checksum-sha256", "")
    return _hex(amazon) if re.fullmatch(r"[A-Za-z0-9+/]{43}=", amazon) else None


def _hex(text: str) -> str:
    return base64.b64decode(text).hex()


def _length(headers: Mapping[str, str]) -> int | None:
    text = headers.get("content-length", "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None
