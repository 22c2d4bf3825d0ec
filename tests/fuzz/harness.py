"""Runs a decoder over damaged input: seeded, counted, and reproducible from one line.

The oracle is always the same: a value, or an error of a named kind; in bounded time and
memory. `FUZZ_SEED`, `FUZZ_FACTOR` (times as many cases) and `FUZZ_CASE` (`name:number`, this
one alone) come from the environment.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import anyio

SEED = os.environ.get("FUZZ_SEED", "1")
FACTOR = float(os.environ.get("FUZZ_FACTOR", "1"))
CASE = os.environ.get("FUZZ_CASE", "")

CPU_LIMIT_S = 10.0
"""Of one case, in this process's own time: only a hang takes so long."""
MEMORY_FREE_BYTES = 32 << 20
MEMORY_PER_BYTE = 256
"""A case may take so much, and so many bytes for each byte of its input."""
_SHOWN_BYTES = 2048
_SHRINK_STEPS = 300

Make = Callable[[random.Random], bytes]
Decode = Callable[[bytes], object]
Errors = tuple[type[BaseException], ...]


class HangError(BaseException):
    """A case took too long; no `except Exception` on the way may swallow it."""


def numbers(name: str, cases: int) -> Sequence[int]:
    """Return the numbers of the cases to run under a name."""
    if not CASE:
        return range(max(1, int(cases * FACTOR)))
    wanted, _, number = CASE.rpartition(":")
    return [int(number)] if wanted == name else []


def rng_of(name: str, number: int) -> random.Random:
    """Return the source of chance of one case: the same on every machine."""
    return random.Random(f"{SEED}/{name}/{number}")


def fuzz(
    name: str, make: Make, decode: Decode, *, cases: int, allowed: Errors, memory: bool = False
) -> None:
    """Give a decoder so many inputs; fail with a reproducer when one ends otherwise.

    Args:
        name: Of the decoder; unique.
        make: Makes the input of a case.
        decode: Reads it, and uses what it got.
        cases: How many, times the factor.
        allowed: The errors that may leave it.
        memory: Bound the memory too, at twice the cost.
    """
    for number in numbers(name, cases):
        body = make(rng_of(name, number))
        wrong = fault(decode, body, allowed, memory=memory)
        if wrong is not None:
            again = functools.partial(fault, decode, allowed=allowed, memory=memory)
            small = shrunk(body, again, wrong)
            raise AssertionError(report(name, number, small, wrong)) from wrong


async def afuzz(
    name: str,
    make: Make,
    ask: Callable[[bytes], Awaitable[object]],
    *,
    cases: int,
    allowed: Errors = (),
    bound_s: float = 30.0,
) -> None:
    """As `fuzz`, for what waits: no case may take longer than the bound either."""
    for number in numbers(name, cases):
        body = make(rng_of(name, number))
        try:
            with limited(), anyio.fail_after(bound_s):
                await ask(body)
        except allowed:
            continue
        except (Exception, HangError) as error:
            raise AssertionError(report(name, number, body, error)) from error


def fault(
    decode: Decode, body: bytes, allowed: Errors, *, memory: bool = False
) -> BaseException | None:
    """Return how a decoder breaks its word on an input, or None."""
    try:
        with limited(), peak_within(len(body)) if memory else contextlib.nullcontext():
            decode(body)
    except allowed:
        return None
    except (Exception, HangError) as error:  # noqa: BLE001  # whatever it is, it is what we look for
        return error
    return None


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raise `HangError` in a block that uses too much of the processor."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def ring(_number: int, _frame: Any) -> None:
        raise HangError(f"used the processor for more than {CPU_LIMIT_S:g} s")

    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextlib.contextmanager
def peak_within(size_bytes: int, *, free_bytes: int = MEMORY_FREE_BYTES) -> Iterator[None]:
    """Fail when a block allocates out of proportion to its input."""
    most = free_bytes + MEMORY_PER_BYTE * size_bytes
    tracemalloc.start()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if peak > most:
            raise MemoryError(f"took {peak} bytes for an input of {size_bytes}")


def shrunk(
    body: bytes, again: Callable[[bytes], BaseException | None], wrong: BaseException
) -> bytes:
    """Return a smaller input that fails alike: parts are left out while it does."""
    if isinstance(wrong, HangError):
        return body  # each step would take as long
    size, steps = len(body) // 2, 0
    while size and steps < _SHRINK_STEPS:
        at, before = 0, len(body)
        while at < len(body) and steps < _SHRINK_STEPS:
            steps += 1
            cut = body[:at] + body[at + size :]
            if type(again(cut)) is type(wrong):
                body = cut
            else:
                at += size
        if len(body) == before:
            size //= 2
    return body


def report(name: str, number: int, body: bytes, error: BaseException) -> str:
    """Return what a failing case tells: how to run it again, and its input."""
    shown = body[:_SHOWN_BYTES].hex() + ("..." if len(body) > _SHOWN_BYTES else "")
    return (
        f"{name}: {type(error).__name__}: {error}\n"
        f"again: FUZZ_SEED={SEED} FUZZ_CASE={name}:{number}\n"
        f"input ({len(body)} bytes, hex): {shown}"
    )
