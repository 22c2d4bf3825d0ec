"""Faults of the machine in plain words: a full disk, a folder that cannot be written, no memory.

The rule: what a client is told names the fault and what helps, and no path of the server.
"""

from __future__ import annotations

import sqlite3

from tinker_async.errors import TinkerError
from tinker_async.local.engine.failures import EngineMemoryError, EngineStorageError, explained

_FULL = (sqlite3.SQLITE_FULL,)
_UNWRITABLE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)


def fault_of(error: BaseException) -> TinkerError | None:
    """Return the fault of the machine that an exception tells of, or None."""
    if isinstance(error, sqlite3.Error):
        return _of_database(error)
    clear = explained(error)
    return clear if isinstance(clear, EngineMemoryError | EngineStorageError) else None


def _of_database(error: sqlite3.Error) -> EngineStorageError:
    code = getattr(error, "sqlite_errorcode", None)
    code = None if code is None else code & 0xFF  # without the extended part
    if code in _FULL:
        clear = EngineStorageError.full()
    elif code in _UNWRITABLE:
        clear = EngineStorageError.unwritable()
    else:
        clear = EngineStorageError(f"the database in the data directory failed: {error}")
    clear.__cause__ = error
    return clear
