"""How much the server takes and how long it waits, and where that is read from text.

The rule: what exceeds a queue is refused with 429 before anything of it is taken.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tinker_async.errors import ConfigError


class Limits(msgspec.Struct, frozen=True):
    """How much and how long. Durations in seconds, sizes in bytes."""

    hold_s: float = 30.0
    """How long a poll is held; clients give up after 45 s."""
    silence_s: float = 300.0
    """A session that is silent for this long is over."""
    gap_s: float = 900.0
    """How long later requests wait for one that does not come; clients repeat for 300 s."""
    housekeeping_s: float = 5.0
    body_bytes: int = 256 * 1024 * 1024
    delivered_bytes: int = 64 * 1024 * 1024
    inline_bytes: int = 1024 * 1024
    """A client that can take a size for an answer gets larger results when it asks again."""
    lane_requests: int = 2048
    lane_bytes: int = 512 * 1024 * 1024
    waiting_bytes: int = 1024 * 1024 * 1024
    """Of all requests that wait or run, training and samples together."""
    samples_waiting: int = 4096
    held_polls: int = 4096
    samples_remembered: int = 50_000
    """Of all samplers together; their repetitions get the same promise. Some 25 MB."""
    sequences_per_sample: int = 1024
    resident_snapshots: int = 16
    ephemeral_snapshots: int = 64


def read_limits(given: Mapping[str, str]) -> Limits:
    """Return the limits with some of them set: the names above, values as text.

    Raises:
        ConfigError: No such limit, or not a positive number for it.
    """
    values = msgspec.structs.asdict(Limits())
    for name, value in given.items():
        if name not in values:
            raise ConfigError(f"there is no limit {name!r}", hint=f"there are {', '.join(values)}")
        values[name] = value
    try:
        limits = msgspec.convert(values, Limits, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"a limit has a wrong value: {error}") from error
    for name in given:
        if not 0 < getattr(limits, name) < _MOST:
            raise ConfigError(f"the limit {name} must be a positive number, got {given[name]}")
    return limits


_MOST = 2**63
"""Beyond it, infinity and not-a-number included, nothing can be counted or waited for."""
