"""The ready line: what the serving process tells its parent."""

from __future__ import annotations

import msgspec


class Announcement(msgspec.Struct, frozen=True):
    """Written as one line of JSON on standard output when requests are accepted."""

    url: str
    api_key: str
    models: list[str]
