"""Errors of the engine thread that are not the user's input.

Importable without torch. Whatever else a job raises reaches its caller as it is.
"""

from __future__ import annotations

import errno
import re
from typing import Self

from tinker_async.errors import TinkerError

_MEMORY_WORDS = (
    "can't allocate memory",
    "can't start new thread",
    "not enough memory",
    "out of memory",
)
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_UNWRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM}
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""How safetensors, which has no class for it, ends a message of the system."""


class EngineStoppedError(TinkerError):
    """The engine was stopped, or could not start, before the job was done."""


class ModelLostError(TinkerError):
    """A model cannot be trained on: its state, or the order of its requests, is lost."""


class EngineMemoryError(TinkerError):
    """There was not enough memory for the job; the engine goes on without it."""


class EngineStorageError(TinkerError):
    """The data directory could not be written; what was to be stored is not there."""

    @classmethod
    def full(cls) -> Self:
        """Return the error for a full disk."""
        return cls(
            "the disk of the data directory is full: nothing was stored",
            hint="free some space there, for example by deleting checkpoints, and try again",
        )

    @classmethod
    def unwritable(cls) -> Self:
        """Return the error for a directory that cannot be written."""
        return cls(
            "the data directory cannot be written: nothing was stored",
            hint="let the server's user write there, or give another with --data-dir",
        )


class SampleCancelledError(TinkerError):
    """The sample was cancelled before its last token."""


def explained(error: BaseException) -> BaseException:
    """Return the error to report: no memory and no disk have names, others are themselves.

    torch has a class for memory on GPUs; on the CPU it is a RuntimeError, told by its words
    only. The path of a file is left out: it is the server's own business.
    """
    clear: TinkerError
    if _is_memory(error):
        clear = EngineMemoryError(
            f"the engine ran out of memory: {error}",
            hint="send shorter sequences, or start the engine with smaller limits",
        )
    elif (code := _system_code(error)) in _FULL:
        clear = EngineStorageError.full()
    elif code in _UNWRITABLE:
        clear = EngineStorageError.unwritable()
    else:
        return error
    clear.__cause__ = error
    return clear


def _is_memory(error: BaseException) -> bool:
    says = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # by name: torch is not imported here
        or (isinstance(error, RuntimeError) and any(words in says for words in _MEMORY_WORDS))
        or _system_code(error) == errno.ENOMEM
    )


def _system_code(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    if type(error).__name__ != "SafetensorError":  # by name, as above
        return None
    found = _OS_ERROR.search(str(error))
    return int(found[1]) if found else None
