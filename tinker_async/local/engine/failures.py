"""Errors of the engine thread that are not the user's input.

Importable without torch. Whatever else a job raises reaches its caller as it is.
"""

from __future__ import annotations

from tinker_async.errors import TinkerError

_TORCH_SAYS = ("can't allocate memory", "not enough memory", "out of memory")


class EngineStoppedError(TinkerError):
    """The engine was stopped, or could not start, before the job was done."""


class EngineMemoryError(TinkerError):
    """There was not enough memory for the job; the engine goes on without it."""


class SampleCancelledError(TinkerError):
    """The sample was cancelled before its last token."""


def explained(error: BaseException) -> BaseException:
    """Return the error to report: running out of memory has a name, others are themselves.

    torch has a class for it on GPUs; on the CPU it is a RuntimeError, told by its words only.
    """
    says = str(error).lower()
    short = (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # by name: torch is not imported here
        or (isinstance(error, RuntimeError) and any(words in says for words in _TORCH_SAYS))
    )
    if not short:
        return error
    clear = EngineMemoryError(
        f"the engine ran out of memory: {error}",
        hint="send shorter sequences, or start the engine with smaller limits",
    )
    clear.__cause__ = error
    return clear
