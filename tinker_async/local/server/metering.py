"""Watches the jobs of the engine: counts tokens in the ledger, and keeps a trace of each session.

It is called twice for each job and does a few additions: what it costs is not to be seen. Traces
are in memory, and the oldest ones leave when there are too many.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

from tinker_async.data.results import SampleResponse
from tinker_async.local.engine.jobs import (
    CreateModel,
    DropSnapshot,
    ForwardBackward,
    Job,
    LoadModel,
    LoadSnapshot,
    OptimStep,
    Result,
    Sample,
    SaveSampler,
    SaveTraining,
)
from tinker_async.local.server.ledger import Ledger

SPANS_PER_SESSION = 5_000
SESSIONS_TRACED = 16

_NAMES: dict[type, str] = {
    CreateModel: "create_model",
    LoadModel: "load_weights",
    ForwardBackward: "forward_backward",
    OptimStep: "optim_step",
    SaveTraining: "save_weights",
    SaveSampler: "save_weights_for_sampler",
    Sample: "sample",
}

Ended: TypeAlias = Callable[[Result], None]


class _Span(msgspec.Struct, frozen=True, gc=False):
    name: str
    track: str
    request_id: str | None
    """Of samples, which overlap."""
    start_s: float
    end_s: float
    tokens: int
    failed: bool


class Meter:
    """Counts and traces.

    `session_of` tells whose sample it is, by the id of its promise; `tick` is the clock, in seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        session_of: Callable[[str], str | None],
        tick: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._tick = tick
        self._session_of = session_of
        self._traces: OrderedDict[str, deque[_Span]] = OrderedDict()

    def watch(self, job: Job) -> Ended | None:
        """Note that a job is given to the engine; return what to call with its result."""
        name = _NAMES.get(type(job))
        if name is None or isinstance(job, LoadSnapshot | DropSnapshot):
            return None
        start_s = self._tick()
        if isinstance(job, Sample):
            session_id = self._session_of(job.key)
            track, request_id = job.snapshot_id or "base model", job.key
        else:
            session_id = job.model_id.partition(":")[0]
            track, request_id = job.model_id, None
        if session_id is None:
            return None
        owner: str = session_id

        def ended(result: Result) -> None:
            failed = result is None and request_id is not None  # cancelled
            failed = failed or isinstance(result, BaseException)
            tokens = 0 if failed else self._count(owner, job, result)
            span = _Span(name, track, request_id, start_s, self._tick(), tokens, failed)
            self._trace(owner).append(span)

        return ended

    def _count(self, session_id: str, job: Job, result: Any) -> int:
        if isinstance(job, ForwardBackward):
            tokens = sum(datum.model_input.length for datum in job.data)
            self._ledger.count(session_id, training=tokens)
            return tokens
        if isinstance(job, Sample) and isinstance(result, SampleResponse):
            drawn = sum(len(sequence.tokens) for sequence in result.sequences)
            cached = min(int(result.prompt_cache_hit_tokens), job.prompt.size)
            fresh = job.prompt.size - cached
            self._ledger.count(session_id, sample=drawn, prefill=fresh, prefill_cached=cached)
            return drawn + job.prompt.size
        return 0

    def _trace(self, session_id: str) -> deque[_Span]:
        trace = self._traces.get(session_id)
        if trace is None:
            trace = self._traces[session_id] = deque(maxlen=SPANS_PER_SESSION)
            if len(self._traces) > SESSIONS_TRACED:
                self._traces.popitem(last=False)
        else:
            self._traces.move_to_end(session_id)
        return trace

    def export(self, session_id: str) -> bytes | None:
        """Return what the engine did for a session, in the trace event format, or None.

        The times are microseconds after the first event. Perfetto and Chrome open it.
        """
        trace = self._traces.get(session_id)
        if trace is None:
            return None
        spans = sorted(trace, key=lambda span: span.start_s)
        return msgspec.json.encode(
            {
                "displayTimeUnit": "ms",
                "otherData": {"session_id": session_id, "complete": len(trace) < SPANS_PER_SESSION},
                "traceEvents": _events(spans),
            }
        )


def _events(spans: list[_Span]) -> list[dict[str, Any]]:
    origin_s = spans[0].start_s if spans else 0.0
    tracks: dict[str, int] = {}
    events: list[dict[str, Any]] = []
    for span in spans:
        track = tracks.setdefault(span.track, len(tracks) + 1)
        if span.request_id is None:
            events.append(_complete(span, track, origin_s))
        else:
            events += _begin_and_end(span, track, origin_s)
    names = [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": number, "args": {"name": name}}
        for name, number in tracks.items()
    ]
    return names + events


def _shared(span: _Span, track: int) -> dict[str, Any]:
    args = {"tokens": span.tokens, "failed": span.failed}
    return {"name": span.name, "cat": "engine", "pid": 1, "tid": track, "args": args}


def _complete(span: _Span, track: int, origin_s: float) -> dict[str, Any]:
    times = {
        "ts": (span.start_s - origin_s) * 1e6,
        "dur": (span.end_s - span.start_s) * 1e6,
    }
    return {"ph": "X", **_shared(span, track), **times}


def _begin_and_end(span: _Span, track: int, origin_s: float) -> list[dict[str, Any]]:
    # Samples of one track overlap, which complete events must not.
    shared = {**_shared(span, track), "id": span.request_id}
    return [
        {"ph": "b", **shared, "ts": (span.start_s - origin_s) * 1e6},
        {"ph": "e", **shared, "ts": (span.end_s - origin_s) * 1e6},
    ]
