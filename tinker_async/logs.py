"""The library's log: events with fields, written by structlog as the program has set it up.

The rule: structlog is loaded with the first event, since most programs that import this
library never see one.
"""

from __future__ import annotations

from typing import Any


class _Log:
    """The structlog logger `tinker_async`."""

    __slots__ = ("_logger",)

    def __init__(self) -> None:
        self._logger: Any = None

    def _loaded(self) -> Any:
        if self._logger is None:
            import structlog  # noqa: PLC0415  # as many modules as all of ours: loaded on use

            self._logger = structlog.get_logger("tinker_async")
        return self._logger

    def debug(self, event: str, **fields: Any) -> None:
        """Write an event that only a search for a fault needs."""
        self._loaded().debug(event, **fields)

    def info(self, event: str, **fields: Any) -> None:
        """Write an event that is no trouble."""
        self._loaded().info(event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Write an event that somebody should look at."""
        self._loaded().warning(event, **fields)

    def error(self, event: str, **fields: Any) -> None:
        """Write an event that needs somebody."""
        self._loaded().error(event, **fields)


log = _Log()
