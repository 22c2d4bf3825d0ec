"""How many bytes of requests may wait in memory, all queues together.

The rule: whoever takes bytes gives them back, whichever way the request ends.
"""

from __future__ import annotations

from tinker_async.local.server.refusal import Refusal


class Budget:
    """Bytes that wait, against a limit. One request always has room, however large."""

    def __init__(self, limit_bytes: int | None = None) -> None:
        self._limit_bytes = limit_bytes
        self.used_bytes = 0

    def check(self, size_bytes: int) -> None:
        """Refuse with 429 what does not fit now."""
        if (
            self._limit_bytes is not None
            and self.used_bytes
            and self.used_bytes + size_bytes > self._limit_bytes
        ):
            raise Refusal(
                429, f"{self.used_bytes} bytes of requests are waiting already", retry_after_s=1
            )

    def take(self, size_bytes: int) -> None:
        """Count bytes that wait from now on."""
        self.used_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Count them no more."""
        self.used_bytes -= size_bytes
