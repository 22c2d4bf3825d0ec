"""Which names of a checkpoint's files may become paths on this machine. Pure.

The rule: a name is refused, never repaired. What is accepted is a plain relative path that
means the same on every system, and no two accepted names can mean one file.
"""

from __future__ import annotations

import unicodedata
from typing import Final

from tinker_async.errors import UnsafeDownloadError

MAX_PART_BYTES: Final = 255
MAX_NAME_BYTES: Final = 1024
MAX_DEPTH: Final = 16
_SHOWN = 120
"""Characters of a refused name that an error repeats."""

_FORBIDDEN = frozenset('\\:*?"<>|')
"""Separators, drives, streams and wildcards of other systems."""
_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", "conin$", "conout$"}
    | {f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³"}
)
"""Names that are devices on Windows, whatever their extension."""


def safe_parts(name: str) -> tuple[str, ...]:
    """Split a relative file name into its parts; `.` and empty parts are left out.

    Raises:
        UnsafeDownloadError: Absolute, with `..`, too long or too deep, or with characters that
            are invisible, mean something to a system, or turn into such ones.
    """
    if name.startswith("/"):
        raise refused(name, "it is an absolute path")
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise refused(name, "it is not UTF-8") from None
    if length > MAX_NAME_BYTES:
        raise refused(name, f"it is longer than {MAX_NAME_BYTES} bytes")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if len(parts) > MAX_DEPTH:
        raise refused(name, f"it is deeper than {MAX_DEPTH} folders")
    for part in parts:
        reason = _fault(part) or _fault(unicodedata.normalize("NFKC", part))
        if reason is not None:
            raise refused(name, reason)
    return parts


def _fault(part: str) -> str | None:
    """Why a part is no safe name of a file, or None."""
    if part in ("", ".", "..") or "/" in part:
        return "it leaves its folder"
    if len(part.encode()) > MAX_PART_BYTES:
        return f"a part of it is longer than {MAX_PART_BYTES} bytes"
    for character in part:
        if character in _FORBIDDEN:
            return f"it has the character {character!r}"
        if not character.isprintable():  # controls, marks of direction, spaces other than " "
            return "it has a character that is not shown"
    device = part.partition(".")[0].rstrip().lower() in _DEVICES
    if device or part[-1] in ". " or part[0] == " ":
        return "some systems take it for another one"
    return None


def refused(name: str, reason: str) -> UnsafeDownloadError:
    """Make the error for a name, which it shows in ASCII and shortened."""
    shown = ascii(name[:_SHOWN]) + ("..." if len(name) > _SHOWN else "")
    return UnsafeDownloadError(f"the checkpoint has a file named {shown}: {reason}", member=shown)


class Names:
    """The names of one checkpoint: each once, and no file where another needs a folder.

    Args:
        max_files: How many files and folders there may be.
    """

    def __init__(self, *, max_files: int) -> None:
        self._max_files = max_files
        self._seen: dict[tuple[str, ...], tuple[str, bool]] = {}
        self._added = 0

    def add_file(self, name: str) -> tuple[str, ...]:
        """Accept a file and return its parts.

        Raises:
            UnsafeDownloadError: As `safe_parts`; or the name is there already (systems that do not
                tell upper from lower case included), is empty, or is one too many.
        """
        parts = safe_parts(name)
        if not parts:
            raise refused(name, "it is no name")
        if name.endswith("/"):
            raise refused(name, "it is a folder's")
        self._count(name)
        self._add_folders(name, parts[:-1])
        if _key(parts) in self._seen:
            raise refused(name, f"it is the same as {self._seen[_key(parts)][0]!a}")
        self._seen[_key(parts)] = (name, True)
        return parts

    def add_folder(self, name: str) -> tuple[str, ...]:
        """Accept a folder, which may be named more than once, and return its parts.

        Raises:
            UnsafeDownloadError: As `safe_parts`; or there is such a file, or one too many.
        """
        parts = safe_parts(name)
        self._count(name)
        self._add_folders(name, parts)
        return parts

    def _count(self, name: str) -> None:
        self._added += 1
        if self._added > self._max_files:
            raise refused(name, f"there are more than {self._max_files} names")

    def _add_folders(self, name: str, parts: tuple[str, ...]) -> None:
        for depth in range(1, len(parts) + 1):
            key, spelt = _key(parts[:depth]), "/".join(parts[:depth])
            known, is_file = self._seen.setdefault(key, (spelt, False))
            if is_file or known != spelt:  # two spellings of a folder are one folder elsewhere
                raise refused(name, f"{known!a} is there already")


def _key(parts: tuple[str, ...]) -> tuple[str, ...]:
    """What names have in common that some system takes for one."""
    return tuple(unicodedata.normalize("NFKC", part.casefold()).casefold() for part in parts)
