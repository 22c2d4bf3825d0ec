"""What official clients of an age do differently, where the protocol has no word for it.

The rule: only the genuine client is asked for its age, by the headers that it sends everywhere;
another's version number means something else.
"""

from __future__ import annotations

from collections.abc import Mapping

_GENUINE = "AsyncTinker/"
_PARALLEL_SINCE = (0, 17)
"""Later ones may send the parts of one call side by side; 0.16.1 and before wait for each."""


def sends_in_order(headers: Mapping[str, str]) -> bool:
    """Whether a client sends a model's requests one by one: what it skipped never comes."""
    version = _official_version(headers)
    return version is not None and version < _PARALLEL_SINCE


def _official_version(headers: Mapping[str, str]) -> tuple[int, ...] | None:
    if not headers.get("user-agent", "").startswith(_GENUINE):
        return None
    parts = headers.get("x-stainless-package-version", "").split(".")
    if not all(part.isascii() and part.isdigit() for part in parts[:2]):
        return None
    return tuple(int(part) for part in parts[:2])
