"""How a session is doing: one look at everything that can hold work up.

Plain figures of one instant; looking changes nothing and asks nobody.
"""

from __future__ import annotations

from typing import Literal

import anyio
import msgspec

from tinker_async.api.calls import Caller
from tinker_async.background.heartbeat import Heartbeat
from tinker_async.background.sampling_pool import SamplingStatistics
from tinker_async.background.training_queue import Lane, LaneStatistics
from tinker_async.transport import TrafficClass
from tinker_async.transport.lanes import TransportStatistics

_LATE_BEATS = 3
"""Heartbeats that may be missed before the session counts as degraded."""


class SessionStatistics(msgspec.Struct, frozen=True):
    """Figures of an open session."""

    transport: TransportStatistics
    sampling: SamplingStatistics
    seconds_since_heartbeat: float
    lanes: dict[str, LaneStatistics]
    """The training queues, by model id."""


class SessionHealth(msgspec.Struct, frozen=True):
    """How a session is doing at one instant."""

    session_id: str
    state: Literal["ok", "degraded", "lost"]
    """`lost`: the server ended it. `degraded`: heartbeats are missed, or something below is."""
    seconds_since_contact: float | None
    """Since the server's last answer to anything; None before the first."""
    seconds_since_heartbeat: float
    in_flight: dict[str, int]
    """Requests on their way, by traffic class: session, training, sampling, polling."""
    waiting: dict[str, int]
    """Requests that wait for a connection, by traffic class."""
    backing_off_for_s: float
    """How long new samples are still held back; 0 when they are not."""
    billing_paused_for_s: float
    """How long the server has been answering 402; 0 when it is not."""
    paused_queues: dict[str, str]
    """The queue state of operations that the server says are paused, by operation."""
    poisoned: dict[str, str]
    """What was lost, by model id."""


def health_of(
    session_id: str,
    *,
    caller: Caller,
    heartbeat: Heartbeat,
    statistics: SessionStatistics,
    lanes: dict[str, Lane],
    lost: bool,
) -> SessionHealth:
    """Look at a session's parts."""
    now = anyio.current_time()
    contact = caller.last_contact
    backing_off_for_s = statistics.sampling.backing_off_for_s
    paused = {one.operation: one.queue_state for one in caller.paused if one.queue_state}
    poisoned = {name: lane.poison for name, lane in lanes.items() if lane.poison}
    late = statistics.seconds_since_heartbeat > _LATE_BEATS * heartbeat.period_s
    troubled = late or backing_off_for_s or caller.billing.paused or paused or poisoned
    return SessionHealth(
        session_id=session_id,
        state="lost" if lost else ("degraded" if troubled else "ok"),
        seconds_since_contact=None if contact is None else now - contact,
        seconds_since_heartbeat=statistics.seconds_since_heartbeat,
        in_flight=_by_name(statistics.transport.in_flight),
        waiting=_by_name(statistics.transport.waiting),
        backing_off_for_s=backing_off_for_s,
        billing_paused_for_s=caller.billing.paused_for_s,
        paused_queues=paused,
        poisoned=poisoned,
    )


def _by_name(figures: dict[TrafficClass, int]) -> dict[str, int]:
    return {traffic.value: number for traffic, number in figures.items()}
