"""One server per data directory: a lock that the system takes back when its owner dies."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tinker_async.errors import ConfigError


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Make `folder` if need be and own it inside the block.

    Raises:
        ConfigError: It cannot be made, or another server owns it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a+b")
    except OSError as error:
        raise ConfigError(
            f"the data directory {folder} cannot be used: {error.strerror or error}",
            hint="give another with --data-dir",
        ) from error
    with file:
        try:
            _lock(file.fileno())
        except OSError as error:
            raise ConfigError(
                f"another server uses the data directory {folder}",
                hint="stop it, or give another directory with --data-dir",
            ) from error
        yield


if sys.platform == "win32":
    import msvcrt

    def _lock(fd: int) -> None:
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
